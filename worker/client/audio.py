"""What a caller calls audio → an upload, or a source that the other side fetches.

A path is opened for each attempt and read in pieces; nothing holds the whole file.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from worker.errors import EmptyAudio, InputError, SourceNotFound

# A path of this machine, a URL or data: URI, a file's bytes, or samples: (samples,) or (samples, channels).
Audio = str | os.PathLike[str] | bytes | np.ndarray

_REMOTE = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+://|data:)")
_MOST_CHANNELS = 64


@dataclass(frozen=True)
class Upload:
    """A file to send. `open` gives it anew, at its start."""

    name: str
    size: int
    open: Callable[[], BinaryIO]


def take(audio: Audio, sample_rate: int | None = None) -> Upload | str:
    """The upload; or the URL as it is (file:// is a path of the server's). Raises InputError, SourceNotFound,
    EmptyAudio."""
    if isinstance(audio, np.ndarray):
        if sample_rate is None:
            raise InputError("an array needs its sample_rate", param="sample_rate")
        return _of_bytes(wav(audio, sample_rate), "audio.wav")
    if sample_rate is not None:
        raise InputError("sample_rate is for arrays: a file says its own", param="sample_rate")
    if isinstance(audio, bytes):
        return _of_bytes(audio, "audio")
    text = os.fspath(audio)
    return text if _REMOTE.match(text) else _of_path(Path(text))


def wav(samples: np.ndarray, sample_rate: int) -> bytes:
    """Samples as a WAV file that holds them exactly: int16 and int32 as they are, anything else as float32."""
    import soundfile

    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] > _MOST_CHANNELS):
        raise InputError(
            f"an array has the shape (samples,) or (samples, channels), not {samples.shape}", param="audio"
        )
    if not samples.size:
        raise EmptyAudio("the array holds no samples")
    subtype = {"int16": "PCM_16", "int32": "PCM_32"}.get(samples.dtype.name, "FLOAT")
    if subtype == "FLOAT":
        if samples.dtype.kind != "f":
            raise InputError(f"samples are float, int16 or int32, not {samples.dtype}", param="audio")
        samples = samples.astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format="WAV", subtype=subtype)
    return file.getvalue()


def _of_bytes(data: bytes, name: str) -> Upload:
    if not data:
        raise EmptyAudio("holds no bytes")
    return Upload(name, len(data), lambda: io.BytesIO(data))


def _of_path(path: Path) -> Upload:
    def opened() -> BinaryIO:
        try:
            return path.open("rb")
        except OSError as error:
            raise _unreadable(path, error) from error

    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"not a regular file: {path}", param="audio")
    if not status.st_size:
        raise EmptyAudio(f"holds no bytes: {path}")
    return Upload(path.name.encode("utf-8", "replace").decode(), status.st_size, opened)


def _unreadable(path: Path, error: OSError | ValueError) -> InputError:
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
        return SourceNotFound(f"no such file: {path}", param="audio")
    return InputError(f"cannot read {path}: {error.strerror}", param="audio")
