"""A server in a process of its own for the tests: how much memory it takes, and for how long it is silent."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parent.parent


class Served:
    """The process, and what was seen of it since the last `watch`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.url, self.log = process, port, f"http://127.0.0.1:{port}", log
        self.silent_sec, self.grown = 0.0, 0

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Asks /health/live all the time. Sets `silent_sec`, the longest wait, and `grown`, by how many bytes the
        memory of the process was above its beginning at most."""
        before = self._memory()
        (Path("/proc") / str(self.process.pid) / "clear_refs").write_text("5")  # the peak is counted anew
        ended, waits = threading.Event(), [0.0]

        def ask() -> None:
            while not ended.is_set():
                started = time.monotonic()
                assert httpx.get(f"{self.url}/health/live", timeout=60).status_code == 200
                waits.append(time.monotonic() - started)
                time.sleep(0.02)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.silent_sec, self.grown = max(waits), self._memory("VmHWM") - before

    def _memory(self, line: str = "VmRSS") -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (found,) = (row for row in status.splitlines() if row.startswith(f"{line}:"))
        return int(found.split()[1]) * 1024

    def open_files(self) -> int:
        return psutil.Process(self.process.pid).num_fds()


@contextlib.contextmanager
def served(data: Path, *, files: int | None = None, **environment: str) -> Iterator[Served]:
    """`serve` with a model that is no model. `files`: how many files it may open."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data.mkdir(exist_ok=True)
    values = {"PORT": str(port), "DATA_DIR": str(data), "SKIP_MODEL_LOAD": "1"} | environment
    values["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the system at once
    limit = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"] if files else []
    with (data / "log").open("wb") as log:
        process = subprocess.Popen(
            [*limit, sys.executable, "-m", "worker", "serve"],
            cwd=ROOT,
            env=os.environ | values,
            stdout=log,
            stderr=log,
        )
    server = Served(process, port, data / "log")
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{server.url}/ping").status_code == 200:
                    break
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait(60)
