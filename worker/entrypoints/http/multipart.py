"""A multipart form, taken apart as it comes: fields as texts, files in open files. python_multipart finds the parts.

An upload of up to IN_MEMORY bytes stays in memory (as io.BytesIO), while all that do leave room: making a file on disk
takes longer than all else that a small upload needs. Others go to disk, on a thread, AT_ONCE bytes at a time. A file's
position is anywhere.
"""

from __future__ import annotations

import asyncio
import io
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO, cast

from fastapi.requests import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from worker.errors import RequestError

IN_MEMORY = 8 * 1024**2
TOGETHER = 256 * 1024**2
AT_ONCE = 1024**2
MOST_FILES, MOST_FIELDS, FIELD_BYTES = 16, 200, 1024**2

_PIECE_BYTES = 512  # what a piece that waits takes itself
_WRITERS = ThreadPoolExecutor(8, thread_name_prefix="uploads")  # asyncio's own have much to wait for


@dataclass
class Part:
    """A field's text, or a file and the name that the client gave it."""

    name: str
    is_file: bool
    text: str = ""
    file: BinaryIO | None = None
    filename: str = ""


async def read(http: Request) -> list[Part]:
    """The parts, in their order; whoever takes them closes their files. Raises RequestError for what is no form or not
    whole, OSError where there is no room for it, ClientDisconnect."""
    try:
        return await _taken_apart(http)
    except FormParserError as error:
        raise RequestError(f"the form cannot be read: {error}") from error


async def _taken_apart(http: Request) -> list[Part]:
    length = http.headers.get("content-length", "")
    size = int(length) if length.isdecimal() and "transfer-encoding" not in http.headers else TOGETHER
    form = _Form(http.headers.get("content-type", ""))
    form.in_memory = _ROOM.take(size)
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
    """Writes what waits for the disk. Never leaves the thread at work: its files may be closed next."""
    writing = asyncio.get_running_loop().run_in_executor(_WRITERS, form.write_waiting)
    cancelled = None
    while not writing.done():
        try:
            await asyncio.wait({writing})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        writing.exception()  # nobody asks any more
        raise cancelled
    writing.result()


class _Room:
    """The memory that uploads may take together. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._left, self._lock = size, threading.RLock()  # the collector may close a file while it is held

    def take(self, size: int) -> bool:
        with self._lock:
            there = size <= min(IN_MEMORY, self._left)
            if there:
                self._left -= size
        return there

    def give(self, size: int) -> None:
        with self._lock:
            self._left += size


_ROOM = _Room(TOGETHER)


class _InMemory(io.BytesIO):
    """A file in memory, which gives back its room when it is closed."""

    def close(self) -> None:
        if not self.closed:
            size = len(self.getvalue())
            super().close()
            _ROOM.give(size)


class _Form:
    """`write` is given the form's bytes; what is for the disk waits for `write_waiting`. `in_memory`: whether its
    files are to be, and `held_bytes` how many of their bytes are."""

    def __init__(self, content_type: str) -> None:
        """Raises FormParserError, RequestError."""
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise RequestError("the form cannot be read: its content-type names no boundary")
        self.in_memory = False
        self.waiting: list[tuple[Part, memoryview]] = []
        self.waiting_bytes = self.held_bytes = 0
        self._parts: list[Part] = []
        self._name, self._value, self._disposition = b"", b"", b""
        self._text = bytearray()
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
        """Raises FormParserError, RequestError, OSError."""
        if chunk:
            self._parser.write(chunk)

    def write_waiting(self) -> None:
        """Raises OSError."""
        waiting, self.waiting, self.waiting_bytes = self.waiting, [], 0
        for part, data in waiting:
            if part.file is None:
                part.file = cast(BinaryIO, tempfile.TemporaryFile(buffering=0))  # noqa: SIM115  the parts' taker closes it
            _write(part.file, data)

    def parts(self) -> list[Part]:
        """Raises RequestError for a form that is not whole."""
        if not self._ended:
            raise RequestError("the form cannot be read: it ends before its last boundary")
        return self._parts

    def close(self) -> None:
        with ExitStack() as stack:
            for part in self._parts:
                if part.file is not None:
                    stack.callback(part.file.close)

    # What the parser tells

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
            raise RequestError("the form cannot be read: a part without a name")
        part = Part(_decoded(options[b"name"]), b"filename" in options)
        self._parts.append(part)
        if sum(one.is_file == part.is_file for one in self._parts) > (MOST_FILES if part.is_file else MOST_FIELDS):
            raise RequestError(f"a form may have {MOST_FIELDS} fields and {MOST_FILES} files")
        if part.is_file:
            part.filename = _decoded(options[b"filename"]) or "audio"
            if self.in_memory:
                part.file = _InMemory()
            else:
                self.waiting.append((part, memoryview(b"")))

    def _data(self, data: bytes, start: int, end: int) -> None:
        part, more = self._parts[-1], memoryview(data)[start:end]
        if not part.is_file:
            if len(self._text) + len(more) > FIELD_BYTES:
                raise RequestError(f"{part.name[:64]} has more than {FIELD_BYTES} bytes", param=part.name[:64])
            self._text += more
        elif part.file is not None and self.in_memory:
            self.held_bytes += part.file.write(more)
        else:
            self.waiting.append((part, more))
            self.waiting_bytes += len(more) + _PIECE_BYTES

    def _part_ends(self) -> None:
        if not self._parts[-1].is_file:
            self._parts[-1].text = _decoded(bytes(self._text))

    def _end(self) -> None:
        self._ended = True


def _write(file: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")
