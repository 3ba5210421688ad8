"""A worker's process as the supervisor sees it: started, watched, asked, ended.

It runs `python -m worker.entrypoints.http.serve`, whose stdin is a pipe. The pipe's first line is the plan; nothing
follows, and when the pipe ends the supervisor is gone, so the worker drains and exits as on SIGTERM.
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
HUNG_SEC = (60.0, 600.0)  # of silence; while it loads, when the interpreter may be held for long


class Worker:
    """One of the workers: its seat, and its process of the moment, each of which has a socket of its own in `folder`.
    `shared`: an address that all workers listen to beside it. For one event loop; `ask`, `state` and `socket` for any
    thread."""

    def __init__(self, number: int, placement: Placement, folder: Path, shared: tuple[str, int] | None = None) -> None:
        self.number, self.placement = number, placement
        self._folder, self._shared = folder, shared
        self._process: asyncio.subprocess.Process | None = None
        self.state: State = "down"
        self.lost = self.hung = self.served = False  # its device is; it does not answer; it was ready once
        self.starts = 0
        self.started = self._heard = 0.0  # on time.monotonic()

    @property
    def socket(self) -> Path:
        return self._folder / f"{self.number}-{self.starts}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def loading(self) -> bool:
        return self.state in ("starting", "loading")

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    @property
    def sent_away(self) -> bool:
        return self.state == "leaving"

    def leave(self) -> bool:
        """Nobody is to be sent to this process any more; False when there is none."""
        if self.state != "down":
            self.state = "leaving"
        return self.sent_away

    async def start(self) -> None:
        """Starts a process; `wait` must have told that there is none."""
        self.starts += 1
        self.state, self.lost, self.hung, self.served = "starting", False, False, False
        self.started = self._heard = time.monotonic()
        plan = {
            "settings": self.placement.settings.model_dump(mode="json"),
            "socket": str(self.socket),
            "cores": self.placement.cores,
            "shared": self._shared,
            "control": str(self._folder / "control"),
        }
        self._process = await asyncio.create_subprocess_exec(
            *child.command("worker.entrypoints.http.serve"),
            env=child.environment(**self.placement.environment),
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # Ctrl-C is for the supervisor alone
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(plan).encode() + b"\n")

    async def wait(self) -> int:
        """The exit code of the process, once it has ended; below 0: the signal that ended it."""
        assert self._process is not None
        code = await self._process.wait()
        self.socket.unlink(missing_ok=True)
        return code

    async def stop(self, *, patiently: bool = False) -> None:
        """Ends the process: what is under way is finished first, within DRAIN_SEC or, patiently,
        REQUEST_TIMEOUT_SEC."""
        if self._process is None or self._process.returncode is not None:
            return
        listens = patiently and self.socket.exists()  # before that it would not know the signal
        self._process.send_signal(signal.SIGHUP if listens else signal.SIGTERM)
        drain_sec = self.placement.settings.request_timeout_sec if listens else sockets.DRAIN_SEC
        try:
            await asyncio.wait_for(self._process.wait(), drain_sec + KILL_SEC)
        except asyncio.TimeoutError:
            log.warning("worker %d does not end, and is killed", self.number)
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def look(self) -> None:
        """Brings `state`, `lost`, `hung` and `served` up to date."""
        try:
            status, body = await asyncio.to_thread(self.ask, "/health/live", wait_sec=ASK_SEC)
            state = _STATES[json.loads(body)["status"]]
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            silent_sec = time.monotonic() - self._heard  # not listening yet, too busy to say, or hung
            self.hung = silent_sec > HUNG_SEC[self.loading] and not self.sent_away
            if self.ready and silent_sec > ASK_SEC:
                self.state = "unhealthy"
            return
        self._heard = time.monotonic()
        if self.state not in ("leaving", "down"):
            self.state, self.lost, self.served = state, status == 503, self.served or state == "ready"

    def ask(
        self, path: str, headers: Mapping[str, str | bytes] | None = None, wait_sec: float = ASK_SEC
    ) -> tuple[int, bytes]:
        """GET path → status and body. Raises OSError, HTTPException."""
        return ask(self.socket, path, headers, wait_sec)


def ask(
    path_of_socket: Path, path: str, headers: Mapping[str, str | bytes] | None = None, wait_sec: float = ASK_SEC
) -> tuple[int, bytes]:
    """GET path from who serves on the Unix socket → status and body. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection("worker", timeout=wait_sec)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(wait_sec)
        connection.sock.connect(str(path_of_socket))
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
