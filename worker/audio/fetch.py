"""Source → an open file: the bytes of a URL, an S3 object, a path, a data: URI, an open file or audio in memory.

Downloads, data: URIs and audio in memory go through temporary files that never have a name, so that even a killed
worker leaves nothing on disk. The limits on size and time are those of the settings.

A data: URI is decoded piece by piece, because decoding all of it at once takes many times its size and blocks every
other thread.

Raises SourceForbidden, SourceNotFound, FetchFailed, TooLarge, DecodeFailed (a malformed data: URI), EmptyAudio,
InputError (an array that is not audio), DiskFull, Cancelled. Messages never hold the query of a URL, which may hold a
signature, nor the address that a name resolves to.
"""

from __future__ import annotations

import base64
import binascii
import functools
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from worker.audio.download import Downloader, raise_too_large
from worker.config import Settings
from worker.errors import Cancelled, DecodeFailed, EmptyAudio, FetchFailed, SourceForbidden, SourceNotFound
from worker.faults import disk_errors
from worker.types import Source

_FILES = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else None  # the open files by number, on Linux
_EMPTY = "the file holds no bytes"
_PIECE_CHARS = 1 << 16  # of a data: URI, decoded at a time
_URL_SAFE = bytes.maketrans(b"-_", b"+/")  # the two letters in which URL-safe base64 differs


class Fetcher:
    """Opens sources. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._downloader = settings, Downloader(settings)

    def open(self, source: Source, *, cancelled: Callable[[], bool] = lambda: False) -> BinaryIO:
        """Return an open, seekable file at position 0 that holds the source's bytes. The caller closes it.

        `cancelled` is called while a download runs; once it returns True, Cancelled is raised.
        """
        if source.kind == "path":
            return self._path(source)
        if source.kind == "file":
            return self._reopen(source)
        with disk_errors():
            file = self._temporary()
            try:
                self._write(source, file, cancelled)
                _rewind(file)
            except BaseException:
                file.close()
                raise
        return file

    def _write(self, source: Source, file: BinaryIO, cancelled: Callable[[], bool]) -> None:
        """Write the bytes of a source that is not a file yet into the file."""
        if source.kind == "data":
            self._data(source, file)
        elif source.kind == "memory":
            assert source.write is not None
            source.write(file)
        else:
            self._downloader.download(source, file, cancelled)

    def _temporary(self) -> BinaryIO:
        self._settings.make_data_dir()
        return cast(BinaryIO, tempfile.TemporaryFile(dir=self._settings.data_dir))

    def _reopen(self, source: Source) -> BinaryIO:
        """Open the file of an entry point a second time.

        The entry point may close its own, and several inputs may read the file at the same time.
        """
        assert source.file is not None
        file: io.BytesIO | io.FileIO
        try:
            if isinstance(source.file, io.BytesIO):
                file = io.BytesIO(source.file.getvalue())  # shares the bytes
            else:
                file = io.FileIO(_reopen_descriptor(source.file.fileno()))
        except (OSError, ValueError) as error:
            raise Cancelled("the upload was closed before it was read") from error
        try:
            _rewind(file)
        except BaseException:
            file.close()
            raise
        return cast(BinaryIO, file)

    # Paths

    def _path(self, source: Source) -> BinaryIO:
        text = source.location
        if text[:5].lower() == "file:":
            text = unquote(urlsplit(text).path)
        name = text.encode("utf-8", "replace").decode()  # for messages: a path may hold bytes that are not UTF-8
        if "\0" in text:
            raise SourceNotFound("no such file")
        if not source.trusted:
            check_allowed(Path(text), self._settings)
        try:
            descriptor = os.open(text, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SourceNotFound(f"no such file: {name}") from error
        except OSError as error:
            raise FetchFailed(f"cannot read {name}: {error.strerror}", retryable=False) from error
        try:
            if _FILES is not None and not source.trusted:  # the path may lead elsewhere by now
                _check_real(Path(os.readlink(f"{_FILES}/{descriptor}")), Path(text), self._settings)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SourceForbidden(f"not a regular file: {name}")
            if status.st_size > self._settings.max_audio_bytes:
                raise_too_large(self._settings)
            if status.st_size == 0:
                raise EmptyAudio(_EMPTY)
        except BaseException:
            os.close(descriptor)
            raise
        return cast(BinaryIO, io.FileIO(descriptor))

    # data: URIs

    def _data(self, source: Source, file: BinaryIO) -> None:
        comma = source.location.find(",")
        if comma < 0:
            raise DecodeFailed("a data: URI has a comma before its data")
        blocks = _unquoted(source.location, comma + 1)
        if source.location[:comma].lower().endswith(";base64"):
            blocks = _from_base64(blocks)
        size = 0
        try:
            for block in blocks:
                size += len(block)
                if size > self._settings.max_audio_bytes:
                    raise_too_large(self._settings)
                file.write(block)
        except ValueError as error:  # UnicodeEncodeError and binascii.Error are subclasses
            raise DecodeFailed("the data is not base64, or not a valid URI") from error


def _unquoted(text: str, start: int) -> Iterator[bytes]:
    """Yield the bytes of the percent-encoded text from `start`, a piece at a time."""
    while start < len(text):
        end = start + _PIECE_CHARS
        piece = text[start:end]
        split = piece.rfind("%", -2)  # an escape that may continue in the next piece
        if split > 0 and end < len(text):
            piece = piece[:split]
        yield unquote_to_bytes(piece)
        start += len(piece)


def _from_base64(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of base64, URL-safe or not, with or without padding and white space.

    Raises binascii.Error for anything else.
    """
    rest, padded = b"", False  # the letters that are not decoded yet; whether the padding has begun
    for block in blocks:
        text = b"".join(block.split()).translate(_URL_SAFE)
        letters = text.rstrip(b"=")
        if b"=" in letters or (padded and letters):
            raise binascii.Error("data follows the padding")
        padded = padded or len(letters) < len(text)
        rest += letters
        end = len(rest) - len(rest) % 4
        yield base64.b64decode(rest[:end], validate=True)
        rest = rest[end:]
    yield base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True)


def _rewind(file: BinaryIO) -> None:
    """Move to the start of the file. Raises EmptyAudio if it holds no bytes."""
    if not file.seek(0, os.SEEK_END):
        raise EmptyAudio(_EMPTY)
    file.seek(0)


def _reopen_descriptor(descriptor: int) -> int:
    """Return another descriptor of an open file; on Linux, one with a position of its own."""
    if _FILES is None:
        return os.dup(descriptor)
    return os.open(f"{_FILES}/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def check_allowed(path: Path, settings: Settings) -> None:
    """Raise SourceForbidden for a path outside ALLOWED_PATHS, after following its links."""
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):
        real = os.sep  # the text is not a path
    _check_real(Path(real), path, settings)


def _check_real(real: Path, path: Path, settings: Settings) -> None:
    """Raise SourceForbidden if `real`, to which `path` leads, is outside ALLOWED_PATHS."""
    for _ in range(2):
        if any(real.is_relative_to(_resolve(folder)) for folder in settings.allowed_paths):
            return
        _resolve.cache_clear()  # an allowed folder may be a link, which may lead elsewhere by now
    raise SourceForbidden(f"{path} is outside the folders that this worker may read (ALLOWED_PATHS)")


@functools.lru_cache(maxsize=256)
def _resolve(folder: Path) -> Path:
    """Return the folder without links. Cached: to follow the links of a folder takes longer than to open a file."""
    return folder.resolve()
