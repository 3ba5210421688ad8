"""An engine in this process as an executor. Its jobs last as long as the process."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from worker import catalog
from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.mcp.executor import Executor, Json, Report, Task, not_completed
from worker.entrypoints.tasks import Tasks
from worker.errors import AviaryError, Cancelled, JobNotFound, QueueFull, WrongJobState
from worker.faults import report as report_error
from worker.protocol.work import Work
from worker.types import Progress

KEPT = 256  # finished jobs


@dataclass
class _Job:
    """A job that runs or has ended. `progress` is the last that the engine reported."""

    task: Task
    work: Work
    future: Future[Any] | None = None
    progress: Progress | None = None

    @property
    def error(self) -> AviaryError | None:
        """The error of a job that has ended."""
        assert self.future is not None
        if self.future.cancelled():
            return Cancelled("the job was canceled")
        if (error := self.future.exception()) is not None:
            return report_error(error, during="this job")
        return self.work.error(self.future.result())

    @property
    def status(self) -> str:
        """The state, in the words of the server's jobs."""
        if self.future is None or not self.future.done():
            return "processing"
        return "completed" if self.error is None else "failed"


class LocalExecutor(Executor):
    """An engine, which starts to load its model at once. Use it from one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine = Engine(settings)
        self._tasks = Tasks(settings, self._engine)
        self._engine.load(catalog.find(settings.meaning(settings.default_model), settings.places).id)
        self._jobs: dict[str, _Job] = {}

    @override
    async def run(self, task: Task, audio: str, options: Mapping[str, Any], report: Report) -> Json:
        work = await self._prepare(task, audio, options)
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Progress | None]()

        def send(event: Progress | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(events.put_nowait, event)

        future = work.start(on_progress=send)
        future.add_done_callback(lambda _future: send(None))
        done = -1.0
        try:
            while (event := await events.get()) is not None:
                if event.audio_sec_done is not None and event.audio_sec_done > done:
                    done = event.audio_sec_done
                    await report(done, event.audio_sec_total)
        finally:
            future.cancel()
        return await self._result(work, future)

    @override
    async def submit(self, task: Task, audio: str, options: Mapping[str, Any]) -> str:
        running = sum(job.status == "processing" for job in self._jobs.values())
        if running >= self._settings.max_queue:
            raise QueueFull(f"{running} jobs run, {self._settings.max_queue} at most (MAX_QUEUE)", retry_after_sec=5)
        job = _Job(task, await self._prepare(task, audio, options, background=True))

        def note(progress: Progress) -> None:
            job.progress = progress

        job.future = job.work.start(on_progress=note)
        job_id = uuid.uuid4().hex
        self._jobs[job_id] = job
        self._forget()
        return job_id

    @override
    async def status(self, job_id: str) -> Json:
        job = self._find(job_id)
        status, progress = job.status, job.progress
        return {
            "job_id": job_id,
            "status": status,
            "audio_sec_done": progress.audio_sec_done if progress else None,
            "audio_sec_total": progress.audio_sec_total if progress else None,
            "error": job.error.message if status == "failed" and job.error else None,
        }

    @override
    async def result(self, job_id: str) -> tuple[Task | None, Json]:
        job = self._find(job_id)
        if job.future is None or not job.future.done():
            raise WrongJobState(not_completed(job_id, job.status))
        if (error := job.error) is not None:
            raise error.with_traceback(None)
        return job.task, await self._result(job.work, job.future)

    @override
    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._tasks.close()
        self._engine.close(wait=False)

    async def _prepare(self, task: Task, audio: str, options: Mapping[str, Any], *, background: bool = False) -> Work:
        fields = {"task": task, "inputs": [audio], **options}
        return await asyncio.to_thread(self._tasks.prepare, fields, background=background)

    async def _result(self, work: Work, future: Future[Any]) -> Json:
        outcome = future.result()
        if (error := work.error(outcome)) is not None:
            raise error.with_traceback(None)
        answer = await asyncio.to_thread(work.finish, outcome)
        return {"model": answer["model"], **answer["results"][0]}

    def _find(self, job_id: str) -> _Job:
        if job_id not in self._jobs:
            raise JobNotFound(f"there is no job {job_id!r}; jobs end with this process", param="job_id")
        return self._jobs[job_id]

    def _forget(self) -> None:
        """Forget the oldest finished jobs beyond KEPT."""
        finished = [job_id for job_id, job in self._jobs.items() if job.status != "processing"]
        for job_id in finished[:-KEPT]:
            del self._jobs[job_id]
