"""The checks that every request passes before it reaches a route: API key, rate limit, limits of the body.

A WebSocket's request counts as a POST request. Browsers cannot set its headers, so it may carry the key as OpenAI's
clients send it there: as the subprotocol `openai-insecure-api-key.KEY`.

The middleware is plain ASGI, so a streamed response stays streamed. Health checks, the page and the API documentation
require no key.
"""

from __future__ import annotations

import hmac
import ipaddress
import time

from limits import parse as parse_rate
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from worker.config import Settings
from worker.entrypoints.http import responses
from worker.entrypoints.http.body_limits import limited, limits_of
from worker.entrypoints.http.callers import CALLER, Callers, admin_keys
from worker.entrypoints.http.wrong_keys import WrongKeys
from worker.errors import AviaryError, ConfigError, RateLimited, Unauthorized

SEND_KEY = "Send the API key as a bearer token: Authorization: Bearer <key>."
SEND_OWN_KEY = "Send the key of this server (API_KEY) as X-API-Key: <key>. The bearer token is Runpod's."
_KEY_PROTOCOL = "openai-insecure-api-key."  # of OpenAI's clients in browsers
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
    """Raise ConfigError if other machines can reach the server and it requires no key."""
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = settings.host == "localhost"
    if not loopback and settings.api_key != "off" and not keys(settings):
        raise ConfigError(
            f"Binding to HOST={settings.host!r} requires API_KEY: set API_KEY to the key that clients must send. "
            "Set API_KEY=off if a proxy in front of the server authenticates clients."
        )


class AuthMiddleware:
    """ASGI middleware that rejects requests without a valid key, above RATE_LIMIT, or with too large a body.

    `settings.api_key` holds the valid keys, separated by commas. No request requires a key if it is `off` or not set.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._keys, self._wrong_keys = keys(settings), WrongKeys()
        self._bearer_is_runpods = settings.behind_load_balancer
        self._callers = Callers(self._keys, admin_keys(settings))
        try:
            self._rate = parse_rate(settings.rate_limit) if settings.rate_limit else None
        except ValueError:
            raise ConfigError(
                f"RATE_LIMIT={settings.rate_limit!r} is not a rate. Set a rate such as 60/minute."
            ) from None
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject the request with an error response, or pass it on with a limit on its body."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            self._admit(scope)
            if scope["type"] == "http":
                receive = limited(receive, limits_of(Headers(scope=scope), self._settings))
        except AviaryError as error:
            await responses.response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        """Check the key and the rate. Raises Unauthorized, RateLimited."""
        headers, path = Headers(scope=scope), scope["path"]
        client = scope["client"][0] if scope.get("client") else "unix"
        key = None
        if self._keys and not is_open(path):
            key = self._key(headers, address=client)
            client = key.decode("latin-1")
        scope[CALLER] = self._callers.of(key)
        counts = scope.get("method") == "POST" or "sec-websocket-key" in headers
        if self._rate and counts and not self._limiter.hit(self._rate, client):
            wait = self._limiter.get_window_stats(self._rate, client).reset_time - time.time()
            raise RateLimited(
                f"Too many requests: the limit is {self._settings.rate_limit} (RATE_LIMIT). Try again later.",
                retry_after_sec=max(1.0, wait),
            )

    def _key(self, headers: Headers, *, address: str) -> bytes:
        """Return the key of the settings that the request carries. Raises Unauthorized, RateLimited."""
        key, advice = _bearer(headers), SEND_KEY
        if self._bearer_is_runpods:
            key, advice = headers.get("x-api-key", "").encode("latin-1").strip() or key, SEND_OWN_KEY
        if not key:
            raise Unauthorized(advice)
        wait_sec = self._wrong_keys.wait_sec(address, key)
        if wait_sec:
            message = "too many wrong API keys came from this address; check the key, then try again later"
            raise RateLimited(message, retry_after_sec=wait_sec)
        found = [mine for mine in self._keys if _equal(key, mine)]
        self._wrong_keys.note(address, key, right=bool(found))
        if not found:
            raise Unauthorized(advice)
        return found[0]


def is_open(path: str) -> bool:
    """Whether the path requires no key: health checks, the page, the documentation."""
    return path in _OPEN or path.startswith("/ui/")


def keys(settings: Settings) -> list[bytes]:
    """Return the valid keys, or none if the server requires no key.

    Raises ConfigError if API_KEY is set and holds no key, because an empty secret must not open the server.
    """
    value, admins = settings.api_key, admin_keys(settings)
    if value is None or value == "off":
        return []
    valid = [key.strip().encode("utf-8", "surrogateescape") for key in value.split(",") if key.strip()]
    if not valid:
        raise ConfigError("API_KEY is set, but holds no key. Set a key, or API_KEY=off to require none.")
    return [*valid, *admins]


def _bearer(headers: Headers) -> bytes:
    """Return the bearer token of a request, or the key among the subprotocols of a WebSocket; empty without either."""
    scheme, _, token = headers.get("authorization", "").encode("latin-1").partition(b" ")
    if scheme.lower() == b"bearer":
        return token.strip()
    offered = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
    found = [name.removeprefix(_KEY_PROTOCOL) for name in offered if name.startswith(_KEY_PROTOCOL)]
    return found[0].encode("latin-1") if found else b""


def _equal(sent: bytes, key: bytes) -> bool:
    """Whether the bytes spell the key. Browsers send the letters of Latin-1 in Latin-1; other clients send UTF-8."""
    return hmac.compare_digest(sent, key) | hmac.compare_digest(sent.decode("latin-1").encode(), key)
