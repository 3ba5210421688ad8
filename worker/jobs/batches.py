"""Batches that survive a restart: what a process has to do for each, step by step.

    validating ──▶ in_progress ──▶ finalizing ──▶ completed | expired
        │  │            │
        ▼  └────────────┴─ cancel ──▶ `cancelling` ──▶ `cancelled`
      failed

A batch that has not ended is due at `due_at`. A process claims it, holds it under a lease, takes one step, and releases
it. A step that has lost its batch, to another process or to `cancel`, writes nothing and raises BatchLost. The lines of
a batch become jobs in the transaction that also notes how far its input is read, so each line becomes one job. Every
method raises StoreError or DiskFull if the database fails.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from worker.jobs import statements
from worker.jobs.database import Database
from worker.jobs.records import STATES, Batch, BatchStatus, Ended, State, Submission, encode
from worker.jobs.schema import batches, documents, files, jobs

_COLUMNS = [batches.c[field.name] for field in fields(Batch)]
_ID = re.compile(r"batch_[0-9a-f]{32}")
_JSON = ("metadata", "errors")
_PAGE = 20  # jobs with their results in memory; a result may have megabytes
_REMOVED_AT_A_TIME = 500
CANCELABLE: tuple[BatchStatus, ...] = ("validating", "in_progress")


class BatchLost(Exception):
    """Another process holds the batch, or its status has changed. What was to be written is not."""


class BatchStore:
    """The batches in one database. Thread-safe. `clock`: returns the seconds since 1970."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self.clock = database, clock

    # Methods for clients

    def submit(
        self,
        *,
        owner: str | None,
        endpoint: str,
        input_file_id: str,
        input_upload: str,
        metadata: dict[str, str] | None,
        window_sec: float,
        output_keep_sec: float,
    ) -> Batch:
        """Store a batch, and return it. window_sec: the time after which it expires."""
        now = self.clock()
        row = {
            "id": f"batch_{uuid.uuid4().hex}",
            "owner": owner,
            "endpoint": endpoint,
            "input_file_id": input_file_id,
            "input_upload": input_upload,
            "metadata": None if metadata is None else encode(metadata),
            "output_keep_sec": output_keep_sec,
            "status": "validating",
            "created_at": now,
            "expires_at": now + window_sec,
            **dict.fromkeys(("total", "completed", "failed", "read_bytes", "read_lines"), 0),
            "due_at": now,
        }
        with self._database.write() as connection:
            return _batch(connection.execute(batches.insert().values(row).returning(*_COLUMNS)).one())

    def find(self, batch_id: str) -> Batch | None:
        """Return a batch, or None."""
        if not _ID.fullmatch(batch_id):
            return None
        with self._database.read() as connection:
            row = connection.execute(sa.select(*_COLUMNS).where(batches.c.id == batch_id)).one_or_none()
        return None if row is None else _batch(row)

    def recent(self, *, owner: str | None, after: int | None, limit: int) -> list[Batch]:
        """Return up to `limit` batches, newest first. owner: None stands for all. after: a number, exclusive."""
        query = sa.select(*_COLUMNS).order_by(batches.c.number.desc()).limit(limit)
        if owner is not None:
            query = query.where(batches.c.owner == owner)
        if after is not None:
            query = query.where(batches.c.number < after)
        with self._database.read() as connection:
            return [_batch(row) for row in connection.execute(query)]

    def cancel(self, batch_id: str) -> bool:
        """Let a batch stop. Return False if there is no such batch, or if its results are being written already."""
        now = self.clock()
        with self._database.write() as connection:
            changed = connection.execute(
                batches.update()
                .where(batches.c.id == batch_id, batches.c.status.in_(CANCELABLE))
                .values(status="cancelling", cancelling_at=now, due_at=now)
            )
        return changed.rowcount > 0

    # Methods for the processes that run batches; `holder` is a name that no other process has

    def claim(self, holder: str, lease_sec: float) -> Batch | None:
        """Hold the batch that is due for longest, and return it; None if none is due."""
        now = self.clock()
        due = sa.select(batches.c.number).where(batches.c.due_at <= now).order_by(batches.c.due_at).limit(1)
        with self._database.read() as connection:
            if connection.execute(due).first() is None:
                return None
        with self._database.write() as connection:
            number = connection.scalar(due.with_for_update(skip_locked=True))
            if number is None:
                return None
            claimed = batches.update().where(batches.c.number == number).returning(*_COLUMNS)
            return _batch(connection.execute(claimed.values(holder=holder, due_at=now + lease_sec)).one())

    def update(self, batch: Batch, holder: str, **values: Any) -> None:
        """Write values of a held batch. Raises: BatchLost."""
        with self._database.write() as connection:
            _update(connection, batch, holder, values)

    def hold(self, batch: Batch, holder: str, seconds: float) -> None:
        """Hold a batch for some more seconds, or, in a step that ends, until its next step. Raises: BatchLost."""
        self.update(batch, holder, due_at=self.clock() + seconds)

    def release(self, batch: Batch, holder: str, due_in_sec: float) -> None:
        """Make the next step of a batch due, unless the batch has ended, was lost, or changed while it was held."""
        with self._database.write() as connection:
            connection.execute(
                batches.update()
                .where(batches.c.number == batch.number, batches.c.holder == holder, batches.c.due_at.is_not(None))
                .values(
                    due_at=sa.case((batches.c.status == batch.status, self.clock() + due_in_sec), else_=self.clock())
                )
            )

    def add_jobs(
        self, batch: Batch, holder: str, submissions: Sequence[Submission], *, read_bytes: int, read_lines: int
    ) -> None:
        """Store jobs for lines of a held batch, and how far its input is read then. Raises: BatchLost."""
        rows = [statements.new_row(one, self.clock()) | {"batch": batch.number} for one in submissions]
        with self._database.write() as connection:
            _update(connection, batch, holder, {"read_bytes": read_bytes, "read_lines": read_lines})
            if rows:
                connection.execute(jobs.insert(), rows)

    def counts(self, batch: Batch) -> dict[State, int]:
        """Return the number of a batch's jobs in each state."""
        query = sa.select(jobs.c.state, sa.func.count()).where(jobs.c.batch == batch.number).group_by(jobs.c.state)
        with self._database.read() as connection:
            return dict.fromkeys(STATES, 0) | {row[0]: row[1] for row in connection.execute(query)}

    def stop_jobs(self, batch: Batch) -> None:
        """Cancel the unfinished jobs of a batch."""
        with self._database.write() as connection:
            stopped = connection.scalars(
                jobs.update()
                .where(jobs.c.batch == batch.number, jobs.c.state.in_(("pending", "processing")))
                .values(state="cancelled", **statements.end_values(self.clock()))
                .returning(jobs.c.number)
            ).all()
            statements.remove_texts(connection, stopped)

    def ended(self, batch: Batch) -> Iterator[Ended]:
        """Yield the jobs of a batch, none of which runs, in the order of its lines."""
        query = (
            sa.select(jobs.c.number, jobs.c.id, jobs.c.state, jobs.c.payload, jobs.c.error, documents.c.body)
            .outerjoin_from(jobs, documents, statements.has_document("result"))
            .where(jobs.c.batch == batch.number)
            .order_by(jobs.c.number)
            .limit(_PAGE)
        )
        last = 0
        while True:
            with self._database.read() as connection:
                rows = connection.execute(query.where(jobs.c.number > last)).all()
            if not rows:
                return
            for row in rows:
                last = row.number
                yield Ended(row.number, row.id, row.state, *map(_decoded, (row.payload, row.body, row.error)))

    def finish(self, batch: Batch, holder: str, new_files: Sequence[dict[str, Any]], **values: Any) -> None:
        """End a held batch, and store rows of files with it. Raises: BatchLost."""
        with self._database.write() as connection:
            _update(connection, batch, holder, {**values, "due_at": None})
            if new_files:
                connection.execute(files.insert(), list(new_files))

    def remove_jobs(self, batch: Batch) -> None:
        """Remove the jobs of a batch that has ended."""
        some = sa.select(jobs.c.number).where(jobs.c.batch == batch.number).limit(_REMOVED_AT_A_TIME)
        while True:  # other writers take turns in between
            with self._database.write() as connection:
                numbers = connection.scalars(some).all()
                connection.execute(documents.delete().where(documents.c.number.in_(numbers)))
                connection.execute(jobs.delete().where(jobs.c.number.in_(numbers)))
            if not numbers:
                return

    def expire(self, older_than_sec: float) -> None:
        """Remove the batches that were created more than `older_than_sec` seconds ago and have ended."""
        with self._database.write() as connection:
            connection.execute(
                batches.delete().where(batches.c.due_at.is_(None), batches.c.created_at < self.clock() - older_than_sec)
            )


def _update(connection: sa.Connection, batch: Batch, holder: str, values: dict[str, Any]) -> None:
    stored = {name: encode(value) if name in _JSON else value for name, value in values.items()}
    changed = connection.execute(
        batches.update()
        .where(batches.c.number == batch.number, batches.c.holder == holder, batches.c.status == batch.status)
        .values(stored)
    )
    if not changed.rowcount:
        raise BatchLost


def _batch(row: Any) -> Batch:
    values = dict(zip(Batch.__slots__, row, strict=True))
    return Batch(**values | {name: _decoded(values[name]) for name in _JSON})


def _decoded(text: str | None) -> Any:
    return None if text is None else json.loads(text)
