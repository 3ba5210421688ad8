"""A stand-in for Runpod's job host on loopback, and the worker's process against it: the SDK's true loop, without
Runpod.

    with RunpodHost() as host, host.worker(SKIP_MODEL_LOAD=1) as worker:
        job = host.submit({"inputs": [...]})
        host.result(job)        what the worker posted: {"output": {...}} or {"error": "...", ...}

The host runs in a thread of its own; every method may be called from a test. `posts` are all posts in the order in
which they were complete, progress too. A post that is not strict JSON (RFC 8259) becomes {"not_json": its beginning}.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from aiohttp import web

REPO = Path(__file__).resolve().parent.parent
HOLD_SEC = 0.5  # how long a poll without work is held open
_numbers = itertools.count(1)


def clean_env(**values) -> dict[str, str]:
    """An environment in which the worker finds nothing but these values."""
    kept = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ
    }
    return kept | {"PYTHONPATH": str(REPO)} | {name: str(value) for name, value in values.items()}


def alive_in_session(session: int) -> list[str]:
    """The command lines of the processes of a session, zombies left out: also of those that lost their parent."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _parent, _group, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


class Process:
    """A program in a session of its own, its output in a file. Ends, with all its children, with the `with` block."""

    def __init__(self, *arguments: str, env: dict[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__
        self._popen = subprocess.Popen(
            [sys.executable, "-u", *arguments],
            cwd=REPO,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def output(self) -> str:
        """All of stdout and stderr so far."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode(errors="replace")

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def terminate(self) -> None:
        self._popen.terminate()

    def wait(self, seconds: float = 20) -> int:
        """The exit code."""
        return self._popen.wait(seconds)

    def children(self, patience: float = 0) -> list[str]:
        """What is alive of its session beside itself; waits up to `patience` for that to be nothing."""
        until = time.monotonic() + patience
        while True:
            found = alive_in_session(self.pid)[1 if self.running else 0 :]
            if not found or time.monotonic() >= until:
                return found
            time.sleep(0.05)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            if self.running:
                self.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.wait(15)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait(5)
            self._log.close()


class RunpodHost:
    """The queue of one endpoint. `progress_delay`: how long a progress post takes to be complete."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, dict]] = []
        self.batches: list[list[str]] = []  # the ids of each batch taken
        self.progress_begun: list[str] = []  # the job of each progress post, when it came in
        self.progress_delay = 0.0
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="runpod-host", daemon=True)

    def __enter__(self) -> RunpodHost:
        self._thread.start()
        self._do(self._begin())
        return self

    def __exit__(self, *exc: object) -> None:
        self._do(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def env(self, **values) -> dict[str, str]:
        """The environment of a worker of this host, as Runpod sets it."""
        base = f"http://127.0.0.1:{self._port}/v2/ep"
        return clean_env(
            RUNPOD_WEBHOOK_GET_JOB=f"{base}/job-take/$ID?gpu=none",
            RUNPOD_WEBHOOK_POST_OUTPUT=f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            RUNPOD_WEBHOOK_POST_STREAM=f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            RUNPOD_WEBHOOK_PING=f"{base}/ping/$RUNPOD_POD_ID",
            RUNPOD_AI_API_KEY="key",
            RUNPOD_POD_ID="w1",
            RUNPOD_PING_INTERVAL=1000,
            RUNPOD_SKIP_AUTO_SYSTEM_CHECKS="true",
            RUNPOD_SKIP_GPU_CHECK="true",
        ) | {name: str(value) for name, value in values.items()}

    def worker(self, **values) -> Process:
        """A worker of this host with these environment variables beside Runpod's."""
        return Process("handler.py", env=self.env(**values))

    # Jobs

    def submit(self, payload, **beside) -> str:
        """Queues a job and returns its id. `beside`: what stands beside `input`, such as s3Config."""
        return self.submit_all([payload], **beside)[0]

    def submit_all(self, payloads: list, **beside) -> list[str]:
        """Queues jobs so that they can be taken as one batch."""
        jobs = [{"id": f"job-{next(_numbers)}", "input": payload, **beside} for payload in payloads]

        async def put() -> None:
            for job in jobs:
                self._queue.put_nowait(job)

        self._do(put())
        return [job["id"] for job in jobs]

    def stop(self, job: str) -> None:
        """Cancels a job, as DELETE or /cancel does."""
        self._loop.call_soon_threadsafe(self._stops.put_nowait, job)

    def result(self, job: str, seconds: float = 20) -> dict:
        """The final post of a job. Raises TimeoutError when there is none in time."""
        return self.until(lambda: self._final(job), seconds, f"a result of {job}")

    def has_result(self, job: str) -> bool:
        return self._final(job) is not None

    def posts_of(self, job: str) -> list[dict]:
        return [post for name, post in self.posts if name == job]

    def until(self, found, seconds: float = 20, what: str = "it"):
        """Waits for `found()` to be true and returns it."""
        with self._changed:
            if not self._changed.wait_for(found, seconds):
                raise TimeoutError(f"waited {seconds:g} s for {what}")
            return found()

    def _final(self, job: str) -> dict | None:
        return next((post for post in self.posts_of(job) if post.get("status") != "IN_PROGRESS"), None)

    # The server

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    async def _begin(self) -> None:
        self._queue: asyncio.Queue[dict] = asyncio.Queue()
        self._stops: asyncio.Queue[str] = asyncio.Queue()
        app = web.Application(client_max_size=1 << 28)
        app.router.add_get("/v2/ep/job-take/{worker}", self._take)
        app.router.add_get("/v2/ep/job-take-batch/{worker}", self._take_batch)
        app.router.add_get("/v2/ep/job-stop/{worker}", self._stop)
        app.router.add_post("/v2/ep/job-done/{worker}/{job}", self._done)
        app.router.add_get("/v2/ep/ping/{worker}", self._ping)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = self._runner.addresses[0][1]

    async def _jobs(self, most: int) -> list[dict]:
        try:
            jobs = [await asyncio.wait_for(self._queue.get(), HOLD_SEC)]
        except asyncio.TimeoutError:
            return []
        while len(jobs) < most and not self._queue.empty():
            jobs.append(self._queue.get_nowait())
        self.batches.append([job["id"] for job in jobs])
        return jobs

    async def _take(self, request: web.Request) -> web.Response:
        jobs = await self._jobs(1)
        return web.json_response(jobs[0]) if jobs else web.Response(status=204)

    async def _take_batch(self, request: web.Request) -> web.Response:
        jobs = await self._jobs(int(request.query["batch_size"]))
        return web.json_response(jobs) if jobs else web.Response(status=204)

    async def _stop(self, request: web.Request) -> web.Response:
        try:
            return web.json_response({"jobsToStop": [await asyncio.wait_for(self._stops.get(), HOLD_SEC)]})
        except asyncio.TimeoutError:
            return web.Response(status=204)

    async def _done(self, request: web.Request) -> web.Response:
        job, body = request.match_info["job"], await request.text()
        try:
            post = json.loads(body, parse_constant=_refuse)
            body.encode("utf-8")
        except ValueError:
            post = {"not_json": body[:80]}
        if post.get("status") == "IN_PROGRESS":
            with self._changed:
                self.progress_begun.append(job)
                self._changed.notify_all()
            await asyncio.sleep(self.progress_delay)
        with self._changed:
            self.posts.append((job, post))
            self._changed.notify_all()
        return web.Response(text="ok")

    async def _ping(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")


def _refuse(constant: str):
    raise ValueError(f"{constant} is not JSON")
