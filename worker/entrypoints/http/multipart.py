"""A multipart form, parsed as it arrives: fields become texts, files become open files.

    request ── chunks ──▶ python_multipart ──▶ _Form ─┬─ fields ──▶ text
                                                      ├─ small uploads ──▶ memory (io.BytesIO)
                                                      └─ other uploads ──▶ disk, on a thread, AT_ONCE bytes at a time

The files of a form of up to IN_MEMORY bytes stay in memory, as long as all forms together leave room (TOGETHER bytes):
creating a file on disk takes longer than the rest of a small upload. The position of a returned file is undefined.
The caller reserves the memory for the fields, which together may have FIELDS_BYTES in one form.
"""

from __future__ import annotations

import asyncio
import io
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO, cast

from fastapi.requests import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from worker.errors import RequestError, TooLarge

IN_MEMORY = 8 * 1024**2
TOGETHER = 256 * 1024**2
AT_ONCE = 1024**2
MOST_FILES, MOST_FIELDS, FIELD_BYTES, FIELDS_BYTES = 16, 200, 1024**2, 4 * 1024**2

_PIECE_BYTES = 512  # the overhead of a piece that waits for the disk
_WRITERS = ThreadPoolExecutor(8, thread_name_prefix="uploads")  # asyncio's own threads may all be waiting


@dataclass
class Part:
    """A field with its text, or a file with the name that the client sent for it."""

    name: str
    is_file: bool
    text: str = ""
    file: BinaryIO | None = None
    filename: str = ""


async def read(http: Request, reserve: Callable[[int], None]) -> list[Part]:
    """Return the parts of the request's form in their order. The caller closes their files.

    `reserve` is called with the bytes of fields before they are kept, and what it raises ends the reading.

    Raises RequestError for an invalid or incomplete form, TooLarge for too many bytes of fields, OSError if there is no
    room on the disk, and ClientDisconnect.
    """
    try:
        return await _parse(http, reserve)
    except FormParserError as error:
        raise RequestError(f"The form cannot be parsed: {error}") from error


async def _parse(http: Request, reserve: Callable[[int], None]) -> list[Part]:
    length = http.headers.get("content-length", "")
    size = int(length) if length.isdecimal() and "transfer-encoding" not in http.headers else TOGETHER
    form = _Form(http.headers.get("content-type", ""), reserve)
    form.in_memory = size <= IN_MEMORY and _ROOM.take(size)
    try:
        async for chunk in http.stream():
            form.write(chunk)
            if form.waiting_bytes >= AT_ONCE:
                await _on_thread(form)
        if form.waiting:
            await _on_thread(form)
        return form.parts()
    except BaseException:
        form.close()
        raise
    finally:
        if form.in_memory:
            _ROOM.give(size - form.held_bytes)


async def _on_thread(form: _Form) -> None:
    """Write the waiting pieces to disk.

    A cancellation waits for the thread, because the caller then closes the files.
    """
    writing = asyncio.get_running_loop().run_in_executor(_WRITERS, form.write_waiting)
    cancelled = None
    while not writing.done():
        try:
            await asyncio.wait({writing})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        writing.exception()  # retrieves the exception, which asyncio would otherwise log
        raise cancelled
    writing.result()


class Room:
    """The memory that bodies together may take, in bytes. Thread-safe."""

    def __init__(self, size: int) -> None:
        # Reentrant, because the garbage collector may close a file, and so call `give`, while the lock is held.
        self._left, self._lock = size, threading.RLock()

    def take(self, size: int) -> bool:
        """Reserve `size` bytes. Return False if less is left."""
        with self._lock:
            there = size <= self._left
            if there:
                self._left -= size
        return there

    def give(self, size: int) -> None:
        """Return `size` reserved bytes."""
        with self._lock:
            self._left += size


_ROOM = Room(TOGETHER)


class _InMemory(io.BytesIO):
    """A file in memory that returns its reserved bytes when it is closed."""

    def close(self) -> None:
        if not self.closed:
            size = len(self.getvalue())
            super().close()
            _ROOM.give(size)


class _Form:
    """A form that is being parsed: `write` takes its bytes, `write_waiting` writes its files to disk.

    `in_memory` says whether the files stay in memory, and `held_bytes` counts their bytes there. `waiting` are the
    pieces for the disk, and `waiting_bytes` counts their bytes.
    """

    def __init__(self, content_type: str, reserve: Callable[[int], None]) -> None:
        """Prepare the parser. Raises FormParserError and RequestError for a content type without a usable boundary."""
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise RequestError("The form cannot be parsed: its content-type names no boundary.")
        self.in_memory = False
        self.waiting: list[tuple[Part, memoryview]] = []
        self.waiting_bytes = self.held_bytes = 0
        self._parts: list[Part] = []
        self._name, self._value, self._disposition = b"", b"", b""
        self._text, self._text_bytes, self._reserve = bytearray(), 0, reserve  # of the field, of all fields
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._part_ends,
                "on_end": self._end,
            },
        )

    def write(self, chunk: bytes) -> None:
        """Parse the next bytes. Raises FormParserError, RequestError, OSError."""
        if chunk:
            self._parser.write(chunk)

    def write_waiting(self) -> None:
        """Write the waiting pieces to disk. Raises OSError."""
        waiting, self.waiting, self.waiting_bytes = self.waiting, [], 0
        for part, data in waiting:
            if part.file is None:
                part.file = cast(BinaryIO, tempfile.TemporaryFile(buffering=0))  # noqa: SIM115  the caller of `read` closes it
            _write(part.file, data)

    def parts(self) -> list[Part]:
        """Return the parts. Raises RequestError if the form is incomplete."""
        if not self._ended:
            raise RequestError("The form cannot be parsed: it ends before its last boundary.")
        return self._parts

    def close(self) -> None:
        """Close the files of all parts."""
        with ExitStack() as stack:
            for part in self._parts:
                if part.file is not None:
                    stack.callback(part.file.close)

    # The callbacks of the parser

    def _part_begins(self) -> None:
        self._disposition, self._text = b"", bytearray()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def _headers_end(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if b"name" not in options:
            raise RequestError("The form cannot be parsed: a part has no name.")
        part = Part(_decode(options[b"name"]), b"filename" in options)
        self._parts.append(part)
        if sum(other.is_file == part.is_file for other in self._parts) > (MOST_FILES if part.is_file else MOST_FIELDS):
            raise RequestError(f"A form may have at most {MOST_FIELDS} fields and {MOST_FILES} files.")
        if part.is_file:
            part.filename = _decode(options[b"filename"]) or "audio"
            if self.in_memory:
                part.file = _InMemory()
            else:
                self.waiting.append((part, memoryview(b"")))

    def _data(self, data: bytes, start: int, end: int) -> None:
        part, more = self._parts[-1], memoryview(data)[start:end]
        if not part.is_file:
            self._add_text(part, more)
        elif part.file is not None and self.in_memory:
            self.held_bytes += part.file.write(more)
        else:
            self.waiting.append((part, more))
            self.waiting_bytes += len(more) + _PIECE_BYTES

    def _add_text(self, field: Part, more: memoryview) -> None:
        self._text_bytes += len(more)
        if len(self._text) + len(more) > FIELD_BYTES:
            raise RequestError(f"{field.name[:64]} has more than {FIELD_BYTES} bytes", param=field.name[:64])
        if self._text_bytes > FIELDS_BYTES:
            raise TooLarge(f"The fields of the form have more than {FIELDS_BYTES} bytes. Send long audio as a file.")
        self._reserve(len(more))
        self._text += more

    def _part_ends(self) -> None:
        if not self._parts[-1].is_file:
            self._parts[-1].text = _decode(bytes(self._text))

    def _end(self) -> None:
        self._ended = True


def _write(file: BinaryIO, data: memoryview) -> None:
    """Write all of the data to an unbuffered file, which may take only a part at a time."""
    while data:
        data = data[file.write(data) :]


def _decode(text: bytes) -> str:
    """Return the text as UTF-8 or, if it is not valid UTF-8, as Latin-1."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")
