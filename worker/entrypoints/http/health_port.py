"""A second port of the server that responds to health checks and to nothing else: PORT_HEALTH.

    PORT ────────▶ every route
    PORT_HEALTH ─▶ PATHS, else 404

A load balancer may expose the port of its health checks without a check of keys, so this port must not lead to the
other routes.
"""

from __future__ import annotations

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PATHS = ("/ping", "/health", "/health/live", "/health/ready", "/healthz")


class HealthPort:
    """ASGI middleware that responds with 404 to every request on `port` that is no health check."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app, self._port = app, port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, unless it is on the health port and no health check."""
        if scope["type"] != "lifespan" and scope["server"][1] == self._port and scope["path"] not in PATHS:
            text = f"This port responds to health checks only: {', '.join(PATHS)}."
            await PlainTextResponse(text, 404)(scope, receive, send)
            return
        await self._app(scope, receive, send)
