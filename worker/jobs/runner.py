"""Runs the store's jobs: claims them while there is room, keeps their leases, writes what came of them.

    store.claim ──▶ run(payload, on_progress) ──▶ Future of the answer ──▶ store.finish ──▶ webhook

One thread does all of the store's work, in rounds that begin when something was submitted or finished, but at least
every
TICK_SEC (for jobs that other processes submitted). The more jobs are under way, the longer rounds are apart, up to
PACE_SEC:
so, under load, a round claims and finishes many jobs in a transaction each, and alone, a job waits for nobody. While
the store fails nothing is lost: answers are kept until they can be written, and no new job is begun.

`run` returns at once; cancelling its future stops the work. An answer with `error` at its top is a failed job, `code`
beside
it or the first failed input's. A job whose device was lost, or that somebody else cancelled under us, is not over: it
is left to whoever claims it when its lease lapses. After a lost device this process claims no more. Stop the runner
before the engine under it is closed.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal

from worker.config import Settings
from worker.errors import AviaryError, Cancelled, DeviceLost, InternalError, StoreError
from worker.faults import report
from worker.jobs.records import Job, Outcome, Submission
from worker.jobs.store import JobStore
from worker.jobs.webhook import Webhooks
from worker.jobs.webhook import check as check_webhook

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]
Run = Callable[[Any, OnProgress], "Future[dict[str, Any]]"]

TICK_SEC = 0.5  # also how often progress is written
PACE_SEC = 0.05
RETRY_SEC = 1.0  # after the store failed
TIDY_SEC = 3600.0
BEATS = 10  # heartbeats in a lease

_LEFT = (DeviceLost.code, Cancelled.code)


class JobRunner:
    """`owner` must be no other process's. `workers_in_flight`: most jobs at a time. Thread-safe."""

    def __init__(
        self,
        store: JobStore,
        run: Run,
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
        self._starting = threading.Lock()  # held from a claim until its futures are known
        self._running: dict[str, Future[dict[str, Any]]] = {}
        self._ended: list[str] = []
        self._progress: dict[str, tuple[int, int]] = {}
        self._woken = self._lost = False
        self._stop_at: float | None = None
        self._beat_at = self._tell_at = self._tidy_at = 0.0  # when each is due again
        self._thread = threading.Thread(target=self._live, name="jobs", daemon=True)

    @classmethod
    def of(cls, settings: Settings, store: JobStore, run: Run, **options: Any) -> JobRunner:
        """`options`: of Webhooks, beside those that the settings give."""
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
    ) -> Job:
        """As JobStore.submit, and begins at once if there is room. Raises RequestError for a webhook that is not
        allowed."""
        (job,) = self.submit_all([Submission(kind, payload, filename, upload, webhook)])
        return job

    def check(self, webhook: str | None) -> None:
        """Raises RequestError for one that is not allowed."""
        if webhook is not None:
            check_webhook(webhook, allow_private=self._webhooks.allow_private)

    def submit_all(self, submissions: Sequence[Submission]) -> list[Job]:
        """As JobStore.submit_all, likewise."""
        for one in submissions:
            self.check(one.webhook)
        stored = self._store.submit_all(submissions)
        self._wake()
        return stored

    def cancel(self, job_id: str) -> Literal["cancelled", "finished", "not_found"]:
        """As JobStore.cancel, and stops its work at once if it runs here; elsewhere it stops at the next heartbeat."""
        outcome = self._store.cancel(job_id)
        if outcome == "cancelled":
            with self._starting:
                self._drop([job_id])
            self._webhooks.wake()
        return outcome

    def stop(self, drain_sec: float = 0.0) -> None:
        """Claims no more; what is not finished within `drain_sec` is stopped and given back to the queue."""
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

    def _live(self) -> None:
        fault = ""
        while self._wait(paused=bool(fault)):
            try:
                self._round()
                fault = ""
            except StoreError as error:
                if error.message != fault:
                    log.error("jobs wait: %s", error.message)  # noqa: TRY400  the message says it all
                fault = error.message
            except Exception as error:
                log.exception("a round of jobs failed")
                fault = repr(error)
        self._leave()

    def _wait(self, *, paused: bool) -> bool:
        """Until there is something to do; False when it is time to leave."""
        time.sleep(PACE_SEC * len(self._running) / self._most)
        with self._changed:
            if paused:
                self._changed.wait_for(lambda: self._stop_at is not None, RETRY_SEC)
            else:
                self._changed.wait_for(lambda: self._woken or self._ended or self._over(), TICK_SEC)
            self._woken = False
            return not self._over()

    def _over(self) -> bool:
        return self._stop_at is not None and (not self._running or time.monotonic() >= self._stop_at)

    def _wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify()

    def _round(self) -> None:
        self._write()
        now = time.monotonic()
        if now >= self._beat_at:
            self._beat_at = now + self._lease_sec / BEATS
            self._beat()
        if now >= self._tell_at and self._progress:
            self._tell_at = now + TICK_SEC
            with self._changed:
                progress, self._progress = self._progress, {}
            self._store.progress(self.owner, progress)
        if self._stop_at is None and not self._lost:
            self._begin()
        if now >= self._tidy_at:
            self._tidy_at = now + TIDY_SEC
            self._store.expire(self._keep_sec, self._max_bytes)
            self._store.sweep()

    def _begin(self) -> None:
        """Claims what there is room for, and starts it."""
        room = self._most - len(self._running)
        if room <= 0:
            return
        with self._starting:
            for job, payload in self._store.claim(self.owner, self._lease_sec, room):
                future = self._future(job.id, payload)
                with self._changed:
                    self._running[job.id] = future
                future.add_done_callback(functools.partial(self._done, job.id))

    def _future(self, job_id: str, payload: Any) -> Future[dict[str, Any]]:
        def on_progress(done: int, total: int) -> None:
            with self._changed:
                self._progress[job_id] = (done, total)

        try:
            return self._run(payload, on_progress)
        except Exception as error:  # noqa: BLE001  a job ends whatever happens
            failed: Future[dict[str, Any]] = Future()
            failed.set_exception(error)
            return failed

    def _done(self, job_id: str, _future: Future[dict[str, Any]]) -> None:
        with self._changed:
            if job_id in self._running:
                self._ended.append(job_id)
                self._changed.notify()

    def _write(self) -> None:
        """Writes what has ended; it stays noted here until that has worked."""
        with self._changed:
            ended = {
                job_id: (self._running[job_id], self._progress.get(job_id))
                for job_id in self._ended
                if job_id in self._running
            }
        outcomes = {
            job_id: outcome
            for job_id, (future, progress) in ended.items()
            if (outcome := self._outcome(job_id, future, progress))
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
        except Exception as error:  # noqa: BLE001  the runner never dies
            if len(outcomes) > 1:  # one that cannot be stored must not keep the others
                for job_id, outcome in outcomes.items():
                    self._finish({job_id: outcome})
                return
            (job_id,) = outcomes
            self._store.finish(self.owner, {job_id: Outcome.failed(_unexpected(job_id, error))})

    def _outcome(self, job_id: str, future: Future[dict[str, Any]], progress: tuple[int, int] | None) -> Outcome | None:
        """How the job ended, or None if somebody else shall run it."""
        if future.cancelled():
            return None
        try:
            answer = future.result()
            error = _left_of(answer) or _error_of(answer)
            if error is None:
                return Outcome.completed(answer, progress)
            if error["code"] not in _LEFT:
                return Outcome.failed(error, answer if "results" in answer else None, progress)
        except AviaryError as fault:
            error = {"code": fault.code, "message": fault.message, "retryable": fault.retryable}
            if fault.code not in _LEFT:
                return Outcome.failed(error, progress=progress)
        except Exception as fault:  # noqa: BLE001  a job is answered whatever happens
            return Outcome.failed(_unexpected(job_id, fault), progress=progress)
        log.warning("job %s is left to another process: %s", job_id, error["message"])
        self._lost = self._lost or error["code"] == DeviceLost.code
        return None

    def _beat(self) -> None:
        """Renews the leases of all that runs; what is no longer ours is stopped."""
        with self._changed:
            running = list(self._running)
        if running:
            self._drop(set(running) - self._store.renew(self.owner, running, self._lease_sec))

    def _drop(self, job_ids: Iterable[str]) -> None:
        """Forgets jobs, and stops those that are under way."""
        with self._changed:
            futures = [self._running.pop(job_id, None) for job_id in job_ids]
            self._ended = [job_id for job_id in self._ended if job_id in self._running]
            for job_id in job_ids:
                self._progress.pop(job_id, None)
        for future in futures:
            if future is not None:
                future.cancel()

    def _leave(self) -> None:
        try:
            self._write()
            rest = list(self._running)
            self._drop(rest)
            if rest:
                self._store.give_back(self.owner, rest)
        except Exception:
            log.exception("jobs could not be given back; others may take them when their leases lapse")


def _error_of(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a failed answer says of its failure: its own code, or that of the first input that failed."""
    if "error" not in answer:
        return None
    first: Mapping[str, Any] = next((one["error"] for one in answer.get("results", ()) if "error" in one), {})
    return {
        "code": answer.get("code") or first.get("code", InternalError.code),
        "message": str(answer["error"]),
        "retryable": bool(answer.get("retryable", first.get("retryable", False))),
    }


def _left_of(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """Why some of the inputs were not run, if that is no fault of theirs."""
    errors = (one["error"] for one in answer.get("results", ()) if "error" in one)
    return next((error for error in errors if error["code"] in _LEFT), None)


def _unexpected(job_id: str, error: Exception) -> dict[str, Any]:
    ours = report(error, during=f"job {job_id}")
    return {"code": ours.code, "message": ours.message, "retryable": ours.retryable}
