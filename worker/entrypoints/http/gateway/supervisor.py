"""Several server processes behind one port: start them, replace those that exit, end them all.

    supervisor ─┬─ nginx, or no gateway: then all workers share the port
                ├─ worker 0 … N-1, each a process of worker.entrypoints.http.serve
                └─ control: metrics and admission, on a thread of this process

    SIGTERM, Ctrl-C     nginx accepts no more requests and finishes those it has, then the workers end; a second signal
                        ends everything at once
    SIGHUP              each worker in turn drains and is replaced, while the others serve

A worker starts to load after the worker before it has loaded, so only one model at a time takes host memory and disk
bandwidth. Requests are accepted from the start; the first worker that is ready serves them.

A worker is replaced if it exits, hangs, loses its device, or cannot load its model. The pause before the replacement
doubles with each failure in a row. If GIVE_UP workers have exited and none was ever ready, the supervisor reports it
and exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from worker import child
from worker.config import Settings
from worker.engine.placement import Placement
from worker.entrypoints.http import sockets
from worker.entrypoints.http.gateway import control, nginx
from worker.entrypoints.http.gateway.worker_process import Worker
from worker.errors import ConfigError

log = logging.getLogger(__name__)

GIVE_UP = 5
LONGEST_PAUSE_SEC = 30.0
STABLE_SEC = 60.0  # a worker that ran for longer does not count as failing in a row
LOOK_LOADING_SEC = 0.1  # how often the supervisor checks a worker that is loading
LOOK_SEC = 2.0  # how often the supervisor checks a worker that has loaded
_PATH_BYTES = 100  # the longest path of a Unix socket; the systems' limits are 103 on macOS and 107 on Linux


def run(settings: Settings, placements: Sequence[Placement], gateway: Path | None) -> int:
    """Serve with a worker on each placement until a signal ends the server, and return the exit code.

    `gateway` is the path of nginx; without it all workers listen on one port. Raises ConfigError if the settings rule
    that out.
    """
    if gateway is None and settings.audio_score_server_socket is not None:
        raise ConfigError(
            "Several workers on one Unix socket (AUDIO_SCORE_SERVER_SOCKET) require nginx. Install it or set WORKERS=1."
        )
    if settings.audio_score_server_socket is not None:
        sockets.claim(settings.audio_score_server_socket)
    if settings.port == 0:
        with sockets.bind_shared(settings.host, 0) as free:
            settings = settings.model_copy(update={"port": free.getsockname()[1]})
    with _folder(settings.make_data_dir().resolve()) as folder:
        return asyncio.run(Supervisor(settings, placements, folder, gateway).run())


class Supervisor:
    """The processes of one server. `folder` is used by this server only."""

    def __init__(self, settings: Settings, placements: Sequence[Placement], folder: Path, gateway: Path | None) -> None:
        self._settings, self._folder, self._gateway = settings, folder, gateway
        shared = None if gateway else (settings.host, settings.port)
        rate = None if gateway else settings.rate_limit  # behind nginx, `control` counts for all workers
        self._workers = [
            Worker(number, placement.with_settings(rate_limit=rate), folder, shared)
            for number, placement in enumerate(placements)
        ]
        self._nginx: asyncio.subprocess.Process | None = None
        self._pid_file = folder / "nginx.pid"  # exists while nginx handles signals
        self._loading = asyncio.Lock()
        self._end = asyncio.Event()
        self._rolling: asyncio.Task[None] | None = None
        self._listed: list[Path] = []
        self._deaths, self._served = 0, False  # exits of all workers; whether any worker was ever ready
        self._code = 0

    async def run(self) -> int:
        """Serve until a signal or a fault ends the server. Return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_terminate)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
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
            if any(task.done() for task in tasks):  # a task ends only if it fails
                self._code = 1
            for task in [*tasks, *([self._rolling] if self._rolling else [])]:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception):
                    log.error("internal error of the supervisor", exc_info=outcome)
            await self._stop_nginx()
            await asyncio.gather(*(worker.stop() for worker in self._workers))
        return self._code

    # Workers

    async def _keep(self, worker: Worker) -> None:
        """Run one process of the worker after another."""
        deaths = 0
        while True:
            async with self._loading:
                await worker.start()
                watch = asyncio.create_task(self._watch(worker))
                ended = asyncio.create_task(worker.wait())
                while not ended.done() and worker.loading:
                    await asyncio.wait({ended}, timeout=LOOK_LOADING_SEC)
            try:
                code = await ended
            finally:
                watch.cancel()
            replaced = worker.leaving
            worker.state = "down"
            self._list()
            if replaced:
                deaths = 0
                continue
            stable = worker.served and time.monotonic() - worker.started > STABLE_SEC
            deaths = 1 if stable else deaths + 1
            await self._on_exit(worker, code, deaths)

    async def _watch(self, worker: Worker) -> None:
        """Keep the worker's state up to date, and end a process that can no longer serve."""
        while True:
            await worker.refresh()
            self._list()
            self._served |= worker.served
            if worker.hung:
                log.error("worker %d does not respond; replacing it", worker.number)
                worker.kill()
            elif worker.state == "unhealthy" and not worker.served:
                log.error("worker %d cannot load its model; replacing it", worker.number)
                await worker.stop()
            elif worker.lost:
                log.error("worker %d has lost its device; replacing it", worker.number)
                await worker.stop()
            await asyncio.sleep(LOOK_LOADING_SEC if worker.loading else LOOK_SEC)

    async def _on_exit(self, worker: Worker, code: int, deaths: int) -> None:
        """Log the exit and wait before the next start. `deaths` is the number of the worker's exits in a row."""
        how = f"on signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        pause = min(LONGEST_PAUSE_SEC, 0.25 * 2 ** (deaths - 1))
        log.error(
            "worker %d (%s) exited %s%s; it restarts in %g s",
            worker.number,
            worker.placement.name,
            how,
            f", {deaths} times in a row" if deaths > 1 else "",
            pause,
        )
        self._deaths += 1
        if self._deaths >= GIVE_UP and not self._served:
            log.error("%d workers have exited and none was ever ready; giving up", self._deaths)
            self._code = 1
            self._end.set()
        await asyncio.sleep(pause)

    async def _roll(self) -> None:
        """Replace each worker in turn. Stop if a new process does not become ready."""
        left = list(self._workers)
        while left:
            # Workers that are not ready come first, so that a worker that is the only one ready keeps serving.
            worker = min(left, key=lambda worker: worker.ready)
            left.remove(worker)
            before = worker.starts
            log.info("replacing worker %d", worker.number)
            if worker.leave():
                self._list()
                await worker.stop(patiently=True)
            while worker.starts == before or worker.loading:
                await asyncio.sleep(LOOK_LOADING_SEC)
            if not worker.ready:
                log.error(
                    "worker %d is %s after its replacement; the remaining workers are not replaced",
                    worker.number,
                    worker.state,
                )
                return
        log.info("all %d workers have been replaced", len(self._workers))

    # nginx

    def _list(self) -> None:
        """Write nginx's configuration and make nginx reload it, if the workers to list have changed."""
        if self._gateway is None or self._wanted() == self._listed:
            return
        try:
            self._write()
        except OSError as error:  # a full disk must not end the server; the next refresh of a worker tries again
            log.error("cannot write the configuration of nginx: %s", error.strerror)  # noqa: TRY400
            return
        if self._nginx is not None and self._pid_file.exists():
            self._nginx.send_signal(signal.SIGHUP)

    def _wanted(self) -> list[Path]:
        """Return the sockets of the workers that are ready. If none is, return those of the workers that respond."""
        ready = [worker.socket for worker in self._workers if worker.state == "ready"]
        return ready or [worker.socket for worker in self._workers if worker.state in ("loading", "unhealthy")]

    def _write(self) -> None:
        wanted = self._wanted()
        written = self._folder / "nginx.conf.new"
        written.write_text(nginx.configuration(self._settings, self._folder, wanted))
        written.replace(self._folder / "nginx.conf")
        self._listed = wanted

    async def _keep_nginx(self, gateway: Path) -> None:
        """Run nginx, and restart it if it exits. Return if it keeps exiting or rejects its configuration."""
        deaths = 0
        while True:
            started = time.monotonic()
            with child.Lifeline() as lifeline:
                self._nginx = await asyncio.create_subprocess_exec(
                    gateway,
                    "-p",
                    self._folder,
                    "-c",
                    self._folder / "nginx.conf",
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[lifeline.descriptor],
                )
                lifeline.tie(self._nginx, signal.SIGTERM)  # nginx then ends its own processes
            read = self._listed
            while self._nginx.returncode is None and not self._pid_file.exists():
                await asyncio.sleep(0.01)
            if self._listed != read and self._nginx.returncode is None:
                self._nginx.send_signal(signal.SIGHUP)
            code = await self._nginx.wait()
            self._pid_file.unlink(missing_ok=True)
            _kill_group(self._nginx.pid)  # nginx's worker processes outlive a master that was killed
            if self._settings.audio_score_server_socket is not None:
                sockets.remove(self._settings.audio_score_server_socket)
            deaths = 1 if time.monotonic() - started > STABLE_SEC else deaths + 1
            log.error("nginx exited with code %d", code)
            if deaths >= GIVE_UP or (deaths == 1 and code > 0):
                return
            await asyncio.sleep(0.25 * 2 ** (deaths - 1))

    async def _stop_nginx(self) -> None:
        """Close the port, let nginx finish its requests within DRAIN_SEC, and end it."""
        if self._nginx is None:
            return
        if self._nginx.returncode is None:
            self._nginx.send_signal(signal.SIGQUIT)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._nginx.wait(), sockets.DRAIN_SEC)
        _kill_group(self._nginx.pid)

    # Signals

    def _on_terminate(self) -> None:
        """End the server: gracefully at the first signal, at once at the second."""
        if not self._end.is_set():
            log.info("shutting down")
            self._end.set()
            return
        for worker in self._workers:
            worker.kill()
        if self._nginx is not None:
            _kill_group(self._nginx.pid)

    def _on_hangup(self) -> None:
        """Replace all workers, unless a replacement is under way."""
        if self._rolling is None or self._rolling.done():
            self._rolling = asyncio.create_task(self._roll())
        else:
            log.info("the workers are already being replaced")


@contextlib.contextmanager
def _folder(data_dir: Path) -> Iterator[Path]:
    """Yield a folder for one server, accessible only to its user, and remove it afterward.

    Folders that killed servers left behind are removed first; no process holds their lock. Raises ConfigError if the
    path is too long for the workers' Unix sockets.
    """
    for left in data_dir.glob("gateway-*"):
        with contextlib.suppress(OSError), (left / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="gateway-", dir=data_dir))
    try:
        if len(os.fsencode(folder / "00-0000")) > _PATH_BYTES:
            raise ConfigError(
                f"DATA_DIR={data_dir} is too long a path for the workers' sockets, which may have {_PATH_BYTES} bytes. "
                "Choose a shorter DATA_DIR."
            )
        with (folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
