"""Any route of the HTTP server through a Runpod job: the application itself, called in this process without a socket.

    {"route", "method", "body"} ──▶ Routes.call ── ASGI ──▶ create_app(settings, engine, tasks)
                                                                     │
    the JSON or the text of the response, or its error  ◀────────────┘

Runpod has checked the key of the caller, so the application checks none. Routes of stored jobs are refused: the job
would be stored by this worker alone, which Runpod may stop before the job runs. The counters of a
server are refused too: they do not count the jobs of this worker.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

from worker.client.transport import error_from_response
from worker.config import Settings
from worker.errors import RequestError, Unsupported
from worker.protocol.strict import Fields

if TYPE_CHECKING:
    import httpx

    from worker.engine.engine import Engine
    from worker.entrypoints.tasks import Tasks

LONGEST_SEC = 7 * 86400.0  # a Runpod job ends before that: https://docs.runpod.io/serverless/endpoints/send-requests
STORED = ("/run", "/runsync", "/status", "/cancel", "/stream", "/purge-queue", "/v2", "/jobs", "/transcribe/async")
COUNTERS = ("/metrics", "/stats")
FIELDS = ("route", "method", "body")


class Routes:
    """The application on an engine. Making it takes a second, and its thread must be no event loop's."""

    def __init__(self, settings: Settings, engine: Engine, tasks: Tasks) -> None:
        import httpx

        from worker.entrypoints.http.app import create_app

        unguarded = {"api_key": "off", "admin_api_key": None, "rate_limit": None}
        own = {"jobs_url": None, "request_timeout_sec": LONGEST_SEC}
        app = create_app(settings.model_copy(update=unguarded | own), engine, tasks)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://localhost", follow_redirects=True)

    async def call(self, fields: Fields) -> Any:
        """Return the body of the response to a request. Raises RequestError, and the error of the response."""
        request = await asyncio.to_thread(self._request, fields)
        response = await self._http.send(request)
        if not response.is_success:
            error = error_from_response(response)
            error.status = response.status_code  # of the route: /v1 has statuses of its own
            raise error
        return await asyncio.to_thread(_content, response)

    def _request(self, fields: Fields) -> httpx.Request:
        """Return the request that the fields describe. Raises RequestError."""
        import httpx

        route, body = fields["route"], fields.get("body")
        method = fields.get("method") or ("GET" if body is None else "POST")
        if unknown := fields.keys() - set(FIELDS):
            raise RequestError(f"{min(unknown)} cannot stand beside route: use {', '.join(FIELDS)}", param=min(unknown))
        if not isinstance(route, str) or not route.startswith("/"):
            raise RequestError("route must be the path of a route, such as /v1/models", param="route")
        if not isinstance(method, str):
            raise RequestError("method must be GET or POST", param="method")
        if body is not None and not isinstance(body, dict):
            raise RequestError("body must be a JSON object", param="body")
        if body is not None and body.get("stream") in (True, "true", "True"):
            raise Unsupported(
                "Runpod's queue transports no streams: leave out stream, or use a load-balancing endpoint",
                param="stream",
            )
        try:
            data = None if body is None else json.dumps(body, allow_nan=False).encode()
            request = self._http.build_request(
                method.upper(), f"http://localhost{route}", content=data, headers={"Content-Type": "application/json"}
            )
        except httpx.InvalidURL as error:
            raise RequestError(f"route is no path of a URL: {error}", param="route") from error
        except ValueError as error:
            raise RequestError(f"body must be JSON: {error}", param="body") from error
        if any(f"{request.url.path}/".startswith(f"{prefix}/") for prefix in STORED):
            raise Unsupported(
                f"{request.url.path} is a route of stored jobs, and this is a job already: send the payload of the "
                "work itself as input",
                param="route",
            )
        if request.url.path.rstrip("/") in COUNTERS:
            raise Unsupported(
                f"{request.url.path} has the counters of an HTTP server, which do not count jobs: use Runpod's metrics",
                param="route",
            )
        return request


def _content(response: httpx.Response) -> Any:
    """Return the JSON or the text of a response, base64 of other content, or the status if there is no content."""
    kind = response.headers.get("content-type", "").partition(";")[0]
    if not response.content:
        return {"status": response.status_code}
    if kind == "application/json":
        return response.json()
    try:
        return response.content.decode()
    except UnicodeDecodeError:
        return {"content_type": kind, "base64": base64.b64encode(response.content).decode()}
