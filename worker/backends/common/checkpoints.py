"""Where a model's weights are. Everything on disk is looked through before anything is downloaded, so that a worker
whose model is cached starts with the hub unreachable.

In order: the path itself; MODEL_DIR; the caches (TRANSFORMERS_CACHE, HF_HOME, Runpod's cached models and the network
volume, the user's own); the hub, unless HF_HUB_OFFLINE. Weights are a .nemo file or safetensors; pickles are not read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from worker import config
from worker.config import Settings
from worker.errors import ModelUnavailable

SINGLE = "model.safetensors"
SMALL = ["*.json", "*.txt", "*.model", "*.jinja"]


def nemo_file(name: str, settings: Settings) -> Path:
    """The .nemo file of a model, given as a path or as `owner/name`. Raises ModelUnavailable, saying what to do."""
    if name.endswith(".nemo"):
        given = Path(name).expanduser()
        for path in (given, *([settings.model_dir / given] if settings.model_dir else [])):
            if path.is_file():
                return path
        raise ModelUnavailable(f"no such file: {name}")
    for folder in (*_model_dirs(name, settings), *_snapshots(name, settings)):
        found = sorted(folder.glob("*.nemo"))
        if found:
            return next((path for path in found if path.stem == name.rsplit("/", maxsplit=1)[-1]), found[0])
    found = sorted(_download(name, settings, ["*.nemo"]).glob("*.nemo"))
    if not found:
        raise ModelUnavailable(f"{name} holds no .nemo file")
    return found[0]


def verify(path: Path, sha256: str) -> None:
    """Read the whole file. Raises ModelUnavailable if its SHA-256, in hexadecimal, differs."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise ModelUnavailable(
            f"{path} has the SHA-256 {digest.hexdigest()}, and the catalog pins {sha256}. Download the file again. To "
            "load a version of your own, name it by its path."
        )


def checkpoint(name: str, settings: Settings, *, part: str | None = "") -> Path:
    """The folder of a checkpoint in Hugging Face's form, given as a path or as `owner/name`; `part`: only the weights
    whose names hold it are needed, or none where it is None. Raises ModelUnavailable."""
    given = Path(name).expanduser()
    last = [settings.model_dir] if settings.model_dir and settings.model_dir.name == given.name else []
    for folder in (given, *_model_dirs(name, settings), *last, *_snapshots(name, settings)):
        if not _missing(folder, part):
            return folder
    if given.is_dir():
        raise ModelUnavailable(f"{name} is not a whole checkpoint: it lacks {', '.join(_missing(given, part))}")
    if not _is_repository(name):
        raise ModelUnavailable(f"no such checkpoint: {name}")
    folder = _download(name, settings, SMALL)
    folder = _download(name, settings, [*SMALL, *_missing(folder, part)])
    if missing := _missing(folder, part):
        raise ModelUnavailable(
            f"{name} lacks {', '.join(missing)}: a checkpoint is a config.json and weights as safetensors, "
            "which save_pretrained of transformers makes of others"
        )
    return folder


def checkpoint_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weights."""
    return sum((folder / file).stat().st_size for file in weight_files(folder))


def weight_files(folder: Path, part: str = "") -> list[str]:
    """The files that transformers would read weights from, there or not; of several, those with tensors of the part."""
    index = folder / "model.safetensors.index.json"
    if (folder / SINGLE).is_file() or not index.is_file():
        return [SINGLE]
    files = sorted({file for tensor, file in json.loads(index.read_text())["weight_map"].items() if part in tensor})
    if odd := [file for file in files if not re.fullmatch(r"\w[\w.-]*\.safetensors", str(file))]:
        raise ModelUnavailable(
            f"{index} names {str(odd[0])[:80]!r} as a weight file. Aviary reads only safetensors files in the same "
            "folder; save_pretrained of transformers converts other weights."
        )
    return files


def _missing(folder: Path, part: str | None) -> list[str]:
    """What is not there, of the configuration and the weights of the part."""
    files = ["config.json", *([] if part is None else weight_files(folder, part))]
    return [file for file in files if not (folder / file).is_file()]


def caches(settings: Settings) -> list[Path]:
    """The hub caches that exist, in the order they are looked through."""
    volume = config.VOLUME
    candidates = [
        settings.transformers_cache,
        settings.hf_home and settings.hf_home / "hub",
        volume / "huggingface-cache" / "hub",
        volume / "hub",
        Path.home() / ".cache" / "huggingface" / "hub",
    ]
    return [path for path in candidates if path and path.is_dir()]


def _model_dirs(name: str, settings: Settings) -> Iterator[Path]:
    if settings.model_dir:
        for folder in (settings.model_dir / name, settings.model_dir / name.rsplit("/", maxsplit=1)[-1]):
            if folder.is_dir():
                yield folder


def _snapshots(name: str, settings: Settings) -> Iterator[Path]:
    """The model's folders in the caches, the one that refs/main names first."""
    for cache in caches(settings):
        repository = cache / f"models--{name.replace('/', '--')}"
        main = repository / "refs" / "main"
        if main.is_file():
            yield repository / "snapshots" / main.read_text().strip()
        yield from sorted((repository / "snapshots").glob("*"))


def _is_repository(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def _download(name: str, settings: Settings, patterns: list[str]) -> Path:
    looked = ", ".join(str(path) for path in caches(settings)) or "no cache found"
    if settings.hf_hub_offline:
        raise ModelUnavailable(f"{name} is in no cache ({looked}) and HF_HUB_OFFLINE is set")
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    volume = config.VOLUME / "huggingface-cache" / "hub"
    cache = (
        settings.transformers_cache
        or (settings.hf_home and settings.hf_home / "hub")
        or (volume if config.VOLUME.is_dir() else None)
    )
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, cache_dir=cache))
    except GatedRepoError as error:
        raise ModelUnavailable(f"{name} is gated: accept its licence on the hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ModelUnavailable(f"{name} is not on the hub, or is private: set HF_TOKEN") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelUnavailable(
            f"{name} is in no cache ({looked}) and the hub cannot be reached", retryable=True
        ) from error
