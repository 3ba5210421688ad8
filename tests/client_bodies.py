"""What clients send: the rows of fixtures/client_bodies.json, and a recorder that makes such rows of real requests.

    client ──▶ server ──▶ Recorder ──▶ application
                             └──▶ Request(method, path, fields or json)

The bytes of a file are not part of a row: `FILE` stands for them, and `DATA` for base64 in JSON.
"""

from __future__ import annotations

import dataclasses
import email.parser
import email.policy
import json
from email.message import Message
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "fixtures" / "client_bodies.json").read_text())
FILE, DATA = "<file>", "<base64>"


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as a row has it. `fields`: name, value, and for a file its name and its content type."""

    method: str
    path: str
    fields: list[list[str]] | None = None
    json: Any = None


class Recorder:
    """An ASGI application that keeps the requests that it passes on, and the texts of WebSockets."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.requests: list[Request] = []
        self.events: list[Any] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()

        async def keep() -> Event:
            event = await receive()
            body.extend(event.get("body", b""))
            if event["type"] == "websocket.receive":
                self.events.append(json.loads(event["text"]))
            return event

        try:
            await self._app(scope, keep, send)
        finally:
            if scope["type"] == "http" and scope["method"] == "POST":
                self.requests.append(_request(scope, bytes(body)))


def _request(scope: Scope, body: bytes) -> Request:
    kind = dict(scope["headers"]).get(b"content-type", b"")
    if kind.startswith(b"multipart/form-data"):
        return Request(scope["method"], scope["path"], fields=_fields(kind, body))
    sent = json.loads(body)
    if isinstance(sent.get("input_audio"), dict):
        sent["input_audio"]["data"] = DATA
    return Request(scope["method"], scope["path"], json=sent)


def _fields(kind: bytes, body: bytes) -> list[list[str]]:
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    form = parser.parsebytes(b"Content-Type: " + kind + b"\r\n\r\n" + body)
    return [_field(part) for part in form.iter_parts()]


def _field(part: Message) -> list[str]:
    name = str(part.get_param("name", header="content-disposition"))
    if (filename := part.get_filename()) is not None:
        return [name, FILE, filename, part.get_content_type() if "content-type" in part else ""]
    return [name, part.get_payload(decode=True).decode()]
