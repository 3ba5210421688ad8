"""A request's body, JSON or a multipart form, → its fields as one dict, in which uploaded files are names of open
files."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any, BinaryIO

from fastapi import Depends
from fastapi.requests import Request
from starlette.requests import ClientDisconnect

from worker.entrypoints.http import multipart
from worker.errors import Cancelled, DiskFull, NotReadable, RequestError

_LARGE = 1 << 18  # JSON that takes some milliseconds to read is not read on the event loop


@dataclass
class Body:
    """`fields`: as sent; a field named `x[]` is the list `x`. `files`: what the fields' values of that name stand for;
    whoever takes the body closes them. `names`: the files' own names, as the client gave them."""

    fields: dict[str, Any]
    files: dict[str, BinaryIO] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def upload(self, name: str) -> tuple[BinaryIO, str]:
        """Return the open file of a field and the client's name for it. Raises RequestError if the field is no file."""
        value = self.fields.get(name)
        if not isinstance(value, str) or value not in self.files:
            raise RequestError(f"{name} is missing: send the audio as a file", param=name)
        return self.files[value], self.names[value]

    def close(self) -> None:
        with ExitStack() as stack:
            for file in self.files.values():
                stack.callback(file.close)


def is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"


async def read(request: Request) -> AsyncIterator[Body]:
    """Yield the body, and close its files once the response is sent. Raises RequestError, NotReadable, DiskFull."""
    try:
        body = await (_form(request) if is_form(request) else _json(request))
    except ClientDisconnect as error:
        raise Cancelled("the client hung up") from error
    try:
        yield body
    finally:
        body.close()


RequestBody = Annotated[Body, Depends(read)]  # a route's parameter of this type is the body


async def _json(request: Request) -> Body:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise NotReadable("send application/json or multipart/form-data")
    data = await request.body()
    try:
        fields = json.loads(data) if len(data) < _LARGE else await asyncio.to_thread(json.loads, data)
    except (ValueError, RecursionError) as error:
        raise RequestError("the body is not JSON") from error
    if b"\\ud" in data.lower():
        _refuse_surrogates(fields)
    if not isinstance(fields, dict):
        raise RequestError(f"the body must be a JSON object, not {type(fields).__name__}")
    return Body(fields)


def _refuse_surrogates(fields: Any) -> None:
    """Half characters, which JSON can spell and no answer could repeat. Raises RequestError."""
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RequestError("the body holds half a character (a lone surrogate)") from error


async def _form(request: Request) -> Body:
    try:
        return _gather(await multipart.read(request))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("there is no room for this upload") from error
        raise


def _gather(parts: list[multipart.Part]) -> Body:
    body, twice = Body({}), None
    for part in parts:
        given: Any = part.text
        if part.file is not None:
            given = f"upload:{len(body.files)}"
            body.files[given] = part.file
            body.names[given] = part.filename
        plain = part.name.removesuffix("[]")
        kept = body.fields.get(plain)
        if plain != part.name and isinstance(kept, list):
            kept.append(given)
        elif plain in body.fields:
            twice = plain
        else:
            body.fields[plain] = given if plain == part.name else [given]
    if twice is not None:
        body.close()
        raise RequestError(f"{twice} is given twice", param=twice)
    return body
