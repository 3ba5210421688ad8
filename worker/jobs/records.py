"""What the job store keeps and tells: plain records, without a database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, get_args

State = Literal["pending", "processing", "completed", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
FINISHED: tuple[State, ...] = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Job:
    """A job without its payload and result. `number` is its place in the order of submission, and the cursor of
    `recent`. `done` of `total` inputs; `error` is {"code", "message", "retryable"}."""

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

    def status(self) -> dict[str, Any]:
        """What may be told to whoever submitted it, as JSON; times in ISO 8601, UTC."""
        return {
            "id": self.id,
            "kind": self.kind,
            "state": self.state,
            "filename": self.filename,
            "created_at": _iso(self.created_at),
            "started_at": _iso(self.started_at),
            "completed_at": _iso(self.completed_at),
            "progress": {"done": self.done, "total": self.total},
            "attempts": self.attempts,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """`position`: how many jobs are before it in the queue, None for one that does not wait. `answer`: None if there
    is none."""

    job: Job
    position: int | None
    answer: Any


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to be. `upload`: a file's name in the store's folder."""

    kind: str
    payload: Any
    filename: str | None = None
    upload: str | None = None
    webhook: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: an answer, or an error and perhaps what there is of an answer. Raises TypeError or ValueError
    for an answer that is not strict JSON. `progress`: the last (done, total), where it changed."""

    state: Literal["completed", "failed"]
    result: str | None
    error: str | None
    progress: tuple[int, int] | None

    @classmethod
    def completed(cls, answer: Any, progress: tuple[int, int] | None = None) -> Outcome:
        return cls("completed", encode(answer), None, progress)

    @classmethod
    def failed(cls, error: Mapping[str, Any], answer: Any = None, progress: tuple[int, int] | None = None) -> Outcome:
        return cls("failed", None if answer is None else encode(answer), encode(error), progress)


def encode(value: Any) -> str:
    """JSON in ASCII: a lone surrogate or a NUL in somebody's text would otherwise not be storable."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")
