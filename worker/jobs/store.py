"""Jobs that survive a restart, in one database that several server processes may share.

    pending ── claim ──▶ processing ── finish ──▶ completed | failed
       ▲                     │
       └── give_back, or the lease has lapsed        cancel: pending | processing ──▶ `cancelled`

A finished job (`completed`, `failed`, `cancelled`) never changes. One owner holds a job in `processing` under a lease,
and renews the lease. After the lease has lapsed, the next claim by any process takes the job away. Until then, the
owner's result still counts, so a result is written exactly once. After `max_attempts` lapsed leases, the job fails with
`worker_lost`. Times are seconds since 1970, all from `clock`; if several machines share one store, their clocks must
agree to well within a lease.

An upload is a file in `uploads` that one job owns; it is removed when the job ends. Until `submit` returns, the file
belongs to the caller.

The text that a running job has so far is in `documents`, a row for each addition. These rows are removed when the job
ends or returns to the queue.

Every method is one transaction, and raises StoreError or DiskFull if the database fails; nothing is changed then. Reads
never wait for a write.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import sqlalchemy as sa

from worker.config import Settings
from worker.errors import WorkerLost
from worker.jobs import statements, turns
from worker.jobs.batches import BatchStore
from worker.jobs.database import Database
from worker.jobs.files import FileStore
from worker.jobs.records import FINISHED, STATES, Job, Outcome, Seen, State, Submission, encode
from worker.jobs.schema import documents, jobs
from worker.jobs.uploads import Uploads
from worker.types import Progress

INLINE_CHARS = 8192  # larger payloads go to `documents`, because SQLite rewrites a whole row for any change
_EXPIRED_AT_A_TIME = 500
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class JobStore:
    """The jobs of one database, and the folder of their uploaded files. Thread-safe.

    `url` is sqlite:////path/jobs.db or postgresql://host/name. `uploads` is the folder, created if it does not exist.
    Raises: ConfigError if the database cannot be opened.
    """

    def __init__(
        self, url: str | sa.URL, uploads: Path, *, max_attempts: int = 3, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = Database(url)
        self._uploads, self._max_attempts, self._clock = Uploads(uploads), max_attempts, clock
        self.files = FileStore(self._database, self._uploads, clock)
        self.batches = BatchStore(self._database, clock)
        self._texts = itertools.count(time.time_ns())  # also orders what several processes add to one job

    @classmethod
    def of(cls, settings: Settings) -> JobStore:
        """Return the store that JOBS_URL, DATA_DIR and JOB_MAX_ATTEMPTS describe.

        Raises: ConfigError if DATA_DIR belongs to another user.
        """
        folder = settings.make_data_dir()
        url = settings.jobs_url or sa.URL.create("sqlite", database=str(folder.absolute() / "jobs.db"))
        return cls(url, folder / "uploads", max_attempts=settings.job_max_attempts)

    @property
    def uploads(self) -> Path:
        """The folder of the uploads."""
        return self._uploads.folder

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # Methods for submitters

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
        """Store a job at the end of the queue. Raises: ValueError as `submit_all` does."""
        (job,) = self.submit_all([Submission(kind, payload, filename, upload, webhook, owner)])
        return job

    def submit_all(self, submissions: Sequence[Submission], *, lease: tuple[str, float] | None = None) -> list[Job]:
        """Store one or more jobs at the end of the queue, all or none.

        lease: the owner that runs the jobs already, and the seconds for which it holds them.
        Raises: ValueError if a payload is not JSON, or if the name of an upload is not 32 hexadecimal digits.
        """
        rows = [statements.new_row(submission, self._clock()) | self._started(lease) for submission in submissions]
        with self._database.write() as connection:
            numbers = connection.scalars(
                statements.SUBMIT,
                [row if len(row["payload"]) <= INLINE_CHARS else row | {"payload": None} for row in rows],
            ).all()
            large = [
                {"number": number, "name": "payload", "body": row["payload"]}
                for number, row in zip(numbers, rows, strict=True)
                if len(row["payload"]) > INLINE_CHARS
            ]
            if large:
                connection.execute(statements.DOCUMENT, large)
        return [statements.new_job(number, row) for number, row in zip(numbers, rows, strict=True)]

    def _started(self, lease: tuple[str, float] | None) -> dict[str, Any]:
        """Return the values of a job that an owner runs from the start, or none."""
        if lease is None:
            return {}
        now, (owner, seconds) = self._clock(), lease
        started = {"state": "processing", "attempts": 1, "started_at": now}
        return started | {"lease_owner": owner, "lease_until": now + seconds}

    def upload_path(self, name: Any) -> Path:
        """Return the path of an upload by its stored name. Raises: SourceForbidden if no upload has such a name."""
        return self._uploads.path(name)

    def keep(self, file: BinaryIO) -> str:
        """Copy an open file into the folder of uploads, and return its name there. Raises: DiskFull."""
        return self._uploads.keep(file)

    def payload(self, job_id: str) -> Any:
        """Return the payload that was submitted, or None if there is no such job."""
        if not _ID.fullmatch(job_id):
            return None
        with self._database.read() as connection:
            body = connection.scalar(
                sa.select(sa.func.coalesce(jobs.c.payload, documents.c.body))
                .outerjoin_from(jobs, documents, statements.has_document("payload"))
                .where(jobs.c.id == job_id)
            )
        return None if body is None else json.loads(body)

    def see(self, job_id: str) -> Seen | None:
        """Return a job with its position and its result, or None. It is one read, because clients poll often."""
        if not _ID.fullmatch(job_id):
            return None
        with self._database.read() as connection:
            row = connection.execute(statements.SEE, {"job": job_id}).one_or_none()
        return (
            None
            if row is None
            else Seen(statements.job_of(row), row.position, None if row.body is None else json.loads(row.body))
        )

    def text(self, job_id: str) -> dict[int, str]:
        """Return the text that a running job has so far, by the index of its input."""
        if not _ID.fullmatch(job_id):
            return {}
        query = (
            sa.select(documents.c.body)
            .join_from(documents, jobs, documents.c.number == jobs.c.number)
            .where(jobs.c.id == job_id, statements.IS_TEXT)
            .order_by(documents.c.name)
        )
        texts: dict[int, str] = {}
        with self._database.read() as connection:
            for body in connection.scalars(query):
                for index, text in json.loads(body):
                    texts[index] = texts.get(index, "") + text
        return dict(sorted(texts.items()))

    def cancel(self, job_id: str) -> Literal["cancelled", "finished", "not_found"]:
        """Cancel a job and remove its upload. "finished" means that the job had already ended, in any state."""
        if not _ID.fullmatch(job_id):
            return "not_found"
        with self._database.write() as connection:
            row = connection.execute(
                jobs.update()
                .where(jobs.c.id == job_id, jobs.c.state.in_(("pending", "processing")))
                .values(state="cancelled", **statements.end_values(self._clock()))
                .returning(jobs.c.number, jobs.c.upload)
            ).one_or_none()
            statements.remove_texts(connection, [row.number] if row else [])
            exists = row or connection.execute(sa.select(jobs.c.id).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            return "finished" if exists else "not_found"
        self._uploads.remove([row.upload])
        return "cancelled"

    def cancel_pending(self, *, owner: str | None = None) -> int:
        """Cancel all pending jobs, of one owner or of all, and return their number. Jobs of batches stay."""
        pending = sa.and_(jobs.c.state == "pending", ~statements.IS_LINE)
        with self._database.write() as connection:
            rows = connection.execute(
                jobs.update()
                .where(pending if owner is None else sa.and_(pending, jobs.c.owner == owner))
                .values(state="cancelled", **statements.end_values(self._clock()))
                .returning(jobs.c.upload)
            ).all()
        self._uploads.remove(row.upload for row in rows)
        return len(rows)

    def recent(
        self,
        *,
        state: State | None = None,
        kind: str | None = None,
        owner: str | None = None,
        search: str | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> list[Seen]:
        """Return up to `limit` jobs, newest first, without their results. Jobs of batches are left out.

        `state`, `kind` and `owner` select jobs; `before` selects those submitted before the job with that number, and
        `search` those whose file name, model or id contains the text, in upper or lower case.
        """
        query = (
            sa.select(*statements.COLUMNS, statements.POSITION.label("position"))
            .where(~statements.IS_LINE)
            .order_by(jobs.c.number.desc())
            .limit(limit)
        )
        for column, value in ((jobs.c.state, state), (jobs.c.kind, kind), (jobs.c.owner, owner)):
            query = query if value is None else query.where(column == value)
        if before is not None:
            query = query.where(jobs.c.number < before)
        if search is not None:
            columns = (jobs.c.filename, jobs.c.model, jobs.c.id)
            query = query.where(
                sa.or_(*(column.icontains(statements.storable(search), autoescape=True) for column in columns))
            )
        with self._database.read() as connection:
            return [Seen(statements.job_of(row), row.position, None) for row in connection.execute(query)]

    def counts(self, *, owner: str | None = None) -> dict[State, int]:
        """Return the number of jobs in each state, of one owner or of all. Jobs of batches are left out."""
        query = sa.select(jobs.c.state, sa.func.count()).where(~statements.IS_LINE).group_by(jobs.c.state)
        with self._database.read() as connection:
            rows = connection.execute(query if owner is None else query.where(jobs.c.owner == owner))
            return dict.fromkeys(STATES, 0) | {row[0]: row[1] for row in rows}

    # Methods for runners; `owner` is a name that no other process has

    def claim(self, owner: str, lease_sec: float, limit: int = 1) -> list[tuple[Job, Any]]:
        """Lease up to `limit` pending jobs to the owner, and return them with their payloads, oldest first.

        The API keys take turns: the next job is the oldest of the key of which the fewest jobs run. Each claim counts
        as an attempt. Jobs whose leases have lapsed return to the queue first.
        """
        now = self._clock()
        with self._database.write() as connection:
            uploads = self._return_lapsed(connection, now)
            numbers = turns.in_turns(turns.pending(connection, limit), turns.running(connection), limit)
            rows = (
                connection.execute(
                    jobs.update()
                    .where(jobs.c.number.in_(numbers))
                    .values(
                        state="processing",
                        attempts=jobs.c.attempts + 1,
                        started_at=now,
                        done=0,
                        audio_sec_done=None,
                        audio_sec_total=None,
                        lease_owner=owner,
                        lease_until=now + lease_sec,
                    )
                    .returning(*statements.COLUMNS, jobs.c.payload)
                ).all()
                if numbers
                else []
            )
            bodies = {row.number: row.payload for row in rows}
            if large := [number for number, body in bodies.items() if body is None]:
                bodies |= (
                    connection.execute(
                        sa.select(documents.c.number, documents.c.body).where(
                            documents.c.number.in_(large), documents.c.name == "payload"
                        )
                    )
                    .tuples()
                    .all()
                )
        self._uploads.remove(uploads)
        return [
            (statements.job_of(row), json.loads(bodies[row.number])) for row in sorted(rows, key=lambda row: row.number)
        ]

    def renew(self, owner: str, job_ids: Collection[str], lease_sec: float) -> set[str]:
        """Renew leases, and return the ids of the jobs that the owner still holds.

        The other jobs were canceled, or claimed by another owner after a lapse.
        """
        with self._database.write() as connection:
            return set(
                connection.scalars(
                    jobs.update()
                    .where(*statements.held_by(owner, job_ids))
                    .values(lease_until=self._clock() + lease_sec)
                    .returning(jobs.c.id)
                )
            )

    def progress(
        self,
        owner: str,
        progress: Mapping[str, Progress],
        texts: Mapping[str, Sequence[tuple[int, str]]] | None = None,
    ) -> None:
        """Store the progress of the jobs that the owner still holds.

        texts: what each of these jobs adds to its text: indexes of inputs, and the additions, in order.
        """
        additions = [
            {"job": job, "the_name": f"text {next(self._texts):020d}", "the_body": encode(added)}
            for job, added in (texts or {}).items()
        ]
        with self._database.write() as connection:
            connection.execute(
                statements.PROGRESS,
                [{"job": job, "holder": owner, **statements.progress_values(one)} for job, one in progress.items()],
            )
            if additions:
                connection.execute(statements.ADD_TEXT, [one | {"holder": owner} for one in additions])

    def finish(self, owner: str, outcomes: Mapping[str, Outcome]) -> set[str]:
        """End the jobs that the owner still holds, and return their ids. Other outcomes are not written."""
        with self._database.write() as connection:
            rows = connection.execute(
                sa.select(jobs.c.number, jobs.c.id, jobs.c.upload)
                .where(*statements.held_by(owner, outcomes))
                .order_by(jobs.c.number)
                .with_for_update()
            ).all()
            ends = [(row.number, outcomes[row.id]) for row in rows]
            results = [{"number": number, "name": "result", "body": end.result} for number, end in ends if end.result]
            if ends:
                connection.execute(
                    statements.FINISH.values(statements.end_values(self._clock())),
                    [statements.finish_values(number, end) for number, end in ends],
                )
            if results:
                connection.execute(statements.DOCUMENT, results)
            statements.remove_texts(connection, [row.number for row in rows])
        self._uploads.remove(row.upload for row in rows)
        return {row.id for row in rows}

    def give_back(self, owner: str, job_ids: Collection[str]) -> None:
        """Return jobs to their positions in the queue, without counting the attempt."""
        with self._database.write() as connection:
            returned = connection.scalars(
                jobs.update()
                .where(*statements.held_by(owner, job_ids))
                .values(attempts=jobs.c.attempts - 1, **statements.PENDING)
                .returning(jobs.c.number)
            )
            statements.remove_texts(connection, returned.all())

    # Housekeeping and webhooks

    def expire(self, older_than_sec: float, max_bytes: int) -> int:
        """Remove old finished jobs, and return their number.

        These are the jobs that finished more than `older_than_sec` seconds ago, then the oldest ones until the payloads
        and results of all finished jobs take at most `max_bytes`. The jobs of a batch are kept until it has ended.
        """
        removed = 0
        sizes = (
            sa.select(
                jobs.c.number,
                jobs.c.upload,
                jobs.c.completed_at,
                sa.func.sum(jobs.c.bytes)
                .over(order_by=(jobs.c.completed_at.desc(), jobs.c.number.desc()))
                .label("newer_bytes"),
            )
            .where(jobs.c.state.in_(FINISHED), sa.or_(~statements.IS_LINE, ~statements.IS_LINE_IN_USE))
            .subquery()
        )
        query = sa.select(sizes.c.number, sizes.c.upload).where(
            sa.or_(sizes.c.completed_at < self._clock() - older_than_sec, sizes.c.newer_bytes > max_bytes)
        )
        with self._database.read() as connection:
            old = connection.execute(query).all()
        for start in range(0, len(old), _EXPIRED_AT_A_TIME):  # other writers take turns in between
            rows = old[start : start + _EXPIRED_AT_A_TIME]
            numbers = [row.number for row in rows]
            with self._database.write() as connection:
                connection.execute(documents.delete().where(documents.c.number.in_(numbers)))
                removed += connection.execute(jobs.delete().where(jobs.c.number.in_(numbers))).rowcount
            self._uploads.remove(row.upload for row in rows)
        return removed

    def sweep(self, grace_sec: float = 3600.0) -> int:
        """Remove leftover uploads, for example those of a killed process, and return their number.

        These are the files whose job is finished, and the files that neither a job nor a client's file nor an
        unfinished batch names and that were last written more than `grace_sec` seconds ago.
        """
        written_at = self._uploads.written_at()  # read before the jobs, so that every file's job is found
        with self._database.read() as connection:
            states = {
                row.upload: row.state
                for row in connection.execute(sa.select(jobs.c.upload, jobs.c.state).where(jobs.c.upload.is_not(None)))
            }
            named = self.files.uploads_in_use(connection)
        limit = self._clock() - grace_sec
        leftover = [
            name
            for name, written in written_at.items()
            if name not in named and (states[name] in FINISHED if name in states else written < limit)
        ]
        self._uploads.remove(leftover)
        return len(leftover)

    def webhooks_due(self, hold_sec: float, limit: int = 1) -> list[Job]:
        """Return up to `limit` finished jobs whose webhook is due.

        They are reserved for the caller for `hold_sec` seconds; after that, they are due again.
        """
        now = self._clock()
        due = sa.select(jobs.c.number).where(jobs.c.webhook_at <= now).order_by(jobs.c.webhook_at).limit(limit)
        with self._database.read() as connection:
            if connection.execute(due).first() is None:
                return []
        with self._database.write() as connection:
            numbers = connection.scalars(due.with_for_update(skip_locked=True)).all()
            return [
                statements.job_of(row)
                for row in connection.execute(
                    jobs.update()
                    .where(jobs.c.number.in_(numbers))
                    .values(webhook_at=now + hold_sec)
                    .returning(*statements.COLUMNS)
                )
            ]

    def webhook_over(self, job_id: str, *, again: bool = False) -> None:
        """End the delivery of a job's webhook; with `again`, make it due again at once instead."""
        with self._database.write() as connection:
            connection.execute(
                jobs.update()
                .where(jobs.c.id == job_id, jobs.c.webhook_at.is_not(None))
                .values(webhook_at=self._clock() if again else None)
            )

    def _return_lapsed(self, connection: sa.Connection, now: float) -> list[str | None]:
        """Return jobs with lapsed leases to the queue, or fail those that have no attempts left.

        Return the uploads of the failed jobs.
        """
        lapsed = connection.execute(
            sa.select(jobs.c.number, jobs.c.attempts, jobs.c.upload)
            .where(jobs.c.state == "processing", jobs.c.lease_until < now)
            .with_for_update(skip_locked=True)
        ).all()
        statements.remove_texts(connection, [row.number for row in lapsed])
        retried = [row.number for row in lapsed if row.attempts < self._max_attempts]
        lost = [row for row in lapsed if row.attempts >= self._max_attempts]
        if retried:
            connection.execute(jobs.update().where(jobs.c.number.in_(retried)).values(statements.PENDING))
        if lost:
            error = {
                "code": WorkerLost.code,
                "retryable": WorkerLost.retryable,
                "message": f"the worker died {self._max_attempts} times while it ran this job (JOB_MAX_ATTEMPTS)",
            }
            connection.execute(
                jobs.update()
                .where(jobs.c.number.in_([row.number for row in lost]))
                .values(state="failed", error=encode(error), **statements.end_values(now))
            )
        return [row.upload for row in lost]
