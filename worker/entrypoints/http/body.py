"""The body of a request, JSON or a multipart form → its fields as one dict.

An uploaded file becomes a field whose value is a name, and `Body.files` maps the name to the open file.
"""

from __future__ import annotations

import asyncio
import errno
import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any, BinaryIO

from fastapi import Depends
from fastapi.requests import Request
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from worker.entrypoints.http import body_limits, multipart
from worker.errors import Cancelled, DiskFull, NotReadable, QueueFull, RequestError, TooLarge

_ROOM = multipart.Room(multipart.TOGETHER)
_IN_BRACKETS = re.compile(r"([^\[\]]+)\[([^\[\]]*)\]")
_LARGE = 1 << 18  # bytes; JSON this large takes milliseconds to parse, so it is parsed on a thread


@dataclass
class Body:
    """The fields of a request and its uploaded files.

    `fields` are the fields as sent; a form's fields named `x[]` become the list `x`, and those named `x[a]` and `x[b]`
    become the object `x`. `files` maps the value of a file's field to the open file; the caller closes the files.
    `names` maps the same value to the client's name of the file.
    """

    fields: dict[str, Any]
    files: dict[str, BinaryIO] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def upload(self, name: str) -> tuple[BinaryIO, str]:
        """Return the open file of a field and the client's name for it. Raises RequestError if the field is no file."""
        value = self.fields.get(name)
        if not isinstance(value, str) or value not in self.files:
            raise RequestError(f"{name} is missing: send a file in this field of a form", param=name)
        return self.files[value], self.names[value]

    def hand_over(self) -> list[BinaryIO]:
        """Return the files, which the receiver closes instead of the caller."""
        files = list(self.files.values())
        self.files.clear()
        return files

    def close(self) -> None:
        """Close all files."""
        with ExitStack() as stack:
            for file in self.files.values():
                stack.callback(file.close)


def is_form(request: Request) -> bool:
    """Return whether the body is a multipart form."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"


async def read(request: Request) -> AsyncIterator[Body]:
    """Yield the body, and close its files once the response is sent. Raises RequestError, NotReadable, DiskFull,
    QueueFull."""
    with _Share() as memory:
        try:
            body = await (_form if is_form(request) else _json)(request, memory)
        except ClientDisconnect as error:
            raise Cancelled("the client hung up") from error
        try:
            yield body
        finally:
            body.close()


RequestBody = Annotated[Body, Depends(read)]  # a route's parameter of this type is the body


class _Share:
    """What one JSON body, or the fields of one form, take of the memory for all of them, from the first byte until the
    response is sent.
    """

    def __init__(self) -> None:
        self._size = 0

    def __enter__(self) -> _Share:
        return self

    def take(self, size: int) -> None:
        """Reserve `size` bytes. Raises QueueFull if the other bodies leave too little."""
        if not _ROOM.take(size):
            raise QueueFull(
                "JSON bodies and form fields of other requests fill the memory for them. Send the request again.",
                retry_after_sec=1,
            )
        self._size += size

    def __exit__(self, *_: object) -> None:
        _ROOM.give(self._size)


async def _json(request: Request, memory: _Share) -> Body:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise NotReadable(f"Unsupported content type {kind!r}. Send application/json or multipart/form-data.")
    buffer = io.BytesIO()
    async for piece in request.stream():
        memory.take(len(piece))
        buffer.write(piece)
    data = buffer.getvalue()  # the buffer itself, not a copy
    try:
        fields = parse(data) if len(data) < _LARGE else await asyncio.to_thread(parse, data)
    except ValueError as error:
        raise RequestError(f"The body is not valid JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise RequestError(f"The body must be a JSON object, not {type(fields).__name__}.")
    return Body(fields)


def parse(data: bytes) -> Any:
    """Return the value of the JSON. Raises ValueError, and TooLarge.

    Unlike the parser of `json`, this parser makes no second copy of the whole text, and it rejects lone surrogates,
    which JSON can express and UTF-8, and so a response, cannot.
    """
    encoding = json.detect_encoding(data)  # UTF-16, and UTF-8 with a byte order mark, are JSON as well
    if encoding != "utf-8":
        if len(data) > body_limits.WIDE_BYTES:
            raise TooLarge(f"The body is {encoding}. Above {body_limits.WIDE_BYTES} bytes, send UTF-8.")
        data = data.decode(encoding).encode()
    body_limits.check_wide(data)
    return from_json(data)


async def _form(request: Request, memory: _Share) -> Body:
    try:
        return _gather(await multipart.read(request, memory.take))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("The server's disk has no room for this upload.") from error
        raise


def _gather(parts: list[multipart.Part]) -> Body:
    """Return the parts as a body. Raises RequestError, and closes the files, if a field is sent twice."""
    body, repeated = Body({}), None
    for part in parts:
        value: Any = part.text
        if part.file is not None:
            value = f"upload:{len(body.files)}"
            body.files[value] = part.file
            body.names[value] = part.filename
        name, key = _split_name(part.name)
        values = body.fields.get(name)
        if key == "" and isinstance(values, list):
            values.append(value)
        elif key and isinstance(values, dict) and key not in values:
            values[key] = value
        elif name in body.fields:
            repeated = name
        else:
            body.fields[name] = value if key is None else {key: value} if key else [value]
    if repeated is not None:
        body.close()
        raise RequestError(f"{repeated} is sent twice", param=repeated)
    return body


def _split_name(name: str) -> tuple[str, str | None]:
    """Return the name of a form's field and the key in its brackets: "" for `x[]`, None for `x`."""
    match = _IN_BRACKETS.fullmatch(name)
    return (match[1], match[2]) if match else (name, None)
