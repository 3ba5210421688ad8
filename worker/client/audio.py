"""What a caller passes as audio → an upload, or a source that the server fetches.

A path is opened for each attempt and read in parts; the whole file is never in memory.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from worker.audio.arrays import frames, is_several, write_wav
from worker.errors import EmptyAudio, InputError, SourceNotFound

# A path of this machine, a URL or data: URI, the bytes of a file, or an array as worker.audio.arrays describes it.
Audio = str | os.PathLike[str] | bytes | np.ndarray

_REMOTE = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+://|data:)")


@dataclass(frozen=True)
class Upload:
    """A file to send."""

    name: str
    """The name of the file, without its folder."""
    size: int
    """Bytes of the file."""
    open: Callable[[], BinaryIO]
    """Opens the file, at its start, for each attempt to send it."""


def take(audio: Audio, sample_rate: int | None = None) -> Upload | str:
    """Return the upload, or a URL unchanged (a file:// URL is a path of the server).

    sample_rate: of an array, in Hz. Raises InputError, SourceNotFound, EmptyAudio.
    """
    if is_several(audio):
        raise InputError(
            "this method takes one input; for several, use batch_transcribe or batch_analyze", param="audio"
        )
    if hasattr(audio, "__array__"):
        if sample_rate is None:
            raise InputError("an array needs its sample_rate", param="sample_rate")
        return _of_bytes(wav(audio, sample_rate), "audio.wav")
    if sample_rate is not None:
        raise InputError("sample_rate is for arrays; a file holds its own", param="sample_rate")
    if isinstance(audio, bytes):
        return _of_bytes(audio, "audio")
    text = os.fspath(audio)
    return text if _REMOTE.match(text) else _of_path(Path(text))


def wav(samples: Any, sample_rate: int) -> bytes:
    """Return a WAV file that holds the samples exactly; floats of other sizes become float32.

    Raises InputError for an array that is not audio, EmptyAudio for one without samples.
    """
    file = io.BytesIO()
    write_wav(file, frames(samples), sample_rate)
    return file.getvalue()


def _of_bytes(data: bytes, name: str) -> Upload:
    if not data:
        raise EmptyAudio("the file holds no bytes")
    return Upload(name, len(data), lambda: io.BytesIO(data))


def _of_path(path: Path) -> Upload:
    def open_file() -> BinaryIO:
        try:
            return path.open("rb")
        except OSError as error:
            raise _unreadable(path, error) from error

    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"not a regular file: {path}", param="audio")
    if not status.st_size:
        raise EmptyAudio(f"the file holds no bytes: {path}")
    return Upload(path.name.encode("utf-8", "replace").decode(), status.st_size, open_file)


def _unreadable(path: Path, error: OSError | ValueError) -> InputError:
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
        return SourceNotFound(f"no such file: {path}", param="audio")
    return InputError(f"cannot read {path}: {error.strerror}", param="audio")
