"""The supervisor's own HTTP application, on a Unix socket: the metrics of all workers, and the admission of requests.

    GET /metrics, /stats    the sums over the workers
    any /gate/PATH          whether a request to PATH may pass: 204, or 401 without a key, or 403 above RATE_LIMIT

nginx sends each request's headers to /gate before it reads the request's body. So all workers share one count, and a
client without a key cannot fill the disk. The workers check keys themselves as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.config import Settings
from worker.entrypoints.http import responses
from worker.entrypoints.http.auth import AuthMiddleware, keys
from worker.entrypoints.http.gateway import aggregate, worker_process
from worker.entrypoints.http.gateway.worker_process import Worker
from worker.entrypoints.http.origins import OriginMiddleware
from worker.errors import AviaryError, StillLoading

_GATE = "/gate"
_VERDICTS = {429: 403}  # nginx's auth_request supports only 2xx, 401 and 403


class Control:
    """The ASGI application. It runs on a thread of its own and only reads the states of the supervisor's workers."""

    def __init__(self, settings: Settings, workers: Sequence[Worker]) -> None:
        self._settings, self._workers = settings, workers
        self._totals = aggregate.Totals()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        numbers = Starlette(routes=[Route("/metrics", self._metrics), Route("/stats", self._stats)])
        numbers.add_exception_handler(AviaryError, _problem)
        guarded = AuthMiddleware(numbers, settings.model_copy(update={"rate_limit": None}))
        self._numbers: ASGIApp = OriginMiddleware(guarded, settings)
        self._gate: ASGIApp = AuthMiddleware(_pass, settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve /metrics, /stats and /gate."""
        if scope["type"] != "http" or not scope["path"].startswith(f"{_GATE}/"):
            await self._numbers(scope, receive, send)
        elif scope["method"] == "OPTIONS":  # a browser's preflight request never has a key
            await _pass(scope, receive, send)
        else:
            await self._gate({**scope, "path": scope["path"][len(_GATE) :]}, receive, _verdict(send))

    def collect(self) -> Iterable[Metric]:
        """Yield the sums over the workers, and the workers' own states and restarts. The registry calls this."""
        yield from self._totals.collect()
        states = GaugeMetricFamily("aviary_workers", "Server processes by their state", labels=["state"])
        for state in ("starting", "loading", "ready", "unhealthy", "leaving", "down"):
            states.add_metric([state], sum(worker.state == state for worker in self._workers))
        yield states
        starts = sum(max(0, worker.starts - 1) for worker in self._workers)
        yield CounterMetricFamily("aviary_worker_restarts", "Server processes that were replaced", value=starts)

    async def _metrics(self, _request: Request) -> Response:
        texts = {name: text.decode() for name, text in await self._ask("/metrics")}
        self._totals.add(texts, {worker.socket.name for worker in self._workers if worker.state != "down"})
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    async def _stats(self, _request: Request) -> Response:
        answers = [json.loads(text) for _, text in await self._ask("/stats")]
        if not answers:
            raise StillLoading("No worker responds yet. Try again in a moment.", retry_after_sec=1)
        workers = [
            {
                "worker": worker.number,
                "seat": worker.placement.name,
                "pid": worker.pid,
                "state": worker.state,
                "restarts": max(0, worker.starts - 1),
            }
            for worker in self._workers
        ]
        return JSONResponse(aggregate.add_stats(answers) | {"workers": workers})

    async def _ask(self, path: str) -> list[tuple[str, bytes]]:
        """Return the process's name and the body of each worker that responds to GET `path` with 200.

        The name is that of the process at the time of the request, because a worker may be replaced in the meantime.
        """
        headers = {"Authorization": b"Bearer " + next(iter(keys(self._settings)), b"")}

        def ask(worker: Worker) -> tuple[str, bytes] | None:
            name = worker.socket.name
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, body = worker.ask(path, headers)
                if status == 200:
                    return name, body
            return None

        answers = await asyncio.gather(*(asyncio.to_thread(ask, worker) for worker in self._workers))
        return [answer for answer in answers if answer is not None]


@contextlib.contextmanager
def serving(app: ASGIApp, uds: Path) -> Iterator[None]:
    """Serve the application on the Unix socket `uds`, on a thread of its own, for the duration of the block."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            uds=str(uds),
            log_config=None,
            access_log=False,
            forwarded_allow_ips="*",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run, name="control", daemon=True)
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(5)


class Relay:
    """ASGI middleware of a worker without nginx: it relays /metrics and /stats to the supervisor at `control`.

    So every worker reports the sums over all workers. A request on the worker's private Unix socket, which has no
    client address, is the supervisor's own and reaches the application.
    """

    def __init__(self, app: ASGIApp, control: Path) -> None:
        self._app, self._control = app, control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay /metrics and /stats, and pass every other request to the application."""
        if scope["type"] != "http" or scope["path"] not in ("/metrics", "/stats") or scope["client"] is None:
            await self._app(scope, receive, send)
            return
        key = Headers(scope=scope).get("authorization")
        status, body = await asyncio.to_thread(
            worker_process.ask, self._control, scope["path"], {"Authorization": key} if key else None
        )
        kind = CONTENT_TYPE_LATEST if scope["path"] == "/metrics" and status == 200 else "application/json"
        await Response(body, status, media_type=kind)(scope, receive, send)


async def _pass(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(status_code=204)(scope, receive, send)


def _verdict(send: Send) -> Send:
    """Return a `send` that replaces the statuses that nginx's auth_request does not support."""

    async def send_verdict(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["status"] = _VERDICTS.get(message["status"], message["status"])
        await send(message)

    return send_verdict


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, AviaryError)
    return responses.response(error)
