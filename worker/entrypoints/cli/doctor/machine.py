"""Whether the machine can run the worker: Python, packages, ffmpeg, the device, the disk and the bucket."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

from worker.entrypoints.cli.doctor.finding import BASE_REQUIREMENTS, Finding, checkout_file, install
from worker.entrypoints.cli.doctor.weights import importable, needs
from worker.errors import AviaryError

if TYPE_CHECKING:
    from worker.config import Settings

PYTHONS = ((3, 10), (3, 12))  # the oldest and the newest that the worker supports
GIB = 1024**3


def python() -> Finding:
    """Return the version of Python, and whether the worker supports it."""
    version = ".".join(map(str, sys.version_info[:3]))
    supported = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    return Finding("Python", version, None if supported else "Use Python 3.10, 3.11 or 3.12")


def packages() -> Iterator[Finding]:
    """Yield the packages that every worker needs and that are missing or of another version.

    The list is requirements-base.txt beside the package, or the metadata of an installed package.
    """
    from packaging.requirements import Requirement

    file = checkout_file(BASE_REQUIREMENTS)
    lines = file.read_text("utf-8").splitlines() if file else metadata.requires("aviary-worker") or []
    listed = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    required = [package for package in listed if package.marker is None or package.marker.evaluate()]
    wrong = [
        f"{package.name} ({_version(package.name) or 'missing'}, not {package.specifier})"
        for package in required
        if not package.specifier.contains(_version(package.name) or "0", prereleases=True)
    ]
    if wrong:
        command = f"pip install -r {BASE_REQUIREMENTS}" if file else "pip install --upgrade aviary-worker"
        yield Finding("packages", ", ".join(wrong), f"Run {command}")
    else:
        yield Finding("packages", f"all {len(required)} of {BASE_REQUIREMENTS if file else 'aviary-worker'}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def ffmpeg(_settings: Settings) -> Iterator[Finding]:
    """Yield the version and the path of ffmpeg."""
    from worker.audio.ffmpeg import executable

    path = executable()
    command = [path, "-version"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout  # noqa: S603  ffmpeg
    yield Finding("ffmpeg", f"{' '.join(output.split()[:3])}, {path}")


def device(settings: Settings) -> Iterator[Finding]:
    """Yield the devices that DEVICE names, and whether torch can use them."""
    if importable("torch"):
        yield from _torch_devices(settings)
        yield from _torchaudio()
    elif "torch" in needs(settings):
        yield Finding("device", "torch is not installed", install(needs(settings)))
    else:
        yield Finding("device", "torch is not installed; this model does not need it")


def _torch_devices(settings: Settings) -> Iterator[Finding]:
    import torch

    from worker.backends.common.device import DRIVER, unusable_gpu

    if torch.cuda.is_available() and settings.devices[0] != "cpu":
        yield from _gpus(settings, torch)
    elif settings.device.startswith("cuda"):
        yield Finding(
            "device",
            f"DEVICE={settings.device}, but torch {torch.__version__} finds no CUDA device",
            f"Install the driver and {_cuda_torch()}, or set DEVICE=auto",
        )
    elif reason := unusable_gpu(settings):
        yield Finding("device", reason, f"Install {_cuda_torch()} ({DRIVER}), or set DEVICE=cpu")
    else:
        count = len(settings.devices)
        yield Finding("device", f"{f'{count} processes on the ' if count > 1 else ''}CPU, torch {torch.__version__}")


def _cuda_torch() -> str:
    """Return what to install for a GPU."""
    return "requirements.txt" if checkout_file(BASE_REQUIREMENTS) else "torch 2.11 and torchaudio 2.11, built for CUDA"


def _gpus(settings: Settings, torch: Any) -> Iterator[Finding]:
    """Yield each GPU that DEVICE names: all of them for `auto`, the first for `cuda`."""
    count = torch.cuda.device_count()
    named = [int(name.partition(":")[2] or 0) for name in settings.devices if name != "auto"]
    for number in named or range(count):
        if number < count:
            card = torch.cuda.get_device_properties(number)
            memory = f"{card.total_memory / GIB:.0f} GiB"
            yield Finding("device", f"cuda:{number}: {card.name}, {memory}, torch {torch.__version__}")
        else:
            yield Finding(
                "device",
                f"DEVICE={settings.device}, but torch {torch.__version__} finds {count} CUDA devices",
                "Name a device that exists, or set DEVICE=auto",
            )


def _torchaudio() -> Iterator[Finding]:
    """Yield a problem if torchaudio is installed but does not load, because then NeMo does not load either."""
    if importable("torchaudio"):
        try:
            importlib.import_module("torchaudio")
        except (ImportError, OSError) as error:
            yield Finding(
                "device",
                f"torchaudio does not load with this torch, so NeMo does not load either ({error})",
                f"Run pip uninstall torchaudio, or install {_cuda_torch()}",
            )


def disk(settings: Settings) -> Iterator[Finding]:
    """Yield the free space in DATA_DIR, in GiB. The folder is created if it does not exist."""
    folder = settings.make_data_dir()
    tempfile.TemporaryFile(dir=folder).close()
    free = shutil.disk_usage(folder).free
    needed = settings.max_audio_bytes
    advice = f"MAX_AUDIO_BYTES allows downloads of {needed / GIB:.1f} GiB. Free some space, or set another DATA_DIR"
    yield Finding("disk", f"{free / GIB:.1f} GiB free in DATA_DIR, {folder}", None if free >= needed else advice)


def bucket(settings: Settings) -> Iterator[Finding]:
    """Yield whether a bucket is configured and can be used."""
    required = ("bucket_name", "bucket_access_key_id", "bucket_secret_access_key")
    missing = [name.upper() for name in required if not getattr(settings, name)]
    if len(missing) == len(required) and not settings.bucket_endpoint_url:
        yield Finding(
            "S3", "not configured: on Runpod, results above MAX_RESULT_BYTES fail, and the encoding s3 is refused"
        )
    elif missing:
        yield Finding("S3", f"{' and '.join(missing)} not set, but others are", "Set all of BUCKET_*, or none")
    else:
        yield _usable(settings)


def _usable(settings: Settings) -> Finding:
    from worker.net.s3 import Bucket

    endpoint = f" at {settings.bucket_endpoint_url}" if settings.bucket_endpoint_url else ""
    name = f"bucket {settings.bucket_name}{endpoint}"
    try:
        Bucket(settings).check()
    except AviaryError as error:
        advice = "Check BUCKET_*, whether the bucket exists (404), and the permissions of its key (403)"
        return Finding("S3", f"{name}: {error.message}", advice)
    return Finding("S3", f"{name} responds")
