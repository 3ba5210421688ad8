"""Jobs on the server's engine: how a request is stored, and how it runs later.

    job = await queue.submit("run", fields)      checked and stored; the runner starts it when there is room
    seen = queue.find(job.id, caller)            its state and, once it is completed, its answer
    job = await queue.adopt(form, work, running, …)   a request that runs becomes a job

A stored payload is {"input": the request's fields, "upload": the name of its file among the uploads, or null}. The
fields mention that file as UPLOAD. A client's own fields stand under `input`, so a client cannot name another client's
upload. Requests that arrive while others are being stored are stored together: a transaction and a hand-over to a
thread cost several times what one more job in them does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

from worker.config import Settings
from worker.entrypoints.http import batch_lines
from worker.entrypoints.http.batch_runner import BatchRunner
from worker.entrypoints.http.body import Body
from worker.entrypoints.http.callers import Caller
from worker.entrypoints.tasks import Routed, Tasks
from worker.errors import AviaryError, Cancelled, JobNotFound, StoreError, WrongJobState
from worker.futures import fail, into, settle
from worker.jobs.progress_log import ProgressLog
from worker.jobs.records import Job, Seen, Submission
from worker.jobs.runner import JobRunner
from worker.jobs.store import JobStore
from worker.protocol.request import is_light, unwrap
from worker.protocol.strict import Fields
from worker.protocol.work import Work
from worker.types import OnProgress

UPLOAD = batch_lines.UPLOAD

Json = dict[str, Any]
StoreAll = Callable[[Sequence[Submission]], list[Job]]


@dataclass(frozen=True, slots=True)
class JobForm:
    """How a request is stored as a job. `shape`: makes the response of an OpenAI route from the answer."""

    kind: str
    fields: Fields
    """The payload. It mentions the upload of the body as UPLOAD."""
    body: Body
    shape: Callable[[Json], Any] | None = None

    def upload(self) -> tuple[BinaryIO, str] | tuple[None, None]:
        """Return the file of the body and its name, if there is one."""
        for name, file in self.body.files.items():
            return file, self.body.names[name]
        return None, None


class JobQueue:
    """The job store and its runner. webhook_body: returns what a webhook gets about a job."""

    def __init__(self, settings: Settings, tasks: Tasks, webhook_body: Callable[[Job], Json]) -> None:
        self._settings, self._tasks = settings, tasks
        self._finishing = ThreadPoolExecutor(4, thread_name_prefix="answers")
        self.store = JobStore.of(settings)
        self.runner = JobRunner.of(settings, self.store, self._run, shape=webhook_body)
        self.batches = BatchRunner(settings, self.store, self.runner.owner)
        self._batcher = SubmissionBatcher(self.runner.submit_all)

    def start(self) -> None:
        """Start to run stored jobs and batches."""
        self.runner.start()
        self.batches.start()

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
            work = self._tasks.prepare(fields)
            return await self._batcher.store(
                self._submission(kind, fields, work, filename=filename, webhook=webhook, owner=owner)
            )
        return await asyncio.to_thread(self._submit, kind, fields, file, filename, webhook, owner)

    async def adopt(
        self, form: JobForm, work: Work, running: Future[Any], progress: ProgressLog, owner: str | None
    ) -> Job:
        """Let work that runs already continue as a job. Its upload stays open until the work is done.

        running: what `work.start` returned. progress: what receives the work's progress.
        Raises QueueFull, DiskFull, StoreError; the work is then unchanged.
        """
        job = await asyncio.to_thread(self._adopt, form, work, running, progress, owner)
        files = form.body.hand_over()
        running.add_done_callback(lambda _: [file.close() for file in files])
        return job

    def find(self, name: str, caller: Caller) -> Seen:
        """Return a job. Blocks on the database. Raises JobNotFound, also if the caller may not see the job."""
        found = self.store.see(name)
        if found is None or not caller.may_see(found.job):
            raise JobNotFound(f"there is no job {name[:64]!r}; finished jobs are kept for JOBS_KEEP_SEC")
        return found

    def partial(self, job: Job) -> list[Json]:
        """Return the text of each input of a running job so far, by index. Blocks on the database."""
        return [{"index": index, "text": text} for index, text in self.store.text(job.id).items()]

    def cancel(self, name: str, caller: Caller) -> Job:
        """Cancel a job and return it. Blocks on the database. Raises JobNotFound as `find` does, and WrongJobState."""
        self.find(name, caller)
        outcome = self.runner.cancel(name)
        job = self.find(name, caller).job
        if outcome == "finished":
            raise WrongJobState(f"the job is already {job.state}")
        return job

    async def retry(self, name: str, caller: Caller) -> Job:
        """Submit the payload of a failed or canceled job again, as a new job of the same owner, and return that job.

        Raises JobNotFound as `find` does; WrongJobState if the job did not fail, or if its upload was removed; and the
        errors of `submit`.
        """
        job = (await asyncio.to_thread(self.find, name, caller)).job
        if job.state not in ("failed", "cancelled"):
            raise WrongJobState(f"the job is {job.state}: only a failed or canceled job can be retried")
        if job.upload is not None:
            raise WrongJobState("the upload of this job was removed when the job ended: send the file again")
        stored = await asyncio.to_thread(self.store.payload, name)
        return await self.submit(job.kind, stored["input"], filename=job.filename, webhook=job.webhook, owner=job.owner)

    def close(self) -> None:
        """Return unfinished jobs to the queue. Call it before the engine's `close`."""
        self.batches.stop()
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
        work = self._tasks.prepare(fields, files={UPLOAD: file} if file is not None else None)
        upload = None if file is None else self.store.keep(file)
        try:
            submission = self._submission(
                kind, fields, work, upload=upload, filename=filename, webhook=webhook, owner=owner
            )
            return self.runner.submit_all([submission])[0]
        except BaseException:
            if upload is not None:
                (self.store.uploads / upload).unlink(missing_ok=True)
            raise

    def _submission(
        self,
        kind: str,
        fields: Fields,
        work: Work,
        *,
        upload: str | None = None,
        filename: str | None,
        webhook: str | None = None,
        owner: str | None,
    ) -> Submission:
        """Return the job of a checked request, whose upload is already in the store's folder."""
        return Submission(
            kind,
            {"input": fields, "upload": upload},
            filename,
            upload,
            webhook,
            owner,
            total=work.size,
            task=work.task,
            model=work.model,
            upload_bytes=None if upload is None else self.store.upload_path(upload).stat().st_size,
        )

    def _adopt(self, form: JobForm, work: Work, running: Future[Any], progress: ProgressLog, owner: str | None) -> Job:
        file, filename = form.upload()
        upload = None if file is None else self.store.keep(file)
        answer: Future[Json] = Future()
        try:
            submission = self._submission(form.kind, form.fields, work, upload=upload, filename=filename, owner=owner)
            job = self.runner.adopt(submission, answer, progress)
        except BaseException:
            if upload is not None:
                (self.store.uploads / upload).unlink(missing_ok=True)
            raise
        self._answer(work if form.shape is None else Routed(work, form.shape), running, answer)
        return job

    def _run(self, stored: Json, on_progress: OnProgress, owner: str | None) -> Future[Json]:
        """Run a stored job. It is checked again: the process that stored it may have had other settings.

        Raises: SourceForbidden if the stored upload is not the name of an upload; the errors of `Tasks.prepare`.
        """
        if "line" in stored:
            return self._run_line(stored["line"], on_progress, owner)
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
        self._answer(work, work.start(on_progress=on_progress), answer)
        return answer

    def _run_line(self, line: Json, on_progress: OnProgress, owner: str | None) -> Future[Json]:
        """Run a line of a batch. The answer of a line that cannot be run is its error."""
        answer: Future[Json] = Future()
        try:
            work, file = batch_lines.prepare(line, owner, store=self.store, tasks=self._tasks, settings=self._settings)
        except AviaryError as error:
            settle(answer, batch_lines.failure(error, line["endpoint"]))
            return answer
        if file is not None:
            answer.add_done_callback(lambda _: file.close())
        self._answer(work, work.start(on_progress=on_progress), answer)
        return answer

    def _answer(self, work: Work, running: Future[Any], answer: Future[Json]) -> None:
        """Let the answer follow the work that runs: its result, its error, and its cancellation."""

        def finish(outcome: Any) -> None:
            try:
                finishing = self._finishing.submit(work.finish, outcome)
                finishing.add_done_callback(into(answer, lambda result: settle(answer, result)))
            except RuntimeError:  # the pool is shut down
                fail(answer, Cancelled("the worker is shutting down"))

        answer.add_done_callback(lambda ended: running.cancel() if ended.cancelled() else None)
        running.add_done_callback(into(answer, finish))


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
