"""A worker's process from the supervisor's side: start it, watch it, send it requests, end it.

    supervisor ── stdin: the plan, one line of JSON ──▶ python -m worker.entrypoints.http.serve
               ── Unix socket: GET /health/live, /metrics, /stats ──▶

Nothing follows the plan on stdin. The end of stdin means that the supervisor has exited; the worker then exits at once.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from worker import child
from worker.engine.placement import Placement
from worker.entrypoints.http import sockets

log = logging.getLogger(__name__)

State = Literal["down", "starting", "loading", "ready", "unhealthy", "leaving"]
_STATES: dict[str, State] = {"healthy": "ready", "loading": "loading", "unhealthy": "unhealthy"}
KILL_SEC = 10
ASK_SEC = 10.0
HUNG_SEC = 60.0  # a loaded worker that is silent for longer is hung
HUNG_LOADING_SEC = 600.0  # the same for a worker that loads, because loading may hold the interpreter


class Worker:
    """One of the workers: its placement, and its current process.

    Each process has a Unix socket of its own in `folder`. `shared` is an address that all workers listen on as well.
    The methods are for one event loop; `ask`, `state` and `socket` are for any thread.

    `lost` means that the process has lost its device, `hung` that it does not respond, and `served` that it was ready
    at some time. `starts` counts the processes, and `started` is the time of the last start (time.monotonic).
    """

    def __init__(self, number: int, placement: Placement, folder: Path, shared: tuple[str, int] | None = None) -> None:
        self.number, self.placement = number, placement
        self._folder, self._shared = folder, shared
        self._process: asyncio.subprocess.Process | None = None
        self.state: State = "down"
        self.lost = self.hung = self.served = False
        self.starts = 0
        self.started = self._responded = 0.0

    @property
    def socket(self) -> Path:
        """The Unix socket of the current process."""
        return self._folder / f"{self.number}-{self.starts}"

    @property
    def pid(self) -> int | None:
        """The id of the current process; None before the first start."""
        return self._process.pid if self._process else None

    @property
    def loading(self) -> bool:
        """Whether the process has not finished loading its models."""
        return self.state in ("starting", "loading")

    @property
    def ready(self) -> bool:
        """Whether the process serves requests."""
        return self.state == "ready"

    @property
    def leaving(self) -> bool:
        """Whether the process gets no more requests, because it is being replaced."""
        return self.state == "leaving"

    def leave(self) -> bool:
        """Take the process out of rotation. Return False if there is no process."""
        if self.state != "down":
            self.state = "leaving"
        return self.leaving

    async def start(self) -> None:
        """Start a process. `wait` must have returned for the process before it."""
        self.starts += 1
        self.state, self.lost, self.hung, self.served = "starting", False, False, False
        self.started = self._responded = time.monotonic()
        plan = {
            "settings": self.placement.settings.model_dump(mode="json"),
            "socket": str(self.socket),
            "cores": self.placement.cores,
            "shared": self._shared,
            "control": str(self._folder / "control"),
        }
        with child.Lifeline() as lifeline:
            self._process = await asyncio.create_subprocess_exec(
                *child.command("worker.entrypoints.http.serve"),
                env=child.environment(**self.placement.environment),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=[lifeline.descriptor],
                start_new_session=True,  # so that Ctrl-C reaches only the supervisor
            )
            lifeline.tie(self._process)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(plan).encode() + b"\n")

    async def wait(self) -> int:
        """Wait for the end of the process, and return its exit code: below 0, the signal that ended it."""
        assert self._process is not None
        code = await self._process.wait()
        self.socket.unlink(missing_ok=True)
        return code

    async def stop(self, *, patiently: bool = False) -> None:
        """End the process.

        The process first finishes its accepted requests, within DRAIN_SEC or, if `patiently`, REQUEST_TIMEOUT_SEC. If
        it has not ended KILL_SEC later, it is killed.
        """
        if self._process is None or self._process.returncode is not None:
            return
        listens = patiently and self.socket.exists()  # before it listens, the process does not handle SIGHUP
        self._process.send_signal(signal.SIGHUP if listens else signal.SIGTERM)
        drain_sec = self.placement.settings.request_timeout_sec if listens else sockets.DRAIN_SEC
        try:
            await asyncio.wait_for(self._process.wait(), drain_sec + KILL_SEC)
        except asyncio.TimeoutError:
            log.warning("worker %d did not end in time; killing it", self.number)
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """Kill the process if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def refresh(self) -> None:
        """Update `state`, `lost`, `hung` and `served` from the process's response to GET /health/live."""
        try:
            status, body = await asyncio.to_thread(self.ask, "/health/live", wait_sec=ASK_SEC)
            state = _STATES[json.loads(body)["status"]]
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            silent_sec = time.monotonic() - self._responded  # not listening yet, too busy to respond, or hung
            allowed_sec = HUNG_LOADING_SEC if self.loading else HUNG_SEC
            self.hung = silent_sec > allowed_sec and not self.leaving
            if self.ready and silent_sec > ASK_SEC:
                self.state = "unhealthy"
            return
        self._responded = time.monotonic()
        if self.state not in ("leaving", "down"):
            self.state, self.lost, self.served = state, status == 503, self.served or state == "ready"

    def ask(
        self, path: str, headers: Mapping[str, str | bytes] | None = None, wait_sec: float = ASK_SEC
    ) -> tuple[int, bytes]:
        """Send GET `path` to the process. Return status and body. Raises OSError and HTTPException."""
        return ask(self.socket, path, headers, wait_sec)


def ask(
    path_of_socket: Path, path: str, headers: Mapping[str, str | bytes] | None = None, wait_sec: float = ASK_SEC
) -> tuple[int, bytes]:
    """Send GET `path` to the server on a Unix socket. Return status and body. Raises OSError and HTTPException.

    `wait_sec` limits each wait for the server.
    """
    connection = http.client.HTTPConnection("worker", timeout=wait_sec)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(wait_sec)
        connection.sock.connect(str(path_of_socket))
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
