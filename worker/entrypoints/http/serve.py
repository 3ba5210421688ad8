"""One server process: the application on its sockets until a signal ends it.

    serve(settings)                             in this process, on HOST and PORT (and PORT_HEALTH) or a Unix socket
    python -m worker.entrypoints.http.serve     as a worker of the gateway, which writes the plan to stdin

SIGTERM and Ctrl-C close the listening sockets, finish accepted requests within DRAIN_SEC, then stop the engine.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from starlette.types import ASGIApp

from worker import logs
from worker.config import Settings
from worker.entrypoints.http import sockets
from worker.entrypoints.http.app import create_app
from worker.entrypoints.http.health_port import HealthPort

if TYPE_CHECKING:
    import asyncio

    import uvicorn

log = logging.getLogger(__name__)

MESSAGE_BYTES = 4 << 20  # of a message over a WebSocket: a minute of audio in an event


def config(app: ASGIApp, settings: Settings, *, behind_proxy: bool) -> uvicorn.Config:
    """Return uvicorn's configuration. `behind_proxy`: every client is the gateway, whose X-Forwarded-For is trusted.

    Otherwise forwarded headers are ignored, because any client can send them.
    """
    import uvicorn

    from worker.entrypoints.http.connections import Connections, Socket

    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=cast("type[asyncio.Protocol]", Connections(settings).protocol),
        ws=Socket,
        ws_max_size=MESSAGE_BYTES,
        ws_per_message_deflate=False,  # a message of 1 KB could grow to MESSAGE_BYTES, and audio hardly shrinks
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=sockets.DRAIN_SEC,
        proxy_headers=behind_proxy,
        forwarded_allow_ips="*" if behind_proxy else "",
    )


def serve(
    settings: Settings, *, uds: Path | None = None, shared: tuple[str, int] | None = None, control: Path | None = None
) -> int:
    """Serve until a signal ends the process, and return the exit code.

    `uds` is a Unix socket to listen on instead of HOST and PORT. Its clients are trusted to name the client that they
    forward for. `shared`, only with `uds`, is an address that other processes listen on as well. `control` is the Unix
    socket of the gateway's supervisor, which adds up the metrics of all processes; with it, SIGHUP ends this process
    after all accepted requests are finished, within REQUEST_TIMEOUT_SEC.

    Raises ConfigError if another server listens on `uds`, or on PORT_HEALTH.
    """
    import uvicorn

    logs.configure(settings)
    tempfile.tempdir = str(settings.data_dir)  # uploads are written there too
    app: ASGIApp = create_app(settings)
    if shared is not None and control is not None:
        from worker.entrypoints.http.gateway.control import Relay

        app = Relay(app, control)
    health_port = settings.port_health if uds is None and settings.port_health != settings.port else None
    if health_port is not None:
        app = HealthPort(app, health_port)
    server = uvicorn.Server(config(app, settings, behind_proxy=uds is not None and shared is None))
    if uds is None:
        log.info(
            "serving on http://%s:%d; the page is at /ui, the API documentation at /docs", settings.host, settings.port
        )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again once it has drained
        signal.signal(number, lambda *_: sys.exit(0))

    def drain(*_: object) -> None:
        server.config.timeout_graceful_shutdown = math.ceil(settings.request_timeout_sec)
        server.should_exit = True

    if control is not None:
        signal.signal(signal.SIGHUP, drain)
    if health_port is None:
        bound = sockets.bind(uds, shared)  # outside `try`, so that another server's socket is not removed
    else:
        bound = sockets.bind_ports(settings.host, settings.port, health_port)
    try:
        server.run(bound)
    finally:
        if uds is not None:
            sockets.remove(uds)
    return 0 if server.started else 1


def main() -> int:
    """Run as a worker of the gateway: read the plan, serve, return the exit code.

    The plan is the first line of stdin. The end of stdin means that the supervisor has exited; the worker then exits at
    once.
    """
    plan: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_exit_with_parent, name="exit with parent", daemon=True).start()
    if plan["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, plan["cores"])  # before torch counts the cores
    settings = Settings(**plan["settings"])
    shared = tuple(plan["shared"]) if plan["shared"] else None
    return serve(settings, uds=Path(plan["socket"]), shared=shared, control=Path(plan["control"]))


def _exit_with_parent() -> None:
    """Wait for the end of stdin, then end this process. On Linux, the kernel ends it, even if no thread can run."""
    while os.read(sys.stdin.fileno(), 1):  # not through sys.stdin, whose lock the exiting interpreter takes
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
