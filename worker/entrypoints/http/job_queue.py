"""Jobs on the server's engine: what a stored job is, and how it runs.

A stored payload is {"input": a handler's payload, "upload": the name of its file among the uploads, or null}; the
payload
mentions that file as UPLOAD. A client's own payload stands under `input` alone, so it cannot name another's upload.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

from worker.config import Settings
from worker.entrypoints.http.intake import SubmissionBatcher
from worker.entrypoints.tasks import Tasks, is_light
from worker.errors import Cancelled, DiskFull, JobNotFound, WrongJobState
from worker.futures import fail, into, settle
from worker.jobs.records import Job, Seen, Submission
from worker.jobs.runner import JobRunner, OnProgress
from worker.jobs.store import JobStore

UPLOAD = "upload:"
Json = dict[str, Any]


class JobQueue:
    """The store, and the runner that works it off. `shape`: what a webhook is told of a job."""

    def __init__(self, settings: Settings, tasks: Tasks, shape: Callable[[Job], Json]) -> None:
        self._tasks = tasks
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="answers")
        self.store = JobStore.of(settings)
        self.runner = JobRunner.of(settings, self.store, self._run, shape=shape)
        self._intake = SubmissionBatcher(self.runner.submit_all)

    def start(self) -> None:
        self.runner.start()

    async def submit(
        self,
        kind: str,
        payload: Mapping[str, Any],
        *,
        file: BinaryIO | None = None,
        filename: str | None = None,
        webhook: str | None = None,
    ) -> Job:
        """Checks and stores a job. Raises RequestError, DiskFull, StoreError; the upload is gone then."""
        self.runner.check(webhook)
        if file is None and is_light(payload):
            self._tasks.prepare(payload)
            return await self._intake.store(
                Submission(kind, {"input": payload, "upload": None}, filename, None, webhook)
            )
        return await asyncio.to_thread(self._submit, kind, payload, file, filename, webhook)

    def _submit(
        self, kind: str, payload: Mapping[str, Any], file: BinaryIO | None, filename: str | None, webhook: str | None
    ) -> Job:
        self._tasks.prepare(payload, files={UPLOAD: file} if file is not None else None)
        upload = None if file is None else self._keep(file)
        try:
            return self.runner.submit(
                kind, {"input": payload, "upload": upload}, filename=filename, upload=upload, webhook=webhook
            )
        except BaseException:
            if upload is not None:
                (self.store.uploads / upload).unlink(missing_ok=True)
            raise

    def find(self, name: str) -> Seen:
        """Blocks, as a read of the database does. Raises JobNotFound."""
        found = self.store.see(name)
        if found is None:
            raise JobNotFound(f"there is no job {name[:64]!r}; finished ones are kept for JOBS_KEEP_SEC")
        return found

    def cancel(self, name: str) -> Job:
        """Blocks. Raises JobNotFound, WrongJobState."""
        outcome = self.runner.cancel(name)
        job = self.find(name).job
        if outcome == "finished":
            raise WrongJobState(f"the job is {job.state} already")
        return job

    def close(self) -> None:
        """Gives back to the queue what is under way. Before the engine's."""
        self.runner.stop()
        self._pool.shutdown(cancel_futures=True)
        self.store.close()

    def _keep(self, file: BinaryIO) -> str:
        name = uuid.uuid4().hex
        place = self.store.uploads / name
        try:
            with place.open("xb") as kept:
                file.seek(0)
                shutil.copyfileobj(file, kept, 1 << 20)
        except OSError as error:
            place.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull("there is no room for this upload") from error
            raise
        return name

    def _run(self, stored: Json, on_progress: OnProgress) -> Future[Json]:
        answered: Future[Json] = Future()
        file = (self.store.uploads / stored["upload"]).open("rb") if stored["upload"] else None
        if file is not None:
            answered.add_done_callback(lambda _: file.close())
        try:
            work = self._tasks.prepare(
                stored["input"], files={UPLOAD: file} if file is not None else None, background=True
            )
        except BaseException:
            answered.cancel()
            raise
        done = 0

        def count(_one: object) -> None:
            nonlocal done
            done += 1
            on_progress(done, work.size)

        def finish(outcome: Any) -> None:
            try:
                finishing = self._pool.submit(work.finish, outcome)
                finishing.add_done_callback(into(answered, lambda answer: settle(answered, answer)))
            except RuntimeError:  # the pool has been shut down
                fail(answered, Cancelled("the worker is shutting down"))

        running = work.start(count)
        answered.add_done_callback(lambda one: running.cancel() if one.cancelled() else None)
        running.add_done_callback(into(answered, finish))
        return answered
