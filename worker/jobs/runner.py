"""Run the jobs of a store: claim as many as there is room for, renew their leases, and store their outcomes.

    store.claim ──▶ run(payload, on_progress, owner) ──▶ Future of the result ──▶ store.finish ──▶ webhook

One thread does all the work on the store, in rounds. A round starts when a job is submitted or ends, and at least every
TICK_SEC, for jobs that other processes submit. The more jobs run, the longer is the pause between rounds, up to
PACE_SEC: under load, one transaction claims or finishes many jobs, and without load, a job starts at once. While the
store fails, results are kept in memory until they can be stored, and no job is started.

`run` returns at once; canceling its future stops the work. A result with `error` at its top is a failed job; its code
is `code` beside it, or that of the first failed input. Such a result is stored if it has `results` or `response`. If a
job's device was lost, or another part of the process canceled its work, the job is not over: its lease lapses, and
another claim runs it. After a lost device, this process claims no more jobs. Stop the runner before you close the
engine that it uses.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal

from worker.config import Settings
from worker.errors import AviaryError, Cancelled, DeviceLost, InternalError, QueueFull, StoreError
from worker.faults import report
from worker.jobs.progress_log import ProgressLog
from worker.jobs.records import Job, Outcome, Submission
from worker.jobs.store import JobStore
from worker.jobs.webhook import Webhooks
from worker.jobs.webhook import check as check_webhook
from worker.types import OnProgress, Progress

log = logging.getLogger(__name__)

StartJob = Callable[[Any, OnProgress, "str | None"], "Future[dict[str, Any]]"]  # of the payload of an owner

TICK_SEC = 0.5  # the longest time between rounds
PROGRESS_SEC = 1.0  # the time between writes of progress
PACE_SEC = 0.05  # the pause between rounds at full load
RETRY_SEC = 1.0  # the pause after a failure of the store
CLEANUP_SEC = 3600.0  # the time between removals of expired jobs
RENEWALS = 10  # renewals in the length of a lease

_PARTIAL = {"results", "response"}  # what is worth keeping of the result of a failed job
_NOT_OVER = (DeviceLost.code, Cancelled.code)  # errors after which another process runs the job


class JobRunner:
    """Runs the jobs of a store on this process. Thread-safe; as a context manager, it starts and stops.

    Args:
        store: The jobs.
        run: Starts the payload of an owner, and returns a future of its result.
        workers_in_flight: The most jobs that run at a time.
        owner: A name that no other process has; by default it consists of host, process id and a random number.
        lease_sec: The length of a lease, which the runner renews RENEWALS times in that time.
        keep_sec: How long finished jobs are kept.
        max_bytes: The most bytes of payloads and results of finished jobs.
        webhooks: What delivers webhooks; by default, one without a secret.
    """

    def __init__(
        self,
        store: JobStore,
        run: StartJob,
        *,
        workers_in_flight: int = 64,
        owner: str | None = None,
        lease_sec: float = 30.0,
        keep_sec: float = 7 * 86400,
        max_bytes: int = 10 * 1024**3,
        webhooks: Webhooks | None = None,
    ) -> None:
        self.owner = owner or f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._store, self._run, self._most = store, run, workers_in_flight
        self._lease_sec, self._keep_sec, self._max_bytes = lease_sec, keep_sec, max_bytes
        self._webhooks = webhooks or Webhooks(store)
        self._changed = threading.Condition()
        self._starting = threading.Lock()  # held from a claim until the futures of its jobs are in `_running`
        self._running: dict[str, Future[dict[str, Any]]] = {}
        self._ended: list[str] = []
        self._logs: dict[str, ProgressLog] = {}  # of the jobs in `_running`
        self._woken = self._device_lost = False
        self._stop_at: float | None = None
        self._renew_at = self._progress_at = self._cleanup_at = 0.0  # when each is due (monotonic clock)
        self._thread = threading.Thread(target=self._loop, name="jobs", daemon=True)

    @classmethod
    def of(cls, settings: Settings, store: JobStore, run: StartJob, **options: Any) -> JobRunner:
        """Return a runner with the limits of the settings. `options` are further arguments of Webhooks."""
        sender = Webhooks(store, secret=settings.webhook_secret, allow_private=settings.allow_private_urls, **options)
        return cls(
            store,
            run,
            workers_in_flight=settings.jobs_in_flight,
            lease_sec=settings.job_lease_sec,
            keep_sec=settings.jobs_keep_sec,
            max_bytes=settings.jobs_max_bytes,
            webhooks=sender,
        )

    def start(self) -> None:
        """Start to run jobs and to deliver webhooks, on threads of this object."""
        self._webhooks.start()
        self._thread.start()

    def submit(
        self,
        kind: str,
        payload: Any,
        *,
        filename: str | None = None,
        upload: str | None = None,
        webhook: str | None = None,
        owner: str | None = None,
    ) -> Job:
        """Store a job as `JobStore.submit` does, and start it at once if fewer than `workers_in_flight` run.

        Raises: RequestError if the webhook is not allowed; the errors of `JobStore.submit`.
        """
        (job,) = self.submit_all([Submission(kind, payload, filename, upload, webhook, owner)])
        return job

    def check(self, webhook: str | None) -> None:
        """Raise RequestError if a webhook is not allowed."""
        if webhook is not None:
            check_webhook(webhook, allow_private=self._webhooks.allow_private)

    def submit_all(self, submissions: Sequence[Submission]) -> list[Job]:
        """Store several jobs as `JobStore.submit_all` does, and start them as `submit` does."""
        for submission in submissions:
            self.check(submission.webhook)
        stored = self._store.submit_all(submissions)
        self._wake()
        return stored

    def adopt(self, submission: Submission, future: Future[dict[str, Any]], progress: ProgressLog) -> Job:
        """Store a job that runs in this process already, and follow it as one that was claimed.

        future: what `run` would have returned. progress: what receives the progress of the work.
        Raises: QueueFull if `workers_in_flight` jobs run; the errors of `JobStore.submit_all`.
        """
        with self._starting:
            if self._stop_at is not None or len(self._running) >= self._most:
                raise QueueFull(f"the server runs {self._most} jobs, the most that it may (JOBS_IN_FLIGHT)")
            (job,) = self._store.submit_all([submission], lease=(self.owner, self._lease_sec))
            self._follow(job.id, future, progress)
        return job

    def cancel(self, job_id: str) -> Literal["cancelled", "finished", "not_found"]:
        """Cancel a job as `JobStore.cancel` does.

        Its work stops at once if it runs in this process, else when the other process next renews its lease.
        """
        outcome = self._store.cancel(job_id)
        if outcome == "cancelled":
            with self._starting:
                self._drop([job_id])
            self._webhooks.wake()
        return outcome

    def cancel_pending(self, *, owner: str | None = None) -> int:
        """Cancel pending jobs as `JobStore.cancel_pending` does."""
        count = self._store.cancel_pending(owner=owner)
        if count:
            self._webhooks.wake()
        return count

    def stop(self, drain_sec: float = 0.0) -> None:
        """Claim no more jobs; after `drain_sec` seconds, stop the unfinished jobs and return them to the queue."""
        with self._changed:
            self._stop_at = time.monotonic() + drain_sec
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()
        self._webhooks.stop()

    def __enter__(self) -> JobRunner:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # The thread

    def _loop(self) -> None:
        failure = ""
        while self._wait(paused=bool(failure)):
            try:
                self._round()
                failure = ""
            except StoreError as error:
                if error.message != failure:
                    log.error("no job is started: %s", error.message)  # noqa: TRY400  the message is enough
                failure = error.message
            except Exception as error:
                log.exception("a round of the job runner failed")
                failure = repr(error)
        self._return_jobs()

    def _wait(self, *, paused: bool) -> bool:
        """Wait until the next round is due. Return False if the runner is to stop."""
        time.sleep(PACE_SEC * len(self._running) / self._most)
        with self._changed:
            if paused:
                self._changed.wait_for(lambda: self._stop_at is not None, RETRY_SEC)
            else:
                self._changed.wait_for(lambda: self._woken or self._ended or self._is_over(), TICK_SEC)
            self._woken = False
            return not self._is_over()

    def _is_over(self) -> bool:
        return self._stop_at is not None and (not self._running or time.monotonic() >= self._stop_at)

    def _wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify()

    def _round(self) -> None:
        self._write_outcomes()
        now = time.monotonic()
        if now >= self._renew_at:
            self._renew_at = now + self._lease_sec / RENEWALS
            self._renew_leases()
        if now >= self._progress_at:
            self._progress_at = now + PROGRESS_SEC
            self._write_progress()
        if self._stop_at is None and not self._device_lost:
            self._claim()
        if now >= self._cleanup_at:
            self._cleanup_at = now + CLEANUP_SEC
            self._store.expire(self._keep_sec, self._max_bytes)
            self._store.sweep()

    def _write_progress(self) -> None:
        with self._changed:
            logs = dict(self._logs)
        unstored = {job_id: one for job_id, log in logs.items() if (one := log.unstored()) is not None}
        if not unstored:
            return
        texts = {job_id: one.texts for job_id, one in unstored.items() if one.texts}
        self._store.progress(self.owner, {job_id: one.progress for job_id, one in unstored.items()}, texts)
        for job_id, one in unstored.items():
            logs[job_id].note_stored(one)

    def _claim(self) -> None:
        """Claim and start as many jobs as there is room for."""
        room = self._most - len(self._running)
        if room <= 0:
            return
        with self._starting:
            for job, payload in self._store.claim(self.owner, self._lease_sec, room):
                progress = ProgressLog()
                self._follow(job.id, self._start(job, payload, progress.add), progress)

    def _follow(self, job_id: str, future: Future[dict[str, Any]], progress: ProgressLog) -> None:
        """Take a job that runs into the books."""
        with self._changed:
            self._running[job_id], self._logs[job_id] = future, progress
        future.add_done_callback(functools.partial(self._on_done, job_id))

    def _start(self, job: Job, payload: Any, on_progress: OnProgress) -> Future[dict[str, Any]]:
        try:
            return self._run(payload, on_progress, job.owner)
        except Exception as error:  # noqa: BLE001  any error ends the job
            failed: Future[dict[str, Any]] = Future()
            failed.set_exception(error)
            return failed

    def _on_done(self, job_id: str, _future: Future[dict[str, Any]]) -> None:
        with self._changed:
            if job_id in self._running:
                self._ended.append(job_id)
                self._changed.notify()

    def _write_outcomes(self) -> None:
        """Store the outcomes of ended jobs. They stay in memory until that succeeds."""
        with self._changed:
            ended = {
                job_id: (self._running[job_id], self._logs[job_id].unstored())
                for job_id in self._ended
                if job_id in self._running
            }
        outcomes = {
            job_id: outcome
            for job_id, (future, unstored) in ended.items()
            if (outcome := self._outcome(job_id, future, unstored.progress if unstored else None))
        }
        if outcomes:
            self._finish(outcomes)
            self._webhooks.wake()
        self._drop(ended)

    def _finish(self, outcomes: Mapping[str, Outcome]) -> None:
        try:
            self._store.finish(self.owner, outcomes)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  the runner must not die
            if len(outcomes) > 1:  # one outcome that cannot be stored must not block the others
                for job_id, outcome in outcomes.items():
                    self._finish({job_id: outcome})
                return
            (job_id,) = outcomes
            self._store.finish(self.owner, {job_id: Outcome.failed(_unexpected(job_id, error))})

    def _outcome(self, job_id: str, future: Future[dict[str, Any]], progress: Progress | None) -> Outcome | None:
        """Return how a job ended, or None if another process is to run it."""
        if future.cancelled():
            return None
        try:
            result = future.result()
            fields = {} if isinstance(result, str) else result  # a text is the answer of an OpenAI route
            error = _interruption(fields) or _error_of(fields)
            if error is None:
                return Outcome.completed(result, progress)
            if error["code"] not in _NOT_OVER:
                return Outcome.failed(error, result if _PARTIAL & fields.keys() else None, progress)
        except AviaryError as failure:
            error = _error_json(failure)
            if failure.code not in _NOT_OVER:
                return Outcome.failed(error, progress=progress)
        except Exception as failure:  # noqa: BLE001  any error ends the job
            return Outcome.failed(_unexpected(job_id, failure), progress=progress)
        log.warning("another process will run job %s: %s", job_id, error["message"])
        self._device_lost = self._device_lost or error["code"] == DeviceLost.code
        return None

    def _renew_leases(self) -> None:
        """Renew the leases of running jobs, and stop the jobs that this process no longer holds."""
        with self._changed:
            running = list(self._running)
        if running:
            self._drop(set(running) - self._store.renew(self.owner, running, self._lease_sec))

    def _drop(self, job_ids: Iterable[str]) -> None:
        """Remove jobs from memory, and stop those that still run."""
        with self._changed:
            futures = [self._running.pop(job_id, None) for job_id in job_ids]
            self._ended = [job_id for job_id in self._ended if job_id in self._running]
            for job_id in job_ids:
                self._logs.pop(job_id, None)
        for future in futures:
            if future is not None:
                future.cancel()

    def _return_jobs(self) -> None:
        """Store the last outcomes, and return unfinished jobs to the queue."""
        try:
            self._write_outcomes()
            unfinished = list(self._running)
            self._drop(unfinished)
            if unfinished:
                self._store.give_back(self.owner, unfinished)
        except Exception:
            log.exception("the unfinished jobs stay leased; other processes can claim them when the leases lapse")


def _error_of(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the error of a failed result, None for any other; its code may be that of the first failed input."""
    if "error" not in result:
        return None
    first = next(_input_errors(result), {})
    return {
        "code": result.get("code") or first.get("code", InternalError.code),
        "message": str(result["error"]),
        "retryable": bool(result.get("retryable", first.get("retryable", False))),
    }


def _interruption(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the error because of which inputs were not processed, if another process is to run the job."""
    return next((error for error in _input_errors(result) if error["code"] in _NOT_OVER), None)


def _input_errors(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    return (one["error"] for one in result.get("results", ()) if "error" in one)


def _error_json(error: AviaryError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "retryable": error.retryable}


def _unexpected(job_id: str, error: Exception) -> dict[str, Any]:
    """Log an unexpected error, and return it as an internal error with a log id."""
    return _error_json(report(error, during=f"job {job_id}"))
