"""Runs batches: a thread that takes the next step of any batch that is due, of all processes that share the store.

    validating    every line of the input is checked; one wrong line fails the batch
    in_progress   lines become jobs, at most WINDOW of a batch at a time, so that other jobs of the key get a turn
    finalizing    the results of the jobs become two files, of the requests that succeeded and of those that did not
    `cancelling`  the same, after the jobs that did not end are canceled

Each step is short or renews its lease, and a batch is released after each step, so another process continues a batch
whose process died. The memory for a step does not depend on the length of the input, except for the custom ids.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO

from worker.config import Settings
from worker.entrypoints.http import batch_lines
from worker.errors import AviaryError
from worker.jobs.batches import BatchLost
from worker.jobs.records import Batch, encode
from worker.jobs.runner import CLEANUP_SEC, RETRY_SEC
from worker.jobs.store import JobStore
from worker.protocol.openai_batch import MOST_ERRORS, MOST_LINES, OUTPUT, LineError, output_line, response_of

log = logging.getLogger(__name__)

Json = dict[str, Any]

TICK_SEC = 0.5  # between the steps of a batch, and between looks for a batch that is due
WINDOW = 512  # unfinished jobs of a batch
WINDOW_BYTES = 64 * 1024**2  # of the input, read in one step
CANCELLED: Json = {"code": "batch_cancelled", "message": "The batch was canceled before this request was executed."}
EXPIRED: Json = {"code": "batch_expired", "message": "The batch expired before this request was executed."}


_INPUT_LOST = LineError("input_file_lost", "The input file was removed or changed on the server.", "input_file_id")


class BatchRunner:
    """Runs the batches of a store. holder: a name that no other process has."""

    def __init__(self, settings: Settings, store: JobStore, holder: str) -> None:
        self._settings, self._files, self._batches = settings, store.files, store.batches
        self._store, self._holder, self._lease_sec = store, holder, settings.job_lease_sec
        self._woken, self._stopping = threading.Event(), False
        self._renew_at = self._cleanup_at = 0.0  # monotonic clock
        self._thread = threading.Thread(target=self._loop, name="batches", daemon=True)

    def start(self) -> None:
        """Start to run batches."""
        self._thread.start()

    def wake(self) -> None:
        """Look for a batch that is due at once."""
        self._woken.set()

    def stop(self) -> None:
        """Stop after the current step, or in the midst of a long one. The next start, or another process, continues."""
        self._stopping = True
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _loop(self) -> None:
        while not self._stopping:
            pause = TICK_SEC
            try:
                self._clean_up()
                while not self._stopping and (batch := self._batches.claim(self._holder, self._lease_sec)):
                    self._step(batch)
            except AviaryError as error:
                log.warning("no batch is run: %s", error.message)
                pause = RETRY_SEC
            except Exception:
                log.exception("a step of a batch failed")
                pause = RETRY_SEC
            self._woken.wait(pause)
            self._woken.clear()

    def _clean_up(self) -> None:
        if time.monotonic() >= self._cleanup_at:
            self._cleanup_at = time.monotonic() + CLEANUP_SEC
            self._files.expire()
            self._batches.expire(self._settings.jobs_keep_sec)

    def _step(self, batch: Batch) -> None:
        """Take the next step of a claimed batch, and release the batch."""
        self._renew_at = time.monotonic() + self._lease_sec / 3
        steps = {"validating": self._validate, "in_progress": self._advance}
        due_in_sec = self._lease_sec  # after a failure
        try:
            with contextlib.suppress(BatchLost):
                try:
                    steps.get(batch.status, self._finalize)(batch)
                except (FileNotFoundError, LineError):  # the input was valid, or there is no input
                    self._batches.stop_jobs(batch)
                    self._fail(batch, [_INPUT_LOST.to_json(None)])
            due_in_sec = TICK_SEC
        finally:
            self._batches.release(batch, self._holder, 0.0 if self._stopping else due_in_sec)

    def _keep(self, batch: Batch) -> None:
        """Renew the lease if it is time. Raises BatchLost, also if the runner stops."""
        if self._stopping:
            raise BatchLost
        if time.monotonic() >= self._renew_at:
            self._renew_at = time.monotonic() + self._lease_sec / 3
            self._batches.hold(batch, self._holder, self._lease_sec)

    def _validate(self, batch: Batch) -> None:
        """Check every line of the input, and begin or fail."""
        seen: set[str] = set()
        errors: list[Json] = []
        total = 0
        with self._store.upload_path(batch.input_upload).open("rb") as file:
            for raw in batch_lines.read(file, self._settings):
                self._keep(batch)
                total += 1
                try:
                    if total > MOST_LINES:
                        raise LineError("request_limit_exceeded", f"A batch may have {MOST_LINES} requests at most.")
                    line = batch_lines.check(raw.data, batch.endpoint, self._settings)
                    if line.custom_id in seen:
                        raise LineError("duplicate_custom_id", "An earlier line has the same custom_id.", "custom_id")
                    seen.add(line.custom_id)
                except LineError as error:
                    errors.append(error.to_json(raw.number))
                if len(errors) == MOST_ERRORS or total > MOST_LINES:
                    break
        if not total:
            errors.append(LineError("empty_file", "The input file has no requests.", "input_file_id").to_json(None))
        if errors:
            self._fail(batch, errors)
            return
        now = self._batches.clock()
        self._batches.update(batch, self._holder, status="in_progress", in_progress_at=now, total=total)

    def _fail(self, batch: Batch, errors: list[Json]) -> None:
        self._batches.finish(batch, self._holder, [], status="failed", failed_at=self._batches.clock(), errors=errors)

    def _advance(self, batch: Batch) -> None:
        """Make jobs of further lines, note how many have ended, and begin to finalize after the last one."""
        counts, now = self._batches.counts(batch), self._batches.clock()
        unfinished = counts["pending"] + counts["processing"]
        ended = {"completed": counts["completed"], "failed": counts["failed"]}
        if batch.read_lines == batch.total and not unfinished:
            self._batches.update(batch, self._holder, status="finalizing", finalizing_at=now, **ended)
        elif now >= batch.expires_at:
            self._batches.update(batch, self._holder, status="finalizing", finalizing_at=now, expired_at=now, **ended)
        else:
            if unfinished <= WINDOW // 2:
                self._read_on(batch, WINDOW - unfinished)
            self._batches.update(batch, self._holder, **ended)

    def _read_on(self, batch: Batch, most: int) -> None:
        submissions, read = [], batch.read_bytes
        for raw in self._rest(batch):
            self._keep(batch)
            submissions.append(
                batch_lines.submission(batch, raw, batch_lines.check(raw.data, batch.endpoint, self._settings))
            )
            read = raw.end
            if len(submissions) == most or read - batch.read_bytes > WINDOW_BYTES:
                break
        self._batches.add_jobs(
            batch, self._holder, submissions, read_bytes=read, read_lines=batch.read_lines + len(submissions)
        )

    def _rest(self, batch: Batch) -> Iterator[batch_lines.RawLine]:
        """Yield the lines of the input that are not jobs yet."""
        if batch.read_lines < batch.total:
            with self._store.upload_path(batch.input_upload).open("rb") as file:
                yield from batch_lines.read(file, self._settings, begin=batch.read_bytes)

    def _finalize(self, batch: Batch) -> None:
        """Write the files of results, and end the batch."""
        cancels = batch.status == "cancelling"
        if cancels or batch.expired_at is not None:
            self._batches.stop_jobs(batch)
        end = "cancelled" if cancels else "expired" if batch.expired_at is not None else "completed"
        results = _Results(self._store)
        try:
            for succeeded, line in self._lines(batch):
                self._keep(batch)
                results.write(line, succeeded=succeeded)
            counts = self._batches.counts(batch)
            rows = results.close(batch)
            ids = {f"{name}_file_id": row["id"] for name, row in rows.items()}
            now = batch.expired_at or self._batches.clock()
            values = {"status": end, f"{end}_at": now, "completed": counts["completed"], "failed": counts["failed"]}
            self._batches.finish(batch, self._holder, list(rows.values()), **values, **ids)
        except BaseException:
            results.remove()
            raise
        self._batches.remove_jobs(batch)

    def _lines(self, batch: Batch) -> Iterator[tuple[bool, Json]]:
        """Yield whether each line succeeded, and its result, in the order of the input."""
        not_run = CANCELLED if batch.expired_at is None else EXPIRED
        for job in self._batches.ended(batch):
            yield response_of(job, job.payload["line"]["custom_id"], not_run)
        for raw in self._rest(batch):
            line = batch_lines.check(raw.data, batch.endpoint, self._settings)
            yield False, output_line(None, line.custom_id, None, not_run)


class _Results:
    """The files of a batch's results while they are written: `output` and `error`, each made for its first line."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._open: dict[str, tuple[str, BinaryIO]] = {}
        self._stack = ExitStack()

    def write(self, line: Json, *, succeeded: bool) -> None:
        """Add a line to one of the files."""
        name = "output" if succeeded else "error"
        if name not in self._open:
            upload = uuid.uuid4().hex
            file = self._stack.enter_context(self._store.upload_path(upload).open("xb"))
            self._open[name] = upload, file
        self._open[name][1].write(encode(line).encode() + b"\n")

    def close(self, batch: Batch) -> dict[str, Json]:
        """Close the files, and return the rows of the store for them."""
        self._stack.close()
        return {
            name: self._store.files.row(
                upload,
                filename=f"{batch.id}_{name}.jsonl",
                purpose=OUTPUT,
                owner=batch.owner,
                keep_sec=batch.output_keep_sec,
            )
            for name, (upload, _) in self._open.items()
        }

    def remove(self) -> None:
        """Remove the files again."""
        self._stack.close()
        for upload, _ in self._open.values():
            self._store.upload_path(upload).unlink(missing_ok=True)
