"""Jobs that outlive a restart, in one database that several server processes may share.

    pending ── claim ──▶ processing ── finish ──▶ completed | failed
       ▲                     │
       └── give_back, or the lease has lapsed        cancel: pending | processing ──▶ cancelled

A finished job (completed, failed, cancelled) never changes. A job being processed is held under a lease by one owner,
who renews it; once the lease has lapsed, the next claim by anybody takes the job from him. Until then his result still
counts:
it is written if the job is his and is being processed, hence once. After `max_attempts` lapsed leases the job fails
with `worker_lost`. Times are seconds since 1970, all from `clock`; with several machines on one store their clocks must
agree to well within a lease.

An upload is a file in `uploads` that one job owns: it is removed when that job is finished. Until `submit` has
returned,
it is the caller's. Every method is one transaction, and raises StoreError or DiskFull when the database fails: then
nothing was changed. Reads wait for no writer.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from worker.config import Settings
from worker.errors import WorkerLost
from worker.jobs.database import Database
from worker.jobs.records import FINISHED, STATES, Job, Outcome, Seen, State, Submission, encode
from worker.jobs.schema import documents, jobs

log = logging.getLogger(__name__)

INLINE_CHARS = 8192  # larger payloads are kept apart: whatever changes of a job, SQLite writes its whole row again
_EXPIRED_AT_A_TIME = 500
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_COLUMNS = [jobs.c[field.name] for field in fields(Job)]
_others = jobs.alias()
_POSITION = sa.case(
    (
        jobs.c.state == "pending",
        sa.select(sa.func.count())
        .select_from(_others)
        .where(_others.c.state == "pending", _others.c.number < jobs.c.number)
        .scalar_subquery(),
    )
)


class JobStore:
    """`url`: sqlite:////path/jobs.db or postgresql://…; `uploads`: the folder of uploaded files. Thread-safe."""

    def __init__(
        self, url: str | sa.URL, uploads: Path, *, max_attempts: int = 3, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = Database(url)
        self.uploads, self._max_attempts, self._clock = uploads, max_attempts, clock
        uploads.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of(cls, settings: Settings) -> JobStore:
        url = settings.jobs_url or sa.URL.create("sqlite", database=str(settings.data_dir.absolute() / "jobs.db"))
        return cls(url, settings.data_dir / "uploads", max_attempts=settings.job_max_attempts)

    def close(self) -> None:
        self._database.close()

    # For those who submit

    def submit(
        self,
        kind: str,
        payload: Any,
        *,
        filename: str | None = None,
        upload: str | None = None,
        webhook: str | None = None,
    ) -> Job:
        """A new job at the end of the queue. Raises ValueError as `submit_all` does."""
        (job,) = self.submit_all([Submission(kind, payload, filename, upload, webhook)])
        return job

    def submit_all(self, submissions: Sequence[Submission]) -> list[Job]:
        """New jobs at the end of the queue, one at least, all or none. Raises ValueError for a payload that is not
        JSON, or an upload outside the folder."""
        rows = [self._row(one) for one in submissions]
        with self._database.write() as connection:
            numbers = connection.scalars(
                _SUBMIT, [row if len(row["payload"]) <= INLINE_CHARS else row | {"payload": None} for row in rows]
            ).all()
            large = [
                {"number": number, "name": "payload", "body": row["payload"]}
                for number, row in zip(numbers, rows, strict=True)
                if len(row["payload"]) > INLINE_CHARS
            ]
            if large:
                connection.execute(_DOCUMENT, large)
        return [_new(number, row) for number, row in zip(numbers, rows, strict=True)]

    def _row(self, one: Submission) -> dict[str, Any]:
        if one.upload is not None and (one.upload in ("", "..") or Path(one.upload).name != _storable(one.upload)):
            raise ValueError(f"an upload is the name of a file in {self.uploads}, not {one.upload!r}")
        body = encode(one.payload)
        return {
            "id": str(uuid.uuid4()),
            "kind": one.kind,
            "filename": _storable(one.filename),
            "upload": one.upload,
            "webhook": one.webhook,
            "state": "pending",
            "created_at": self._clock(),
            "done": 0,
            "total": 0,
            "attempts": 0,
            "bytes": len(body),
            "payload": body,
        }

    def payload(self, job_id: str) -> Any:
        """What was submitted, or None."""
        if not _ID.fullmatch(job_id):
            return None
        with self._database.read() as connection:
            body = connection.scalar(
                sa.select(sa.func.coalesce(jobs.c.payload, documents.c.body))
                .outerjoin_from(jobs, documents, _documented("payload"))
                .where(jobs.c.id == job_id)
            )
        return None if body is None else json.loads(body)

    def see(self, job_id: str) -> Seen | None:
        """All that may be told of a job, in one read: who polls asks often."""
        if not _ID.fullmatch(job_id):
            return None
        with self._database.read() as connection:
            row = connection.execute(_SEE, {"job": job_id}).one_or_none()
        return (
            None if row is None else Seen(_job(row), row.position, None if row.body is None else json.loads(row.body))
        )

    def cancel(self, job_id: str) -> Literal["cancelled", "finished", "not_found"]:
        """`finished`: it was over before, in whichever way."""
        if not _ID.fullmatch(job_id):
            return "not_found"
        with self._database.write() as connection:
            row = connection.execute(
                jobs.update()
                .where(jobs.c.id == job_id, jobs.c.state.in_(("pending", "processing")))
                .values(state="cancelled", **_ended(self._clock()))
                .returning(jobs.c.upload)
            ).one_or_none()
            known = row or connection.execute(sa.select(jobs.c.id).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            return "finished" if known else "not_found"
        self._free([row.upload])
        return "cancelled"

    def recent(
        self, *, state: State | None = None, kind: str | None = None, limit: int = 100, before: int | None = None
    ) -> list[Seen]:
        """The newest first, without their answers; `before`: only those submitted before the job of this number."""
        query = sa.select(*_COLUMNS, _POSITION.label("position")).order_by(jobs.c.number.desc()).limit(limit)
        for column, value in ((jobs.c.state, state), (jobs.c.kind, kind)):
            query = query if value is None else query.where(column == value)
        if before is not None:
            query = query.where(jobs.c.number < before)
        with self._database.read() as connection:
            return [Seen(_job(row), row.position, None) for row in connection.execute(query)]

    def counts(self) -> dict[State, int]:
        with self._database.read() as connection:
            rows = connection.execute(sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state))
            return dict.fromkeys(STATES, 0) | {row[0]: row[1] for row in rows}

    # For those who run them: `owner` is a name that no other process has

    def claim(self, owner: str, lease_sec: float, limit: int = 1) -> list[tuple[Job, Any]]:
        """Up to `limit` waiting jobs with their payloads, the oldest first, now the owner's; each counts an attempt."""
        now = self._clock()
        with self._database.write() as connection:
            lost = self._return_lapsed(connection, now)
            numbers = connection.scalars(
                sa.select(jobs.c.number)
                .where(jobs.c.state == "pending")
                .order_by(jobs.c.number)
                .limit(limit)
                .with_for_update(skip_locked=True)
            ).all()
            rows = (
                connection.execute(
                    jobs.update()
                    .where(jobs.c.number.in_(numbers))
                    .values(
                        state="processing",
                        attempts=jobs.c.attempts + 1,
                        started_at=now,
                        done=0,
                        total=0,
                        lease_owner=owner,
                        lease_until=now + lease_sec,
                    )
                    .returning(*_COLUMNS, jobs.c.payload)
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
        self._free(lost)
        return [(_job(row), json.loads(bodies[row.number])) for row in sorted(rows, key=lambda row: row.number)]

    def renew(self, owner: str, job_ids: Collection[str], lease_sec: float) -> set[str]:
        """Those that are still the owner's, their leases renewed. The others were cancelled, or taken after a lapse."""
        with self._database.write() as connection:
            return set(
                connection.scalars(
                    jobs.update()
                    .where(*_held(owner, job_ids))
                    .values(lease_until=self._clock() + lease_sec)
                    .returning(jobs.c.id)
                )
            )

    def progress(self, owner: str, progress: Mapping[str, tuple[int, int]]) -> None:
        """Sets (done, total) of jobs that are still the owner's."""
        with self._database.write() as connection:
            connection.execute(
                jobs.update()
                .where(jobs.c.id == sa.bindparam("job"), jobs.c.lease_owner == owner, jobs.c.state == "processing")
                .values(done=sa.bindparam("now_done"), total=sa.bindparam("of_total")),
                [{"job": job, "now_done": done, "of_total": total} for job, (done, total) in progress.items()],
            )

    def finish(self, owner: str, outcomes: Mapping[str, Outcome]) -> set[str]:
        """Ends jobs, those that are still the owner's: gives their ids. What is not among them was not written."""
        with self._database.write() as connection:
            held = connection.execute(
                sa.select(jobs.c.number, jobs.c.id, jobs.c.upload)
                .where(*_held(owner, outcomes))
                .order_by(jobs.c.number)
                .with_for_update()
            ).all()
            ended = [(row.number, outcomes[row.id]) for row in held]
            results = [{"number": number, "name": "result", "body": one.result} for number, one in ended if one.result]
            if ended:
                connection.execute(
                    _FINISH.values(_ended(self._clock())), [_finishing(number, one) for number, one in ended]
                )
            if results:
                connection.execute(_DOCUMENT, results)
        self._free(row.upload for row in held)
        return {row.id for row in held}

    def give_back(self, owner: str, job_ids: Collection[str]) -> None:
        """Returns jobs to their places in the queue, as if they had not been tried."""
        with self._database.write() as connection:
            connection.execute(
                jobs.update().where(*_held(owner, job_ids)).values(attempts=jobs.c.attempts - 1, **_WAITING)
            )

    # For those who keep house

    def expire(self, older_than_sec: float, max_bytes: int) -> int:
        """Removes jobs that finished longer ago than that, then the oldest of the finished ones while their payloads
        and results are larger than `max_bytes` together. Gives how many."""
        removed = 0
        summed = (
            sa.select(
                jobs.c.number,
                jobs.c.upload,
                jobs.c.completed_at,
                sa.func.sum(jobs.c.bytes)
                .over(order_by=(jobs.c.completed_at.desc(), jobs.c.number.desc()))
                .label("newer_bytes"),
            )
            .where(jobs.c.state.in_(FINISHED))
            .subquery()
        )
        query = sa.select(summed.c.number, summed.c.upload).where(
            sa.or_(summed.c.completed_at < self._clock() - older_than_sec, summed.c.newer_bytes > max_bytes)
        )
        with self._database.read() as connection:
            old = connection.execute(query).all()
        for start in range(0, len(old), _EXPIRED_AT_A_TIME):  # writers get their turn in between
            some = old[start : start + _EXPIRED_AT_A_TIME]
            numbers = [row.number for row in some]
            with self._database.write() as connection:
                connection.execute(documents.delete().where(documents.c.number.in_(numbers)))
                removed += connection.execute(jobs.delete().where(jobs.c.number.in_(numbers))).rowcount
            self._free(row.upload for row in some)
        return removed

    def sweep(self, grace_sec: float = 3600.0) -> int:
        """Removes uploads whose job is finished, and those that no job names and nobody wrote to for `grace_sec`. What
        a process that was killed left behind ends here. Gives how many."""
        found: dict[str, float] = {}  # before the jobs are read: none is missed
        for path in self.uploads.iterdir():
            with contextlib.suppress(FileNotFoundError):  # others remove files as well
                if path.is_file():
                    found[path.name] = path.stat().st_mtime
        with self._database.read() as connection:
            states = {
                row.upload: row.state
                for row in connection.execute(sa.select(jobs.c.upload, jobs.c.state).where(jobs.c.upload.is_not(None)))
            }
        old = self._clock() - grace_sec
        over = [
            name for name, written in found.items() if (states[name] in FINISHED if name in states else written < old)
        ]
        self._free(over)
        return len(over)

    def webhooks_due(self, hold_sec: float, limit: int = 1) -> list[Job]:
        """Finished jobs whose webhook is yet to be told: the caller's for `hold_sec`, then anybody's again."""
        now = self._clock()
        due = sa.select(jobs.c.number).where(jobs.c.webhook_at <= now).order_by(jobs.c.webhook_at).limit(limit)
        with self._database.read() as connection:
            if connection.execute(due).first() is None:
                return []
        with self._database.write() as connection:
            numbers = connection.scalars(due.with_for_update(skip_locked=True)).all()
            return [
                _job(row)
                for row in connection.execute(
                    jobs.update()
                    .where(jobs.c.number.in_(numbers))
                    .values(webhook_at=now + hold_sec)
                    .returning(*_COLUMNS)
                )
            ]

    def webhook_over(self, job_id: str, *, again: bool = False) -> None:
        """Its webhook was told or given up; `again`: neither, somebody else may try at once."""
        with self._database.write() as connection:
            connection.execute(
                jobs.update()
                .where(jobs.c.id == job_id, jobs.c.webhook_at.is_not(None))
                .values(webhook_at=self._clock() if again else None)
            )

    def _return_lapsed(self, connection: sa.Connection, now: float) -> list[str | None]:
        """Puts jobs whose owner is gone back into the queue, or ends them; gives the uploads of those."""
        lapsed = connection.execute(
            sa.select(jobs.c.number, jobs.c.attempts, jobs.c.upload)
            .where(jobs.c.state == "processing", jobs.c.lease_until < now)
            .with_for_update(skip_locked=True)
        ).all()
        again = [row.number for row in lapsed if row.attempts < self._max_attempts]
        lost = [row.number for row in lapsed if row.attempts >= self._max_attempts]
        if again:
            connection.execute(jobs.update().where(jobs.c.number.in_(again)).values(_WAITING))
        if lost:
            error = {
                "code": WorkerLost.code,
                "retryable": WorkerLost.retryable,
                "message": f"the worker was lost while it ran this job, {self._max_attempts} times (JOB_MAX_ATTEMPTS)",
            }
            connection.execute(
                jobs.update().where(jobs.c.number.in_(lost)).values(state="failed", error=encode(error), **_ended(now))
            )
        return [row.upload for row in lapsed if row.attempts >= self._max_attempts]

    def _free(self, uploads: Iterable[str | None]) -> None:
        for name in uploads:
            if name is not None:
                try:
                    (self.uploads / name).unlink(missing_ok=True)
                except OSError as error:
                    log.warning("an upload could not be removed: %s", error.strerror)


_WAITING: dict[str, Any] = {
    "state": "pending",
    "started_at": None,
    "done": 0,
    "total": 0,
    "lease_owner": None,
    "lease_until": None,
}


def _documented(name: str) -> sa.ColumnElement[bool]:
    return sa.and_(documents.c.number == jobs.c.number, documents.c.name == name)


# Made once, for those that every job needs: building a statement takes longer than running it.
_SUBMIT = jobs.insert().returning(jobs.c.number, sort_by_parameter_order=True)
_DOCUMENT = documents.insert()
_SEE = (
    sa.select(*_COLUMNS, _POSITION.label("position"), documents.c.body)
    .outerjoin_from(jobs, documents, _documented("result"))
    .where(jobs.c.id == sa.bindparam("job"))
)
_FINISH = (
    jobs.update()
    .where(jobs.c.number == sa.bindparam("the_number"))
    .values(
        state=sa.bindparam("end_state"),
        error=sa.bindparam("end_error"),
        bytes=jobs.c.bytes + sa.bindparam("more_bytes"),
        done=sa.func.coalesce(sa.bindparam("end_done", type_=sa.Integer), jobs.c.done),
        total=sa.func.coalesce(sa.bindparam("end_total", type_=sa.Integer), jobs.c.total),
    )
)


def _new(number: int, row: Mapping[str, Any]) -> Job:
    values: dict[str, Any] = {field.name: row.get(field.name) for field in fields(Job)}
    return Job(**values | {"number": number})


def _finishing(number: int, outcome: Outcome) -> dict[str, Any]:
    done, total = outcome.progress or (None, None)
    return {
        "the_number": number,
        "end_state": outcome.state,
        "end_error": outcome.error,
        "more_bytes": len(outcome.result or ""),
        "end_done": done,
        "end_total": total,
    }


def _ended(now: float) -> dict[str, Any]:
    """What every end has in common."""
    return {
        "completed_at": now,
        "lease_owner": None,
        "lease_until": None,
        "webhook_at": sa.case((jobs.c.webhook.is_not(None), now), else_=sa.null()),
    }


def _held(owner: str, job_ids: Collection[str]) -> tuple[sa.ColumnElement[bool], ...]:
    return jobs.c.id.in_(list(job_ids)), jobs.c.lease_owner == owner, jobs.c.state == "processing"


def _job(row: Any) -> Job:
    values = dict(zip(Job.__slots__, row, strict=False))  # _COLUMNS stand first
    return Job(**values | {"error": None if row.error is None else json.loads(row.error)})


def _storable(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "replace").decode().replace("\0", "�")
