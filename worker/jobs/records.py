"""The records of the job store: plain data, without a database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, get_args

from worker.types import Progress

State = Literal["pending", "processing", "completed", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
FINISHED: tuple[State, ...] = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Job:
    """A job without its payload and result. Times are seconds since 1970.

    `number` is the job's position in the order of submission, and the cursor of `JobStore.recent`. `upload` is the name
    of its file in the store's folder. `done` of `total` inputs are processed, and `audio_sec_done` of `audio_sec_total`
    seconds of audio, each of which is None while it is unknown. `attempts` counts how often the job was started.
    `error` is {"code", "message", "retryable"}. `lease_owner` is the process that runs the job, which loses it to
    another at `lease_until`. `owner` names the API key that submitted the job, or is None if none was required.
    `task` and `model` (its id) are None if the inputs differ in them, `upload_bytes` if nothing was uploaded, and all
    three for jobs that an earlier version stored.
    """

    number: int
    id: str
    kind: str
    filename: str | None
    upload: str | None
    webhook: str | None
    state: State
    created_at: float
    started_at: float | None
    completed_at: float | None
    done: int
    total: int
    attempts: int
    error: dict[str, Any] | None
    lease_owner: str | None
    lease_until: float | None
    owner: str | None
    audio_sec_done: float | None
    audio_sec_total: float | None
    task: str | None
    model: str | None
    upload_bytes: int | None

    @property
    def progress(self) -> dict[str, Any]:
        """How far the job has come, as JSON."""
        return {
            "done": self.done,
            "total": self.total,
            "audio_sec_done": _rounded(self.audio_sec_done),
            "audio_sec_total": _rounded(self.audio_sec_total),
        }

    def status(self) -> dict[str, Any]:
        """Return the public status as JSON, with times in ISO 8601, UTC."""
        return {
            "id": self.id,
            "kind": self.kind,
            "state": self.state,
            "filename": self.filename,
            "created_at": _iso(self.created_at),
            "started_at": _iso(self.started_at),
            "completed_at": _iso(self.completed_at),
            "progress": self.progress,
            "attempts": self.attempts,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """A job as one read found it.

    `position` is the number of pending jobs that were submitted earlier, or None if the job is not pending. `answer` is
    the result, or None if there is none.
    """

    job: Job
    position: int | None
    answer: Any


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to submit. `upload` is the name of a file in the store's folder, and `webhook` the URL to notify.

    `owner` names the API key of the submitter, or is None. `total` is the number of inputs. `task`, `model` and
    `upload_bytes` are as in `Job`.
    """

    kind: str
    payload: Any
    filename: str | None = None
    upload: str | None = None
    webhook: str | None = None
    owner: str | None = None
    total: int = 0
    task: str | None = None
    model: str | None = None
    upload_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a client, or of a batch's results. Times are seconds since 1970.

    `number` is its position in the order of creation. `owner` names the API key, or is None if none was required.
    `upload` is the name of the file in the store's folder.
    """

    number: int
    id: str
    owner: str | None
    filename: str
    purpose: str
    bytes: int
    created_at: float
    expires_at: float
    upload: str


BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch: a job for each line of its input file. Times are seconds since 1970, or None.

    `input_upload` is the name of the input in the store's folder, of which `read_lines` lines, `read_bytes` bytes, have
    become jobs. `output_keep_sec` is how long the files of its results are kept. `total` is 0 until the input has been
    validated. `errors` are those of the validation: {"code", "message", "line", "param"}.
    """

    number: int
    id: str
    owner: str | None
    endpoint: str
    input_file_id: str
    input_upload: str
    metadata: dict[str, str] | None
    output_keep_sec: float
    status: BatchStatus
    created_at: float
    expires_at: float
    in_progress_at: float | None
    finalizing_at: float | None
    completed_at: float | None
    failed_at: float | None
    expired_at: float | None
    cancelling_at: float | None
    cancelled_at: float | None
    total: int
    completed: int
    failed: int
    errors: list[dict[str, Any]] | None
    output_file_id: str | None
    error_file_id: str | None
    read_bytes: int
    read_lines: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A job of a batch that has ended. `payload`, `answer` and `error` are as in `Submission`, `Seen` and `Job`."""

    number: int
    id: str
    state: State
    payload: Any
    answer: Any
    error: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: with a result, or with an error and possibly a partial result.

    `result` and `error` are JSON. `progress` is the last progress if it changed since it was stored. The
    constructors below raise TypeError or ValueError if a result is not strict JSON.
    """

    state: Literal["completed", "failed"]
    result: str | None
    error: str | None
    progress: Progress | None

    @classmethod
    def completed(cls, answer: Any, progress: Progress | None = None) -> Outcome:
        """Return the outcome of a job that succeeded."""
        return cls("completed", encode(answer), None, progress)

    @classmethod
    def failed(cls, error: Mapping[str, Any], answer: Any = None, progress: Progress | None = None) -> Outcome:
        """Return the outcome of a job that failed; `error` is {"code", "message", "retryable"}."""
        return cls("failed", None if answer is None else encode(answer), encode(error), progress)


def encode(value: Any) -> str:
    """Return a value as ASCII JSON, because databases cannot store lone surrogates and NUL characters as text.

    Raises: TypeError or ValueError if the value is not strict JSON.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")
