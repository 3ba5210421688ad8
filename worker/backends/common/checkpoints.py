"""The location of a model's weights.

Everything on disk is searched before anything is downloaded, so a worker whose model is cached starts even if the hub
is unreachable. The order of the search:

    the path itself → MODEL_DIR → the caches → the Hugging Face hub, unless HF_HUB_OFFLINE is set

The caches are HF_HUB_CACHE, TRANSFORMERS_CACHE, HF_HOME, Runpod's cached models, the network volume, and the user's own
cache. A download goes to the first of these settings that is set, else to the network volume if it is writable.
Weights are a .nemo file or safetensors; pickles are never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from worker import config
from worker.backends.common import disk
from worker.catalog import MODELS, Model, facts, find, is_repository
from worker.catalog.places import nemo_in
from worker.config import Settings
from worker.errors import ModelUnavailable

SINGLE = "model.safetensors"
SMALL = ["*.json", "*.txt", "*.model", "*.jinja", facts.CARD]
NEMO = ["*.nemo", "config.json", facts.CARD]


def nemo_file(name: str, settings: Settings) -> Path:
    """Return the .nemo file of a model that is named by its path or as `owner/name`.

    Raises ModelUnavailable if it is neither on disk nor on the hub.
    """
    places = settings.places
    if name.endswith(".nemo"):
        if path := places.file(name):
            return path
        raise ModelUnavailable(f"no such file: {name}")
    for folder in (Path(name).expanduser(), *places.folders(name)):
        if path := nemo_in(folder, name):
            return path
    if path := nemo_in(download(name, settings, NEMO), name):
        return path
    raise ModelUnavailable(f"{name} holds no .nemo file")


def recognize(row: Model, settings: Settings) -> Model:
    """Return the row that the configuration of a checkpoint gives, in place of a row by the name of a repository.

    If the configuration is not on this machine, it is downloaded, as is a .nemo file, which holds its own.
    Raises ModelNotFound if the checkpoint is of no supported family, and ModelUnavailable if it cannot be downloaded.
    """
    name = row.checkpoint
    if any(name == listed.checkpoint for listed in MODELS) or not is_repository(name) or Path(name).is_dir():
        return row
    if not any(_is_configured(folder, row) for folder in settings.places.folders(name)):
        download(name, settings, NEMO if row.weights == "nemo" else SMALL)
    return find(row.id, settings.places)


def _is_configured(folder: Path, row: Model) -> bool:
    return nemo_in(folder, row.checkpoint) is not None if row.weights == "nemo" else (folder / "config.json").is_file()


def verify(path: Path, sha256: str) -> None:
    """Read the whole file. Raises ModelUnavailable if its SHA-256, in hexadecimal, differs."""
    if (found := sha256_of(path)) != sha256:
        raise ModelUnavailable(
            f"{path} has the SHA-256 {found}, and the catalog pins {sha256}. Download the file again. To "
            "load a version of your own, name it by its path."
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def checkpoint(name: str, settings: Settings, *, part: str | None = "") -> Path:
    """Return the folder of a checkpoint in Hugging Face's format that is named by its path or as `owner/name`.

    Only the weight files with tensors whose names contain `part` must be in the folder; if `part` is None, no weights
    must. Raises ModelUnavailable if no complete checkpoint is on disk or on the hub.
    """
    path = Path(name).expanduser()
    for folder in (path, *settings.places.folders(name)):
        if not missing(folder, part):
            return folder
    if path.is_dir():
        raise ModelUnavailable(f"{name} is not a complete checkpoint: it lacks {', '.join(missing(path, part))}")
    if not is_repository(name):
        raise ModelUnavailable(f"no such checkpoint: {name}")
    folder = download(name, settings, SMALL)
    folder = download(name, settings, [*SMALL, *missing(folder, part)])
    if lacking := missing(folder, part):
        raise ModelUnavailable(
            f"{name} lacks {', '.join(lacking)}. A checkpoint requires a config.json and weights as safetensors; "
            "save_pretrained of transformers converts other weights."
        )
    return folder


def checkpoint_bytes(folder: Path, part: str = "") -> int:
    """Return the bytes of a checkpoint's weight files, of several only those with tensors of the part."""
    return sum((folder / file).stat().st_size for file in weight_files(folder, part))


def on_disk(row: Model, settings: Settings) -> Path:
    """Return the .nemo file or the folder of a model on this machine. Nothing is downloaded.

    Raises ModelUnavailable if the weights, or those of a model that this one requires, are not there.
    """
    offline = settings.model_copy(update={"hf_hub_offline": True})
    if row.processor:
        checkpoint(row.processor, offline, part=None)
    if row.transcriber:
        on_disk(find(row.transcriber, offline.places), offline)
    if row.weights == "nemo":
        return nemo_file(row.checkpoint, offline)
    return checkpoint(row.checkpoint, offline, part=row.part or "")


def disk_bytes(row: Model, settings: Settings) -> int | None:
    """Return the bytes of the files that hold a model's weights on this machine, or None if one is missing."""
    try:
        place = on_disk(row, settings)
    except ModelUnavailable:
        return None
    return place.stat().st_size if place.is_file() else checkpoint_bytes(place, row.part or "")


def weight_files(folder: Path, part: str = "") -> list[str]:
    """Return the names of the files that transformers reads weights from, whether or not they exist.

    Of several files, return only those with tensors whose names contain `part`.
    """
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


def missing(folder: Path, part: str | None) -> list[str]:
    """Return the files that the folder lacks: config.json and the weight files of the part."""
    files = ["config.json", *([] if part is None else weight_files(folder, part))]
    return [file for file in files if not (folder / file).is_file()]


def _download_cache(settings: Settings) -> Path:
    """Return the hub cache that a download goes to."""
    volume = config.VOLUME / "huggingface-cache" / "hub"
    on_volume = [volume] if config.VOLUME.is_dir() and disk.is_writable(volume) else []
    return [*settings.set_caches, *on_volume, Path.home() / ".cache" / "huggingface" / "hub"][0]


def download(name: str, settings: Settings, patterns: list[str]) -> Path:
    """Download the files that match `patterns`, and return the snapshot's folder.

    Raises ModelUnavailable, with advice, if the hub does not serve the model.
    """
    import huggingface_hub

    with hub_errors(name, settings, lambda: _hub_bytes(name, patterns)) as cache:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, cache_dir=cache))


@contextlib.contextmanager
def hub_errors(name: str, settings: Settings, needed: Callable[[], int | None]) -> Iterator[Path]:
    """Yield the cache that a download in the block goes to.

    Raises ModelUnavailable, with advice, in place of an exception of the block which means that the hub does not serve
    the model, or that the disk cannot take the bytes that `needed` returns.
    """
    searched = ", ".join(map(str, settings.places.caches)) or "there is none"
    if settings.hf_hub_offline:
        raise ModelUnavailable(f"{name} is in no cache ({searched}), and HF_HUB_OFFLINE forbids downloading it")
    import huggingface_hub
    from huggingface_hub import errors

    cache = _download_cache(settings)
    try:
        with disk.writing(name, cache, needed, setting="HF_HOME"):
            yield cache
    except errors.GatedRepoError as error:
        raise ModelUnavailable(f"{name} is gated. Accept its license on the hub, then set HF_TOKEN.") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelUnavailable(
            f"{name} does not exist on the hub, or is private. Check the name, or set HF_TOKEN."
        ) from error
    except (errors.HTTPError, OSError) as error:  # of httpx, whose name depends on the version of huggingface_hub
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelUnavailable(
            f"{name} is in no cache ({searched}), and the hub {huggingface_hub.constants.ENDPOINT} is unreachable "
            f"({reason}). Send the request again later.",
            retryable=True,
        ) from error


def _hub_bytes(name: str, patterns: list[str]) -> int | None:
    """Return the bytes of a model's files on the hub that match `patterns`, or None if the hub does not say."""
    import huggingface_hub

    try:
        files = huggingface_hub.HfApi().model_info(name, files_metadata=True, timeout=10).siblings or []
    except Exception:  # noqa: BLE001  the number is for a message about another error
        return None
    chosen = set(huggingface_hub.utils.filter_repo_objects([file.rfilename for file in files], allow_patterns=patterns))
    return sum(file.size or 0 for file in files if file.rfilename in chosen) or None
