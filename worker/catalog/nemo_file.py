"""A .nemo file, read within bounds: nothing in it runs, and nothing leaves it that was not checked.

    path ──▶ Archive ──▶ Member, Member, …      names, sizes and offsets, from the headers alone
                ├── read(member)  ──▶ bytes     a small member, such as the configuration
                ├── copy(member, file)          a member of any size
                └── open(member)  ──▶ a file    the same, read in place; for an uncompressed archive

A .nemo file is a tar archive of a model_config.yaml, a model_weights.ckpt and the tokenizer's files; NeMo before 1.7
compressed it with gzip. The author of the file may be hostile, so an archive is refused, before any content is used,
if it has one of these:

    a link, a device, a sparse file; an absolute name, a name with `..`; two members with one name
    more than MAX_MEMBERS members; headers of more than MAX_HEADER_BYTES
    content that expands to more than EXPANSION times the compressed file

Iterating over an uncompressed archive reads the headers and seeks over the content.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from worker.errors import ModelUnavailable

CONFIG = "model_config.yaml"
MAX_CONFIG_BYTES = 8 << 20  # the largest published configurations have less than 1 MiB
MAX_MEMBERS = 1000
MAX_HEADER_BYTES = 8 << 20
EXPANSION = 16  # trained weights hardly compress: published archives shrink to no less than half
SLACK_BYTES = 16 << 20  # archives of any ratio may expand to this
_CHUNK = 1 << 20
_BROKEN = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError, RecursionError)


class Member(NamedTuple):
    """A regular file at the top of the archive."""

    name: str
    """The file name, without a folder."""

    size: int
    """The content's bytes."""

    offset: int
    """The content's position in the uncompressed archive."""


class Archive:
    """An open .nemo file. Iterate over it for its members; read or copy a member while iterating or afterward.

    Each method raises ModelUnavailable, with the reason, if the archive is damaged or exceeds a bound.
    """

    def __init__(self, path: Path) -> None:
        """Open the file. Close the archive with `with`."""
        self._path = path
        with self._readable():
            self._file: IO[bytes] = path.open("rb")
            self.compressed = self._file.read(2) == b"\x1f\x8b"
            self._file.seek(0)
        size = os.fstat(self._file.fileno()).st_size
        self._end = size * EXPANSION + SLACK_BYTES if self.compressed else size
        self._stream: IO[bytes] = gzip.GzipFile(fileobj=self._file) if self.compressed else self._file  # type: ignore[assignment]

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Member]:
        """Yield the files at the top of the archive. Folders, and files in folders, are left out: NeMo reads none."""
        names: set[str] = set()
        headers = cast(IO[bytes], _Headers(self._stream, self._end))  # tarfile calls no other methods
        with self._readable(), tarfile.open(fileobj=headers, mode="r:") as archive:
            for count, header in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise self._refusal(f"has more than {MAX_MEMBERS} members")
                if (member := self._member(header)) is None:
                    continue
                if member.name in names:
                    raise self._refusal(f"has two members named {_short(member.name)}")
                names.add(member.name)
                yield member

    def read(self, member: Member, limit: int = MAX_CONFIG_BYTES) -> bytes:
        """Return the content of a member of at most `limit` bytes."""
        if member.size > limit:
            raise self._refusal(f"has a {_short(member.name)} of {member.size} bytes; the limit is {limit}")
        return b"".join(self._content(member))

    def copy(self, member: Member, file: Path) -> None:
        """Write the content of a member to a file that does not exist yet. Raises OSError if the disk is full."""
        with file.open("xb") as target:
            for chunk in self._content(member):
                target.write(chunk)

    def open(self, member: Member) -> IO[bytes]:
        """Return a file of the member's content, which is read from the archive in place.

        The archive must be uncompressed. The file has a position of its own, and is of no use once the archive closes.
        """
        return io.BufferedReader(_Content(self._file.fileno(), member))

    def _member(self, header: tarfile.TarInfo) -> Member | None:
        """Return the member that a header describes, or None for a folder and for a file in one."""
        parts = [part for part in header.name.split("/") if part not in ("", ".")]
        if header.name.startswith("/") or ".." in parts or "\0" in header.name or "\\" in header.name:
            raise self._refusal(f"has a member that would leave the folder: {_short(header.name)}")
        if header.isdir():
            return None
        if not header.isreg() or header.issparse():
            raise self._refusal(f"has a member that is not a regular file: {_short(header.name)}")
        if not 0 <= header.size <= self._end - header.offset_data:
            raise self._refusal(f"is cut short, or expands to more than {self._end} bytes")
        return Member(parts[0], header.size, header.offset_data) if len(parts) == 1 else None

    def _content(self, member: Member) -> Iterator[bytes]:
        left = member.size
        with self._readable():
            self._stream.seek(member.offset)
        while left:
            with self._readable():
                chunk = self._stream.read(min(left, _CHUNK))
            if not chunk:
                raise self._refusal(f"ends within {_short(member.name)}")
            left -= len(chunk)
            yield chunk

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except _BROKEN as error:
            raise ModelUnavailable(
                f"{self._path} cannot be read as a .nemo file ({error}). Copy or download it again."
            ) from error

    def _refusal(self, reason: str) -> ModelUnavailable:
        return ModelUnavailable(
            f"{self._path} {reason}. Aviary does not load such an archive. Save the model again with NeMo's save_to()."
        )


class _Headers:
    """The archive's stream for tarfile: it may read MAX_HEADER_BYTES in all, and seek within `end` bytes."""

    def __init__(self, stream: IO[bytes], end: int) -> None:
        self._stream, self._end, self._left = stream, end, MAX_HEADER_BYTES

    def read(self, count: int = -1) -> bytes:
        self._left -= count
        if count < 0 or self._left < 0:
            raise tarfile.ReadError(f"its headers have more than {MAX_HEADER_BYTES} bytes")
        return self._stream.read(count)

    def seek(self, position: int, whence: int = 0) -> int:
        if position > self._end:
            raise tarfile.ReadError(f"its content has more than {self._end} bytes")
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        """Leave the stream open: the archive closes it."""


class _Content(io.RawIOBase):
    """The bytes of a member in the open file `descriptor`."""

    def __init__(self, descriptor: int, member: Member) -> None:
        self._descriptor, self._member, self._position = descriptor, member, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._member.size}[whence]
        if base + position < 0:
            raise ValueError(f"no such position: {base + position}")
        self._position = base + position
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._member.size - self._position)]
        count = os.preadv(self._descriptor, [view], self._member.offset + self._position)
        self._position += count
        return count


def config_text(path: Path) -> str:
    """Return the model_config.yaml of a .nemo file, or an empty text if it holds none. Later members are not read."""
    with Archive(path) as archive:
        for member in archive:
            if member.name == CONFIG:
                return archive.read(member).decode("utf-8", "replace")
    return ""


def _short(name: str) -> str:
    """Return a name for a message: quoted, escaped and cut."""
    return repr(name if len(name) <= 80 else f"{name[:80]}…")
