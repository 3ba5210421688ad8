"""A server without an API key is for the people of its machine, not for the web pages that they visit.

    Host of the request is a name of this server?  ── no ──▶ 403   a page whose name was rebound to 127.0.0.1
              │ yes
    The request changes nothing, or comes from no foreign page?  ── no ──▶ 403   a form or script of another site, or
              │ yes                                                                its WebSocket
              ▼
    the application

A browser sends `Host`, `Origin` and `Sec-Fetch-Site`, and no page can change them. Other clients send no `Origin`.

Servers with an API key need no such check: a page of another site does not have the key, and browsers never add a
bearer token by themselves. API_KEY=off switches the check off too: the proxy in front of the server does its work.
Clients of a Unix socket are trusted.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from worker.config import Settings
from worker.entrypoints.http import responses
from worker.errors import Forbidden

_NAMES = ("localhost", "127.0.0.1", "[::1]")
_WITHOUT_EFFECT = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^][:]+)(:\d*)?")
_SHOWN = 100  # characters of a client's header that a message repeats


class OriginMiddleware:
    """ASGI middleware that refuses what foreign pages send, if no API key is set (`API_KEY`)."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._checks = settings.api_key is None
        self._names = {*_NAMES, settings.host.lower(), f"[{settings.host.lower()}]"}
        self._origins = set(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond with the error."""
        if scope["type"] != "lifespan" and self._checks and not _is_private(scope):
            try:
                self._check(scope.get("method"), Headers(scope=scope))
            except Forbidden as error:
                await responses.response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, method: str | None, headers: Headers) -> None:
        """Raise Forbidden if a foreign page may be behind the request. A WebSocket has no method."""
        host = headers.get("host")
        if host is not None and not self._is_ours(host):
            raise Forbidden(
                f"{host[:_SHOWN]!r} is no name of this server: use localhost or 127.0.0.1, or set API_KEY (API_KEY=off "
                "if a proxy in front of the server authenticates clients)"
            )
        if method not in _WITHOUT_EFFECT and self._is_foreign(headers):
            origin = headers.get("origin", "another site")
            raise Forbidden(
                f"pages of {origin[:_SHOWN]} may not send requests to this server: add the origin to CORS_ORIGINS"
            )

    def _is_ours(self, host: str) -> bool:
        """Whether the header names this server, at any port."""
        match = _HOST.fullmatch(host.lower())
        return match is not None and match[1] in self._names

    def _is_foreign(self, headers: Headers) -> bool:
        """Whether a page of another origin sent the request, and CORS_ORIGINS does not name the origin."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if site in ("same-origin", "none") or (origin is not None and {origin, "*"} & self._origins):
            return False
        if site == "cross-site":
            return True
        return origin is not None and origin.lower().partition("://")[2] != headers.get("host", "").lower()


def _is_private(scope: Scope) -> bool:
    """Whether the client is connected to a Unix socket: its own, or the gateway's."""
    client = scope.get("client")
    return client is None or client[0] == "unix:"
