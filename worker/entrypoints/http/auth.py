"""What every HTTP request passes before a route: its API key, its rate, and a limit on the bytes of its body.

Plain ASGI, so that a streamed answer stays streamed. Health checks, the page and the documentation need no key.
"""

from __future__ import annotations

import hmac
import ipaddress
import time

from limits import parse as parse_rate
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.config import Settings
from worker.entrypoints.http import responses
from worker.entrypoints.http.callers import CALLER, Callers, admin_keys
from worker.errors import AviaryError, ConfigError, RateLimited, TooLarge, Unauthorized

FORM_BYTES = 1 << 20  # what a form may have beside its file
_OPEN = (
    "/",
    "/health",
    "/health/live",
    "/health/ready",
    "/healthz",
    "/ping",
    "/ui",
    "/docs",
    "/redoc",
    "/openapi.json",
)


def check_address(settings: Settings) -> None:
    """Raises ConfigError where strangers could reach a server that asks nobody for a key."""
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = settings.host == "localhost"
    if not loopback and settings.api_key != "off" and not keys(settings):
        raise ConfigError(
            f"HOST={settings.host!r} can be reached from outside: set API_KEY to the key that clients must send, "
            "or to off if something before this server checks them"
        )


class AuthMiddleware:
    """`settings.api_key`: the keys taken, separated by commas; `off` or none: nobody is asked."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._keys = keys(settings)
        self._callers = Callers(self._keys, admin_keys(settings))
        try:
            self._rate = parse_rate(settings.rate_limit) if settings.rate_limit else None
        except ValueError:
            raise ConfigError(
                f"RATE_LIMIT={settings.rate_limit!r} is not a rate: write for instance 60/minute"
            ) from None
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            limit = self._admit(scope)
        except AviaryError as error:
            await responses.response(error)(scope, receive, send)
            return
        await self._app(scope, _limited(receive, limit), send)

    def _admit(self, scope: Scope) -> int:
        """How many bytes the body may have. Raises Unauthorized, RateLimited, TooLarge."""
        headers, path = Headers(scope=scope), scope["path"]
        who = scope["client"][0] if scope.get("client") else "unix"
        given = None
        if self._keys and path not in _OPEN and not path.startswith("/ui/"):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            given = key.strip().encode()
            if scheme.lower() != "bearer" or not sum(hmac.compare_digest(given, mine) for mine in self._keys):
                raise Unauthorized("send the API key as a bearer token: Authorization: Bearer <key>")
            who = key.strip()
        scope[CALLER] = self._callers.of(given)
        if self._rate and scope["method"] == "POST" and not self._limiter.hit(self._rate, who):
            again = self._limiter.get_window_stats(self._rate, who).reset_time - time.time()
            raise RateLimited(f"more than {self._settings.rate_limit} (RATE_LIMIT)", retry_after_sec=max(1.0, again))
        form = headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"
        limit = self._settings.max_audio_bytes + FORM_BYTES if form else self._settings.max_json_bytes
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            raise _too_large(limit)
        return limit


def keys(settings: Settings) -> list[bytes]:
    """Those that are taken. Raises ConfigError for an API_KEY that is set and holds none: an empty secret must not
    open the server."""
    given, admins = settings.api_key, admin_keys(settings)
    if given is None or given == "off":
        return []
    found = [key.strip().encode() for key in given.split(",") if key.strip()]
    if not found:
        raise ConfigError("API_KEY is set, but holds no key")
    return [*found, *admins]


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body may have {limit} bytes (MAX_JSON_BYTES for JSON, MAX_AUDIO_BYTES for uploads)")


def _limited(receive: Receive, limit: int) -> Receive:
    got = 0

    async def take() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > limit:
            raise _too_large(limit)
        return message

    return take
