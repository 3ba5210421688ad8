"""Runs the HTTP server until it is told to end: in this process, or, with WORKERS, in several behind one port.

SIGTERM and Ctrl-C: no new connections, what is under way is finished within DRAIN_SEC, then the engine ends.
"""
from __future__ import annotations

import logging
import math
import signal
import socket
import sys
import tempfile
from pathlib import Path

from starlette.types import ASGIApp

from worker import logs
from worker.config import ConfigError, Settings
from worker.server.app import create_app
from worker.server.gate import check_address

log = logging.getLogger(__name__)

DRAIN_SEC = 30


def run(settings: Settings) -> int:
    """Serves; returns the exit code. Raises ConfigError when the settings do not allow it."""
    settings = _addressed(settings)
    if settings.audio_score_server_socket is None:
        check_address(settings)
    logs.configure(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if settings.workers != 1:
        from worker.gateway import nginx, supervisor
        from worker.seats import seats

        if len(taken := seats(settings)) > 1:
            return supervisor.run(settings, taken, nginx.find())
    return serve(settings, uds=settings.audio_score_server_socket)


def serve(settings: Settings, *, uds: Path | None = None, shared: tuple[str, int] | None = None,
          front: Path | None = None) -> int:
    """Serves in this process: on HOST and PORT or, where it is given, on the Unix socket `uds`, and then also on the address
    `shared`, which other processes serve as well. Whoever reaches `uds` is trusted to say for whom it asks. `front`: the
    Unix socket of who adds up the numbers of all processes; SIGHUP then ends this one when it has answered all, for which it
    has REQUEST_TIMEOUT_SEC. Raises ConfigError where another server is on `uds`."""
    import uvicorn

    logs.configure(settings)
    tempfile.tempdir = str(settings.data_dir)       # uploads pass through here too
    app: ASGIApp = create_app(settings)
    if shared is not None and front is not None:
        from worker.gateway.front import Relay

        app = Relay(app, front)
    server = uvicorn.Server(uvicorn.Config(
        app, host=settings.host, port=settings.port, log_config=None, access_log=False, timeout_graceful_shutdown=DRAIN_SEC,
        forwarded_allow_ips="*" if uds and not shared else None))
    if uds is None:
        log.info("serving on http://%s:%d: the page is /ui, the documentation /docs", settings.host, settings.port)
    for number in (signal.SIGTERM, signal.SIGINT):      # uvicorn raises what it was sent again, when it has drained
        signal.signal(number, lambda *_: sys.exit(0))

    def leave(*_: object) -> None:
        server.config.timeout_graceful_shutdown = math.ceil(settings.request_timeout_sec)
        server.should_exit = True

    if front is not None:
        signal.signal(signal.SIGHUP, leave)
    sockets = _sockets(uds, shared)         # what another server has is not cleared away
    try:
        server.run(sockets)
    finally:
        if uds is not None:
            clear(uds)
    return 0 if server.started else 1


def take(uds: Path) -> None:
    """Removes a Unix socket that was left. Raises ConfigError where a server listens on it, or none can."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(1)
        try:
            asking.connect(str(uds))
        except (ConnectionRefusedError, FileNotFoundError):
            clear(uds)
            return
        except (TimeoutError, BlockingIOError):
            pass            # too many wait for it already
        except OSError as error:
            raise ConfigError(f"{uds} cannot be served on: {error.strerror or error}") from None
    raise ConfigError(f"another server is on {uds}")


def clear(uds: Path) -> None:
    """Removes a Unix socket that was left; nothing else."""
    if uds.is_socket():
        uds.unlink()


def _addressed(settings: Settings) -> Settings:
    """HOST and PORT, by their other names AUDIO_SCORE_SERVER_HOST and _PORT too."""
    others = {"host": settings.audio_score_server_host, "port": settings.audio_score_server_port}
    return settings.model_copy(update={name: value for name, value in others.items()
                                       if value is not None and name not in settings.model_fields_set})


def _sockets(uds: Path | None, shared: tuple[str, int] | None) -> list[socket.socket] | None:
    """The sockets to serve on; None: uvicorn makes its own."""
    if uds is None:
        return None
    private = socket.socket(socket.AF_UNIX)
    take(uds)
    private.bind(str(uds))
    return [private] + ([share(*shared)] if shared else [])


def share(host: str, port: int) -> socket.socket:
    """A socket bound to an address that others bind to as well."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    shared = socket.socket(family, kind, protocol)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind(address)
    return shared
