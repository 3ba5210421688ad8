"""A whole server of several processes on loopback for the tests: started as users start it, and looked at from
outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil

from worker.entrypoints.http.gateway.worker_process import ask

ROOT = Path(__file__).parent.parent
WEEK = (ROOT / "samples" / "week.wav").read_bytes()
# As `serve` does where there is no nginx.
WITHOUT_NGINX = (
    "import sys; from worker import logs; from worker.config import Settings; "
    "from worker.engine import placement; from worker.entrypoints.http.gateway import supervisor; "
    "s = Settings(); logs.configure(s); sys.exit(supervisor.run(s, placement.placements(s), None))"
)


class Host:
    """The supervisor's process and its server."""

    def __init__(self, data: Path, workers: int, code: str | None = None, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.data, self.workers = f"http://127.0.0.1:{self.port}", data, workers
        key = environment.get("API_KEY", "").strip(",").partition(",")[0]
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.Client(base_url=self.url, timeout=60, limits=httpx.Limits(max_connections=None))
        self.log = data / "log"
        data.mkdir(exist_ok=True)
        command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "worker", "serve"]
        values = {
            "WORKERS": str(workers),
            "PORT": str(self.port),
            "DATA_DIR": str(data),
            "SKIP_MODEL_LOAD": "1",
            "ALLOW_PRIVATE_URLS": "1",
        } | environment
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=os.environ | values, stderr=log, stdout=log)

    def ask_for(self, url: str) -> httpx.Response:
        return self.client.post(
            "/v1/audio/transcriptions", headers=self.headers, json={"model": "parakeet", "audio": {"url": url}}
        )

    @property
    def folder(self) -> Path:
        (folder,) = self.data.glob("gateway-*")
        return folder

    def stats(self) -> dict[str, Any]:
        """Asked again where nginx, told of new workers, has just closed the connection that was kept."""
        try:
            return self.client.get("/stats", headers=self.headers).json()
        except httpx.RemoteProtocolError:
            return self.client.get("/stats", headers=self.headers).json()

    def own_stats(self) -> list[dict[str, Any]]:
        """Each worker's own, by its private socket."""
        return [json.loads(ask(path, "/stats", self.headers)[1]) for path in sorted(self.folder.glob("[0-9]-*"))]

    def pids(self) -> list[int]:
        return [worker["pid"] for worker in self.stats()["workers"]]

    def all_ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            return [worker["state"] for worker in self.stats()["workers"]] == ["ready"] * self.workers
        return False

    def settle(self) -> None:
        """Waits until no nginx process is left that does not know all workers."""
        time.sleep(1)  # it may just be about to read of the last one
        self.until(lambda: not any("shutting down" in " ".join(one.cmdline()) for one in self.family()))

    def until(self, true: Callable[[], Any], sec: float = 40) -> None:
        deadline = time.monotonic() + sec
        while not true():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def transcribe(self, **options: Any) -> httpx.Response:
        return self.client.post(
            "/v1/audio/transcriptions",
            headers=self.headers,
            files={"file": ("week.wav", WEEK)},
            data=options or {"model": "parakeet"},
        )

    def family(self) -> list[psutil.Process]:
        """Every process of the server's."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextlib.contextmanager
def holding() -> Iterator[tuple[str, threading.Event]]:
    """The URL of a clip that is not sent before the event is set: whoever asks for it to be transcribed waits so
    long."""
    released = threading.Event()

    class Source(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            released.wait(60)
            self.send_response(200)
            self.send_header("Content-Length", str(len(WEEK)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its worker was killed
                self.wfile.write(WEEK)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Source)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/week.wav", released
    finally:
        released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def hosting(data: Path, workers: int = 3, code: str | None = None, **environment: str) -> Iterator[Host]:
    """A server with all its workers ready; at the end nothing of it may be left."""
    host = Host(data, workers, code, **environment)
    family: list[psutil.Process] = []
    try:
        host.until(host.all_ready, 120)
        family = host.family()
        yield host
    finally:
        if host.process.poll() is None:
            family = host.family()
            host.end()
        gone(family)


def gone(family: list[psutil.Process], sec: float = 20) -> None:
    """Asserts that these processes end."""
    _, left = psutil.wait_procs(family, sec)
    shown = [(one.pid, one.cmdline()) for one in left if one.status() != psutil.STATUS_ZOMBIE]
    for one in left:
        one.kill()
    assert not shown
