"""The body of a request, JSON or a multipart form → its fields as one dict.

An uploaded file becomes a field whose value is a name, and `Body.files` maps the name to the open file.
"""

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

_LARGE = 1 << 18  # bytes; JSON this large takes milliseconds to parse, so it is parsed on a thread


@dataclass
class Body:
    """The fields of a request and its uploaded files.

    `fields` are the fields as sent; a form's fields named `x[]` become the list `x`. `files` maps the value of a file's
    field to the open file; the caller closes the files. `names` maps the same value to the client's name of the file.
    """

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
        """Close all files."""
        with ExitStack() as stack:
            for file in self.files.values():
                stack.callback(file.close)


def is_form(request: Request) -> bool:
    """Return whether the body is a multipart form."""
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
        raise NotReadable(f"Unsupported content type {kind!r}. Send application/json or multipart/form-data.")
    data = await request.body()
    try:
        fields = json.loads(data) if len(data) < _LARGE else await asyncio.to_thread(json.loads, data)
    except (ValueError, RecursionError) as error:
        raise RequestError("The body is not valid JSON.") from error
    if b"\\ud" in data.lower():
        _refuse_surrogates(fields)
    if not isinstance(fields, dict):
        raise RequestError(f"The body must be a JSON object, not {type(fields).__name__}.")
    return Body(fields)


def _refuse_surrogates(fields: Any) -> None:
    """Raise RequestError for a lone surrogate, which JSON can express and UTF-8, and so a response, cannot."""
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RequestError("The body contains an incomplete character (a lone surrogate). Remove it.") from error


async def _form(request: Request) -> Body:
    try:
        return _gather(await multipart.read(request))
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
        name = part.name.removesuffix("[]")
        values = body.fields.get(name)
        if name != part.name and isinstance(values, list):
            values.append(value)
        elif name in body.fields:
            repeated = name
        else:
            body.fields[name] = value if name == part.name else [value]
    if repeated is not None:
        body.close()
        raise RequestError(f"{repeated} is sent twice", param=repeated)
    return body
