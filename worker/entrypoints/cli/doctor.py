"""Whether this machine is set up: what is looked at, how it is, and for each problem what to do about it.

    run(given)            the command: a line a finding; exit code 1 where there is a problem
    findings(...)         the same, one by one

Nothing is loaded, changed or sent but one question to the hub, where the model's weights are not on this machine. It
works without torch, and where packages are missing.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.errors import AviaryError, RequestError

if TYPE_CHECKING:
    from worker.catalog import Model
    from worker.config import Settings

PYTHONS = ((3, 10), (3, 12))
GIB = 1024**3
# What runs a model beside the base: the module, and what it is installed as.
_LIBRARIES = {"nemo": ("torch", "nemo"), "canary": ("torch", "nemo"), "pocketsphinx": ()}
_TRANSFORMERS = ("torch", "transformers")
_FULL = "install requirements.txt (a CUDA GPU) or requirements-cpu.txt"


@dataclass(frozen=True, slots=True)
class Finding:
    """`advice`: what to do, where it is not ok."""

    about: str
    says: str
    advice: str | None = None

    @property
    def ok(self) -> bool:
        return self.advice is None


def run(given: argparse.Namespace) -> int:
    """Prints what is found; returns 0, or 1 where something needs doing."""
    problems = 0
    for found in findings(given.model, given.model_dir, given.device):
        print(f"{'ok' if found.ok else 'problem':8} {found.about:9} {found.says}", flush=True)
        if found.advice:
            problems += 1
            print(f"{'':18} -> {found.advice}", flush=True)
    print(f"\n{problems} problem{'s' if problems != 1 else ''}" if problems else "\nall is well")
    return 1 if problems else 0


def findings(model: str | None = None, model_dir: Path | None = None, device: str | None = None) -> Iterator[Finding]:
    """Each thing that was looked at. What needs settings is left out where they cannot be read."""
    yield _python()
    yield from _safely("packages", _packages)
    try:
        from worker.config import Settings

        settings = Settings.of(model=model, model_dir=model_dir, device=device)
    except Exception as error:  # noqa: BLE001  a missing package, or a value that is not allowed: told either way
        yield Finding(
            "settings",
            str(error),
            "correct it, see the README's table" if isinstance(error, ValueError) else "install what is missing",
        )
        return
    yield Finding("settings", "all values are allowed")
    for about, check in (("ffmpeg", _ffmpeg), ("device", _device), ("disk", _disk), ("model", _model), ("S3", _s3)):
        yield from _safely(about, functools.partial(check, settings))


def _safely(about: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except RequestError as error:
        yield Finding(about, error.message, "correct the setting, see the README's tables")
    except Exception as error:  # noqa: BLE001  a check that fails is a finding too
        yield Finding(about, f"{type(error).__name__}: {error}", "install or repair what it names")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Finding("Python", version)
    return Finding("Python", version, "use Python 3.10, 3.11 or 3.12")


def _packages() -> Iterator[Finding]:
    """Those of requirements-base.txt, which lies beside the package or is in its metadata."""
    from packaging.requirements import Requirement

    listed = Path(__file__).parent.parent.parent.parent / "requirements-base.txt"
    lines = (
        listed.read_text(encoding="utf-8").splitlines()
        if listed.is_file()
        else metadata.requires("aviary-worker") or []
    )
    needed = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    here = [one for one in needed if one.marker is None or one.marker.evaluate()]
    wrong = [
        f"{one.name} ({_version(one.name) or 'missing'}, not {one.specifier})"
        for one in here
        if not one.specifier.contains(_version(one.name) or "0", prereleases=True)
    ]
    if wrong:
        yield Finding("packages", ", ".join(wrong), "pip install -r requirements-base.txt")
    else:
        yield Finding("packages", f"all {len(here)} of requirements-base.txt")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _ffmpeg(_settings: Settings) -> Iterator[Finding]:
    from worker.audio import ffmpeg

    path = ffmpeg.executable()
    said = subprocess.run([path, "-version"], check=True, capture_output=True, text=True, timeout=30).stdout  # noqa: S603
    yield Finding("ffmpeg", f"{' '.join(said.split()[:3])}, {path}")


def _device(settings: Settings) -> Iterator[Finding]:
    has_gpu = shutil.which("nvidia-smi") is not None
    if not _importable("torch"):
        needed = bool(_libraries(settings))
        yield Finding(
            "device",
            "torch is not installed" + ("" if needed else ", and not needed for this model"),
            _FULL if needed else None,
        )
        return
    import torch

    if torch.cuda.is_available() and settings.devices[0] != "cpu":
        yield from _gpus(settings, torch)
    elif settings.device.startswith("cuda"):
        yield Finding(
            "device",
            f"DEVICE={settings.device}, but torch {torch.__version__} sees no CUDA device",
            "install the driver and requirements.txt, or set DEVICE=auto",
        )
    elif has_gpu and settings.device == "auto":
        yield Finding(
            "device",
            f"there is an NVIDIA driver, but torch {torch.__version__} sees no CUDA device",
            "install requirements.txt; its torch needs a driver of the 580 series or later",
        )
    else:
        many = f"{len(settings.devices)} processes on the " if len(settings.devices) > 1 else ""
        yield Finding("device", f"{many}CPU, torch {torch.__version__}")
    if _importable("torchaudio"):
        try:
            importlib.import_module("torchaudio")
        except (ImportError, OSError) as error:
            yield Finding(
                "device",
                f"torchaudio does not load beside this torch ({error}), nor then does NeMo",
                "pip uninstall torchaudio, or install both as requirements.txt has them",
            )


def _gpus(settings: Settings, torch: Any) -> Iterator[Finding]:
    """Those that DEVICE means."""
    count = torch.cuda.device_count()
    for number in (
        range(count) if settings.device == "auto" else [int(name.partition(":")[2] or 0) for name in settings.devices]
    ):
        if number < count:
            card = torch.cuda.get_device_properties(number)
            yield Finding(
                "device", f"cuda:{number}: {card.name}, {card.total_memory / GIB:.0f} GiB, torch {torch.__version__}"
            )
        else:
            yield Finding(
                "device",
                f"DEVICE={settings.device}, but torch {torch.__version__} sees {count} CUDA devices",
                "name one that is there, or set DEVICE=auto",
            )


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    free = shutil.disk_usage(folder).free
    says = f"{free / GIB:.1f} GiB free in DATA_DIR, {folder}"
    enough = free >= settings.max_audio_bytes
    yield Finding(
        "disk",
        says,
        None
        if enough
        else f"a download may have {settings.max_audio_bytes / GIB:.1f} GiB "
        "(MAX_AUDIO_BYTES): make room, or name another DATA_DIR",
    )


def _model(settings: Settings) -> Iterator[Finding]:
    from worker import catalog

    row = catalog.find(settings.default_model)
    if settings.skip_model_load:
        yield Finding("model", f"{row.id}, but SKIP_MODEL_LOAD=1: a dry run, which loads none")
        return
    if missing := [name for name in _libraries(settings) if not _importable(name)]:
        yield Finding("model", f"{row.id} needs {' and '.join(missing)}", _FULL)
    if row.backend == "pocketsphinx":
        yield Finding("model", f"{row.id}, which is in its package")
        return
    yield _weights(row, settings)


def _weights(row: Model, settings: Settings) -> Finding:
    from worker.backends.common import checkpoints
    from worker.errors import ModelUnavailable

    name = row.id.removesuffix(":audio_tower")
    on_disk = settings.model_copy(update={"hf_hub_offline": True})
    try:
        found = (
            checkpoints.nemo_file(name, on_disk)
            if row.backend in ("nemo", "canary")
            else checkpoints.checkpoint(name, on_disk, part=row.part or "")
        )
    except ModelUnavailable as error:
        if settings.hf_hub_offline or Path(name).is_dir() or name.endswith(".nemo"):
            return Finding("model", error.message, "put the weights there, or let the hub be asked (HF_HUB_OFFLINE=0)")
        return _hub(name)
    return Finding("model", f"{row.id}, weights in {found}")


def _hub(name: str) -> Finding:
    """Whether the hub would give the weights."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        huggingface_hub.auth_check(name)
    except GatedRepoError:
        return Finding(
            "model",
            f"{name} is gated, and not on this machine",
            f"accept its licence on https://huggingface.co/{name} and set HF_TOKEN",
        )
    except RepositoryNotFoundError:
        return Finding("model", f"{name} is not on the hub, or is private", "check the name, or set HF_TOKEN")
    except Exception as error:  # noqa: BLE001  httpx's, requests', the system's: all mean the same here
        return Finding(
            "model",
            f"{name} is not on this machine, and the hub cannot be reached ({type(error).__name__})",
            "put the weights into MODEL_DIR or the Hugging Face cache, or let this machine reach the hub",
        )
    return Finding("model", f"{name} is not on this machine; the hub gives it at the first start")


def _s3(settings: Settings) -> Iterator[Finding]:
    needed = ("bucket_name", "bucket_access_key_id", "bucket_secret_access_key")
    missing = [name.upper() for name in needed if not getattr(settings, name)]
    if len(missing) == len(needed) and not settings.bucket_endpoint_url:
        yield Finding("S3", "not set up: results above MAX_RESULT_BYTES fail on Runpod, and encoding s3 is refused")
    elif missing:
        yield Finding("S3", f"{' and '.join(missing)} not set, though others are", "set all of BUCKET_*, or none")
    else:
        where = f" at {settings.bucket_endpoint_url}" if settings.bucket_endpoint_url else ""
        from worker.net.s3 import Bucket

        try:
            Bucket(settings).check()
        except AviaryError as error:
            yield Finding(
                "S3",
                f"bucket {settings.bucket_name}{where}: {error.message}",
                "check BUCKET_*, that the bucket is there (404), and what its key may do (403)",
            )
        else:
            yield Finding("S3", f"bucket {settings.bucket_name}{where} answers")


def _libraries(settings: Settings) -> tuple[str, ...]:
    """The modules that the default model needs beside the base."""
    from worker import catalog

    return (
        () if settings.skip_model_load else _LIBRARIES.get(catalog.find(settings.default_model).backend, _TRANSFORMERS)
    )


def _importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
