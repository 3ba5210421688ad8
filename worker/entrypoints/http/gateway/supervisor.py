"""Several server processes behind one port: starts them one after another, replaces those that die, ends them all.

    SIGTERM, Ctrl-C     nginx takes nothing more and finishes what it has, then the workers end; a second one: at once
    SIGHUP              each worker in turn drains and is replaced, while the others serve

A worker begins to load when the one before it has loaded, so that memory and disks are asked for one model at a time;
requests are taken from the start, and answered from the first worker on. One that dies, or is ended because it hangs,
has lost its device or cannot load its model, is replaced, after a pause that doubles while it goes on dying; when all
have died GIVE_UP times without one of them ever being ready, the supervisor says so and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from worker.config import Settings
from worker.engine.placement import Placement
from worker.entrypoints.http import sockets
from worker.entrypoints.http.gateway import control, nginx
from worker.entrypoints.http.gateway.worker_process import Worker
from worker.errors import ConfigError

log = logging.getLogger(__name__)

GIVE_UP = 5
LONGEST_PAUSE_SEC = 30.0
STABLE_SEC = 60.0  # a worker that lived so long was not about to die anyway
LOOK_SEC = (0.1, 2.0)  # how often a worker is looked at, until it has loaded and after
_PATH_BYTES = 100  # of a Unix socket: 103 on macOS, 107 on Linux


def run(settings: Settings, placements: Sequence[Placement], gateway: Path | None) -> int:
    """Serves with a worker on each seat, behind the nginx `gateway` or, without it, all on one port. Returns the exit
    code. Raises ConfigError for what cannot be served so."""
    if gateway is None and settings.audio_score_server_socket is not None:
        raise ConfigError("several workers on one Unix socket (AUDIO_SCORE_SERVER_SOCKET) need nginx")
    if settings.audio_score_server_socket is not None:
        sockets.claim(settings.audio_score_server_socket)
    if settings.port == 0:
        with sockets.bind_shared(settings.host, 0) as free:
            settings = settings.model_copy(update={"port": free.getsockname()[1]})
    with _folder(settings.make_data_dir().resolve()) as folder:
        return asyncio.run(Supervisor(settings, placements, folder, gateway).run())


class Supervisor:
    """The processes of one server, in `folder`, which is theirs alone."""

    def __init__(self, settings: Settings, placements: Sequence[Placement], folder: Path, gateway: Path | None) -> None:
        self._settings, self._folder, self._gateway = settings, folder, gateway
        shared = None if gateway else (settings.host, settings.port)
        rate = None if gateway else settings.rate_limit  # the gateway keeps one count for all
        self._workers = [
            Worker(number, placement.with_settings(rate_limit=rate), folder, shared)
            for number, placement in enumerate(placements)
        ]
        self._nginx: asyncio.subprocess.Process | None = None
        self._pid_file = folder / "nginx.pid"  # is there when nginx can take signals
        self._loading = asyncio.Lock()
        self._end = asyncio.Event()
        self._rolling: asyncio.Task[None] | None = None
        self._listed: list[Path] = []
        self._deaths, self._served = 0, False  # of all workers; whether one was ever ready
        self._code = 0

    async def run(self) -> int:
        """Serves until it is told to end. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_end)
        loop.add_signal_handler(signal.SIGHUP, self._told_to_roll)
        with control.serving(control.Control(self._settings, self._workers), self._folder / "control"):
            log.info(
                "serving on %s with %d workers (%s)%s",
                nginx.listen(self._settings),
                len(self._workers),
                "; ".join(worker.placement.name for worker in self._workers),
                "" if self._gateway else ", without nginx",
            )
            if self._gateway is None:
                log.warning("%s", nginx.MISSING)
            tasks = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
            if self._gateway is not None:
                self._write()
                tasks.append(asyncio.create_task(self._keep_nginx(self._gateway)))
            ending = asyncio.create_task(self._end.wait())
            await asyncio.wait({ending, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            self._end.set()
            self._code |= any(task.done() for task in tasks)  # none of them ends but by a fault
            for task in [*tasks, *([self._rolling] if self._rolling else [])]:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception):
                    log.error("a fault of the supervisor", exc_info=outcome)
            await self._stop_nginx()
            await asyncio.gather(*(worker.stop() for worker in self._workers))
        return self._code

    # Workers

    async def _keep(self, worker: Worker) -> None:
        """One process after another on the worker's seat."""
        deaths = 0
        while True:
            async with self._loading:
                await worker.start()
                watch = asyncio.create_task(self._watch(worker))
                ended = asyncio.create_task(worker.wait())
                while not ended.done() and worker.loading:
                    await asyncio.wait({ended}, timeout=LOOK_SEC[0])
            try:
                code = await ended
            finally:
                watch.cancel()
            sent = worker.sent_away
            worker.state = "down"
            self._list()
            if sent:
                deaths = 0
                continue
            stable = worker.served and time.monotonic() - worker.started > STABLE_SEC
            deaths = 1 if stable else deaths + 1
            await self._on_exit(worker, code, deaths)

    async def _watch(self, worker: Worker) -> None:
        """Keeps the worker's state up to date; ends a process that is of no use any more."""
        while True:
            await worker.look()
            self._list()
            self._served |= worker.served
            if worker.hung:
                log.error("worker %d does not answer any more, and is replaced", worker.number)
                worker.kill()
            elif worker.state == "unhealthy" and not worker.served:
                log.error("worker %d cannot load its model, and is replaced", worker.number)
                await worker.stop()
            elif worker.lost:
                log.error("worker %d has lost its device, and is replaced", worker.number)
                await worker.stop()
            await asyncio.sleep(LOOK_SEC[not worker.loading])

    async def _on_exit(self, worker: Worker, code: int, deaths: int) -> None:
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        pause = min(LONGEST_PAUSE_SEC, 0.25 * 2 ** (deaths - 1))
        log.error(
            "worker %d (%s) has ended %s%s; a new one starts in %g s",
            worker.number,
            worker.placement.name,
            how,
            f", for the {deaths}th time in a row" if deaths > 2 else "",
            pause,
        )
        self._deaths += 1
        if self._deaths >= GIVE_UP and not self._served:
            log.error("no worker was ever ready, and %d have ended: giving up", self._deaths)
            self._code = 1
            self._end.set()
        await asyncio.sleep(pause)

    async def _roll(self) -> None:
        """Replaces each worker in turn, those that are not ready first; stops where a new one does not become ready."""
        left = list(self._workers)
        while left:
            worker = min(left, key=lambda one: one.ready)  # the only one that is ready goes last: it serves meanwhile
            left.remove(worker)
            before = worker.starts
            log.info("worker %d is being replaced", worker.number)
            if worker.leave():
                self._list()
                await worker.stop(patiently=True)
            while worker.starts == before or worker.loading:
                await asyncio.sleep(LOOK_SEC[0])
            if not worker.ready:
                log.error("worker %d is %s: the others are left as they are", worker.number, worker.state)
                return
        log.info("all %d workers have been replaced", len(self._workers))

    # nginx

    def _list(self) -> None:
        """Tells nginx which workers there are, if that has changed."""
        if self._gateway is None or self._wanted() == self._listed:
            return
        try:
            self._write()
        except OSError as error:  # a full disk ends no server: the next look at a worker tries again
            log.error("nginx cannot be told of the workers: %s", error.strerror)  # noqa: TRY400
            return
        if self._nginx is not None and self._pid_file.exists():
            self._nginx.send_signal(signal.SIGHUP)

    def _wanted(self) -> list[Path]:
        """The workers that are ready; as long as none is, those that can say so."""
        ready = [worker.socket for worker in self._workers if worker.state == "ready"]
        return ready or [worker.socket for worker in self._workers if worker.state in ("loading", "unhealthy")]

    def _write(self) -> None:
        wanted = self._wanted()
        written = self._folder / "nginx.conf.new"
        written.write_text(nginx.configuration(self._settings, self._folder, wanted))
        written.replace(self._folder / "nginx.conf")
        self._listed = wanted

    async def _keep_nginx(self, gateway: Path) -> None:
        deaths = 0
        while True:
            started = time.monotonic()
            self._nginx = await asyncio.create_subprocess_exec(
                gateway,
                "-p",
                self._folder,
                "-c",
                self._folder / "nginx.conf",
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                preexec_fn=_end_with_parent(),
            )
            read = self._listed
            while self._nginx.returncode is None and not self._pid_file.exists():
                await asyncio.sleep(0.01)
            if self._listed != read and self._nginx.returncode is None:
                self._nginx.send_signal(signal.SIGHUP)
            code = await self._nginx.wait()
            self._pid_file.unlink(missing_ok=True)
            _kill_group(self._nginx.pid)  # its own processes outlive a master that was killed
            if self._settings.audio_score_server_socket is not None:
                sockets.remove(self._settings.audio_score_server_socket)
            deaths = 1 if time.monotonic() - started > STABLE_SEC else deaths + 1
            log.error("nginx has ended (%d)", code)
            if deaths >= GIVE_UP or (deaths == 1 and code > 0):
                return
            await asyncio.sleep(0.25 * 2 ** (deaths - 1))

    async def _stop_nginx(self) -> None:
        """Closes the port; what is under way is finished within DRAIN_SEC."""
        if self._nginx is None:
            return
        if self._nginx.returncode is None:
            self._nginx.send_signal(signal.SIGQUIT)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._nginx.wait(), sockets.DRAIN_SEC)
        _kill_group(self._nginx.pid)

    # Signals

    def _told_to_end(self) -> None:
        if not self._end.is_set():
            log.info("ending")
            self._end.set()
            return
        for worker in self._workers:
            worker.kill()
        if self._nginx is not None:
            _kill_group(self._nginx.pid)

    def _told_to_roll(self) -> None:
        if self._rolling is None or self._rolling.done():
            self._rolling = asyncio.create_task(self._roll())
        else:
            log.info("the workers are being replaced already")


@contextlib.contextmanager
def _folder(data_dir: Path) -> Iterator[Path]:
    """A folder for one server, open to nobody else, gone afterwards. What killed servers have left goes as well."""
    for left in data_dir.glob("gateway-*"):
        with contextlib.suppress(OSError), (left / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="gateway-", dir=data_dir))
    try:
        if len(os.fsencode(folder / "00-0000")) > _PATH_BYTES:
            raise ConfigError(
                f"DATA_DIR={data_dir} is too long a path for the workers' sockets: {_PATH_BYTES} bytes in all"
            )
        with (folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end_with_parent() -> Callable[[], Any] | None:
    """What a process runs before it becomes nginx, so that it quits when this one is killed (on Linux)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
