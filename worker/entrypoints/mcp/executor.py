"""What runs the requests of the tools."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

Json = dict[str, Any]
Task = Literal["transcribe", "caption", "chat"]
Report = Callable[[float, "float | None"], Awaitable[None]]
"""Takes the seconds of audio that are done, and those of the input, or None while they are unknown."""


class Executor(ABC):
    """An engine or a server. `audio` is a path or a URL; a path must lie in ALLOWED_PATHS. Methods raise AviaryError.

    Results are those of one input, as `worker.protocol.render` writes them, with `model`.
    """

    @abstractmethod
    async def run(self, task: Task, audio: str, options: Mapping[str, Any], report: Report) -> Json:
        """Return the result of a request. Canceling the call drops the work."""

    @abstractmethod
    async def submit(self, task: Task, audio: str, options: Mapping[str, Any]) -> str:
        """Start a job, and return its id."""

    @abstractmethod
    async def status(self, job_id: str) -> Json:
        """Return {"job_id", "status", "audio_sec_done", "audio_sec_total", "error"}, of which the last three may be
        null. Raises JobNotFound."""

    @abstractmethod
    async def result(self, job_id: str) -> tuple[Task | None, Json]:
        """Return the task of a completed job, if known, and its result.

        Raises JobNotFound; WrongJobState for a job that runs; the error of a job that failed.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop all work."""


def not_completed(job_id: str, status: str) -> str:
    """Return the message for a job that has no result."""
    return f"the job {job_id} is {status}: it has no result yet; ask again later"
