"""The statements and the values of the job store: what is written into a row, and how a row becomes a Job.

The statements that every job needs are built once, because building a statement takes longer than running it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from worker.jobs.records import Job, Outcome, Submission, encode
from worker.jobs.schema import batches, documents, jobs
from worker.jobs.uploads import is_name
from worker.types import Progress

COLUMNS = [jobs.c[field.name] for field in fields(Job)]
_others = jobs.alias()
POSITION = sa.case(
    (
        jobs.c.state == "pending",
        sa.select(sa.func.count())
        .select_from(_others)
        .where(_others.c.state == "pending", _others.c.number < jobs.c.number)
        .scalar_subquery(),
    )
)
PENDING: dict[str, Any] = {
    "state": "pending",
    "started_at": None,
    "done": 0,
    "audio_sec_done": None,
    "audio_sec_total": None,
    "lease_owner": None,
    "lease_until": None,
}


def has_document(name: str) -> sa.ColumnElement[bool]:
    """Return the condition that a row of `documents` is this document of the job in the same row."""
    return sa.and_(documents.c.number == jobs.c.number, documents.c.name == name)


IS_LINE = jobs.c.batch.is_not(None)  # of a batch: such jobs are shown, canceled and removed with their batch only
IS_LINE_IN_USE = jobs.c.batch.in_(sa.select(batches.c.number).where(batches.c.due_at.is_not(None)))
IS_TEXT = documents.c.name.startswith("text ")
_IS_HELD = (
    jobs.c.id == sa.bindparam("job"),
    jobs.c.lease_owner == sa.bindparam("holder"),
    jobs.c.state == "processing",
)
PROGRESS = (
    jobs.update()
    .where(*_IS_HELD)
    .values(
        done=sa.bindparam("now_done"),
        total=sa.bindparam("now_total"),
        audio_sec_done=sa.bindparam("now_sec_done"),
        audio_sec_total=sa.bindparam("now_sec_total"),
    )
)
ADD_TEXT = documents.insert().from_select(
    ["number", "name", "body"],
    sa.select(jobs.c.number, sa.bindparam("the_name", type_=sa.Text), sa.bindparam("the_body", type_=sa.Text)).where(
        *_IS_HELD
    ),
)
SUBMIT = jobs.insert().returning(jobs.c.number, sort_by_parameter_order=True)
DOCUMENT = documents.insert()
SEE = (
    sa.select(*COLUMNS, POSITION.label("position"), documents.c.body)
    .outerjoin_from(jobs, documents, has_document("result"))
    .where(jobs.c.id == sa.bindparam("job"))
)
FINISH = (
    jobs.update()
    .where(jobs.c.number == sa.bindparam("the_number"))
    .values(
        state=sa.bindparam("end_state"),
        error=sa.bindparam("end_error"),
        bytes=jobs.c.bytes + sa.bindparam("more_bytes"),
        done=sa.func.coalesce(sa.bindparam("now_done", type_=sa.Integer), jobs.c.done),
        total=sa.func.coalesce(sa.bindparam("now_total", type_=sa.Integer), jobs.c.total),
        audio_sec_done=sa.func.coalesce(sa.bindparam("now_sec_done", type_=sa.Double), jobs.c.audio_sec_done),
        audio_sec_total=sa.func.coalesce(sa.bindparam("now_sec_total", type_=sa.Double), jobs.c.audio_sec_total),
    )
)


def remove_texts(connection: sa.Connection, numbers: Sequence[int]) -> None:
    """Remove the texts of jobs that no longer run."""
    if numbers:
        connection.execute(documents.delete().where(documents.c.number.in_(numbers), IS_TEXT))


def new_row(submission: Submission, now: float) -> dict[str, Any]:
    """Return the values of a new job. Raises: ValueError as `JobStore.submit_all` does."""
    upload = submission.upload
    if upload is not None and not is_name(upload):
        raise ValueError(f"upload must be 32 hexadecimal digits, the name of a file in the folder, not {upload!r}")
    body = encode(submission.payload)
    return {
        "id": str(uuid.uuid4()),
        "kind": submission.kind,
        "filename": storable(submission.filename),
        "upload": upload,
        "webhook": submission.webhook,
        "owner": submission.owner,
        "task": submission.task,
        "model": storable(submission.model),
        "upload_bytes": submission.upload_bytes,
        "state": "pending",
        "created_at": now,
        "done": 0,
        "total": submission.total,
        "attempts": 0,
        "bytes": len(body),
        "payload": body,
    }


def new_job(number: int, row: Mapping[str, Any]) -> Job:
    """Return the job that a stored row of values is, under the number that the database gave it."""
    values: dict[str, Any] = {field.name: row.get(field.name) for field in fields(Job)}
    return Job(**values | {"number": number})


def finish_values(number: int, outcome: Outcome) -> dict[str, Any]:
    """Return the values of one job for FINISH."""
    return {
        "the_number": number,
        "end_state": outcome.state,
        "end_error": outcome.error,
        "more_bytes": len(outcome.result or ""),
        **progress_values(outcome.progress),
    }


def progress_values(progress: Progress | None) -> dict[str, Any]:
    """Return the values of a job's progress for PROGRESS and FINISH."""
    return {
        "now_done": progress and progress.inputs_done,
        "now_total": progress and progress.inputs_total,
        "now_sec_done": progress and progress.audio_sec_done,
        "now_sec_total": progress and progress.audio_sec_total,
    }


def end_values(now: float) -> dict[str, Any]:
    """Return the values that every job gets when it ends, in any state."""
    return {
        "completed_at": now,
        "lease_owner": None,
        "lease_until": None,
        "webhook_at": sa.case((jobs.c.webhook.is_not(None), now), else_=sa.null()),
    }


def held_by(owner: str, job_ids: Collection[str]) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions that a job is one of `job_ids` and that `owner` holds it."""
    return jobs.c.id.in_(list(job_ids)), jobs.c.lease_owner == owner, jobs.c.state == "processing"


def job_of(row: Any) -> Job:
    """Return the job that a row of the database states. The row begins with COLUMNS."""
    values = dict(zip(Job.__slots__, row, strict=False))
    return Job(**values | {"error": None if row.error is None else json.loads(row.error)})


def storable(text: str | None) -> str | None:
    """Return the text without lone surrogates and NUL characters, which databases cannot store."""
    return None if text is None else text.encode("utf-8", "replace").decode().replace("\0", "�")
