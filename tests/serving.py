"""A real server on loopback for the tests, in a thread of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import uvicorn
from starlette.types import ASGIApp

from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.http import serve
from worker.entrypoints.http.app import create_app


@contextlib.contextmanager
def serving(
    settings: Settings,
    engine: Engine | None = None,
    *,
    loop: str = "auto",
    wait: bool = True,
    app: ASGIApp | None = None,
    wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> Iterator[str]:
    """The base URL of a server that runs until the end of the block. `wait`: until its model has loaded, or could not
    be. `app`: serves in place of Aviary's. `wrap`: what stands between the server and the application."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        config = serve.config(wrap(app or create_app(settings, engine)), settings, behind_proxy=False)
        config.loop, config.lifespan = loop, "off" if app else "on"
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.started
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        while wait and app is None and httpx.get(f"{url}/ping").status_code == 204 and time.monotonic() < deadline:
            time.sleep(0.02)
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
