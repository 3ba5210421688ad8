"""Jobs on the server's engine: how a request is stored, and how it runs later.

    job = await queue.submit("run", fields)      checked and stored; the runner starts it when there is room
    seen = queue.find(job.id, caller)            its state and, once it is completed, its answer

A stored payload is {"input": the request's fields, "upload": the name of its file among the uploads, or null}. The
fields mention that file as UPLOAD. A client's own fields stand under `input`, so a client cannot name another client's
upload. Requests that arrive while others are being stored are stored together: a transaction and a hand-over to a
thread cost several times what one more job in them does.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

from worker.config import Settings
from worker.entrypoints.http.callers import Caller
from worker.entrypoints.tasks import Tasks
from worker.errors import Cancelled, DiskFull, JobNotFound, StoreError, WrongJobState
from worker.futures import fail, into, settle
from worker.jobs.records import Job, Seen, Submission
from worker.jobs.runner import JobRunner, OnProgress
from worker.jobs.store import JobStore
from worker.protocol.request import Fields, is_light, unwrap

UPLOAD = "upload:"

Json = dict[str, Any]
StoreAll = Callable[[Sequence[Submission]], list[Job]]


class JobQueue:
    """The job store and its runner. webhook_body: returns what a webhook gets about a job."""

    def __init__(self, settings: Settings, tasks: Tasks, webhook_body: Callable[[Job], Json]) -> None:
        self._tasks = tasks
        self._finishing = ThreadPoolExecutor(4, thread_name_prefix="answers")
        self.store = JobStore.of(settings)
        self.runner = JobRunner.of(settings, self.store, self._run, shape=webhook_body)
        self._batcher = SubmissionBatcher(self.runner.submit_all)

    def start(self) -> None:
        """Start to run stored jobs."""
        self.runner.start()

    async def submit(
        self,
        kind: str,
        fields: Fields,
        *,
        file: BinaryIO | None = None,
        filename: str | None = None,
        webhook: str | None = None,
        owner: str | None = None,
    ) -> Job:
        """Check a request and store it as a job. Raises RequestError, DiskFull, StoreError; no upload is kept then."""
        self.runner.check(webhook)
        if file is None and is_light(fields):
            self._tasks.prepare(fields)
            stored = {"input": fields, "upload": None}
            return await self._batcher.store(Submission(kind, stored, filename, None, webhook, owner))
        return await asyncio.to_thread(self._submit, kind, fields, file, filename, webhook, owner)

    def find(self, name: str, caller: Caller) -> Seen:
        """Return a job. Blocks on the database. Raises JobNotFound, also if the caller may not see the job."""
        found = self.store.see(name)
        if found is None or not caller.may_see(found.job):
            raise JobNotFound(f"there is no job {name[:64]!r}; finished jobs are kept for JOBS_KEEP_SEC")
        return found

    def cancel(self, name: str, caller: Caller) -> Job:
        """Cancel a job and return it. Blocks on the database. Raises JobNotFound as `find` does, and WrongJobState."""
        self.find(name, caller)
        outcome = self.runner.cancel(name)
        job = self.find(name, caller).job
        if outcome == "finished":
            raise WrongJobState(f"the job is already {job.state}")
        return job

    def close(self) -> None:
        """Return unfinished jobs to the queue. Call it before the engine's `close`."""
        self.runner.stop()
        self._finishing.shutdown(cancel_futures=True)
        self.store.close()

    def _submit(
        self,
        kind: str,
        fields: Fields,
        file: BinaryIO | None,
        filename: str | None,
        webhook: str | None,
        owner: str | None,
    ) -> Job:
        self._tasks.prepare(fields, files={UPLOAD: file} if file is not None else None)
        upload = None if file is None else self._keep(file)
        stored = {"input": fields, "upload": upload}
        try:
            return self.runner.submit(kind, stored, filename=filename, upload=upload, webhook=webhook, owner=owner)
        except BaseException:
            if upload is not None:
                (self.store.uploads / upload).unlink(missing_ok=True)
            raise

    def _keep(self, file: BinaryIO) -> str:
        """Copy an upload into the store's folder and return its name there. Raises DiskFull."""
        name = uuid.uuid4().hex
        place = self.store.uploads / name
        try:
            with place.open("xb") as kept:
                file.seek(0)
                shutil.copyfileobj(file, kept, 1 << 20)
        except OSError as error:
            place.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull("there is no space for this upload; try again later") from error
            raise
        return name

    def _run(self, stored: Json, on_progress: OnProgress, owner: str | None) -> Future[Json]:
        """Run a stored job. It is checked again: the process that stored it may have had other settings.

        Raises: SourceForbidden if the stored upload is not the name of an upload; the errors of `Tasks.prepare`.
        """
        answer: Future[Json] = Future()
        file = None if stored["upload"] is None else self.store.upload_path(stored["upload"]).open("rb")
        files = None
        if file is not None:
            files = {UPLOAD: file}
            answer.add_done_callback(lambda _: file.close())
        try:
            work = self._tasks.prepare(unwrap(stored["input"]), files=files, background=True, owner=owner)
        except BaseException:
            answer.cancel()
            raise
        done = 0

        def count(_result: object) -> None:
            nonlocal done
            done += 1
            on_progress(done, work.size)

        def finish(outcome: Any) -> None:
            try:
                finishing = self._finishing.submit(work.finish, outcome)
                finishing.add_done_callback(into(answer, lambda result: settle(answer, result)))
            except RuntimeError:  # the pool is shut down
                fail(answer, Cancelled("the worker is shutting down"))

        running = work.start(count)
        answer.add_done_callback(lambda ended: running.cancel() if ended.cancelled() else None)
        running.add_done_callback(into(answer, finish))
        return answer


class SubmissionBatcher:
    """Stores submissions that arrive together in one call of `store_all`, which blocks, and stores all or none.

    It belongs to one event loop.
    """

    def __init__(self, store_all: StoreAll) -> None:
        self._store_all = store_all
        self._coming: list[tuple[Submission, asyncio.Future[Job]]] = []
        self._storing: asyncio.Task[None] | None = None

    async def store(self, submission: Submission) -> Job:
        """Store a submission, even if the caller is canceled. Raises what `store_all` raises for it alone."""
        future: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._coming.append((submission, future))
        if self._storing is None:
            self._storing = asyncio.create_task(self._store())
        return await future

    async def _store(self) -> None:
        try:
            while self._coming:
                batch, self._coming = self._coming, []
                outcomes = await asyncio.to_thread(self._outcomes, [submission for submission, _ in batch])
                for (_, future), outcome in zip(batch, outcomes, strict=True):
                    if future.done():  # canceled
                        continue
                    if isinstance(outcome, Exception):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)
        finally:
            self._storing = None

    def _outcomes(self, submissions: list[Submission]) -> list[Job | Exception]:
        """Return a job or an error for each. A submission that cannot be stored does not keep out the others.

        A store that fails is not asked again: it may have stored the jobs in spite of the error, or be slow to fail.
        """
        try:
            return list(self._store_all(submissions))
        except StoreError as error:
            return [error] * len(submissions)
        except Exception as error:  # noqa: BLE001  each caller gets its own error
            if len(submissions) == 1:
                return [error]
            return [outcome for one in submissions for outcome in self._outcomes([one])]
