"""A server or a Runpod endpoint as an executor. Files of this machine are uploaded, if they lie in ALLOWED_PATHS."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from worker.audio.fetch import check_allowed
from worker.client.jobs import JobClient
from worker.client.results import CallResult, Captioned, Replied, Transcribed
from worker.config import Settings
from worker.entrypoints.mcp.executor import Executor, Json, Report, Task, not_completed
from worker.errors import WrongJobState
from worker.protocol.runpod import STATES

_KINDS: dict[Task, type[CallResult]] = {"transcribe": Transcribed, "caption": Captioned, "chat": Replied}
_ELSEWHERE = re.compile(r"(https?|s3)://|data:")  # what the client sends as it is; it uploads every path
_STATES = {theirs: ours for ours, theirs in STATES.items()} | {"RUNNING": "processing", "TIMED_OUT": "failed"}


class RemoteExecutor(Executor):
    """The client of a server. Use it from one event loop."""

    def __init__(self, url: str, api_key: str | None, settings: Settings) -> None:
        """Raises RequestError if `url` is no URL."""
        self._settings = settings
        self._client = JobClient(url, api_key)

    @override
    async def run(self, task: Task, audio: str, options: Mapping[str, Any], report: Report) -> Json:
        options, fixed = await self._checked(audio, options)
        await report(0.0, None)
        result = await self._client.call(_KINDS[task], audio, options, **fixed)
        if (seconds := result.get("duration_sec")) is not None:
            await report(seconds, seconds)
        return result

    @override
    async def submit(self, task: Task, audio: str, options: Mapping[str, Any]) -> str:
        options, fixed = await self._checked(audio, options)
        return await self._client.submit(_KINDS[task], audio, options, **fixed)

    @override
    async def status(self, job_id: str) -> Json:
        job = await self._client.job(job_id)
        progress = job.get("progress")
        known: Json = progress if isinstance(progress, dict) else {}
        return {
            "job_id": job_id,
            "status": _STATES.get(str(job.get("status")), "processing"),
            "audio_sec_done": known.get("audio_sec_done"),
            "audio_sec_total": known.get("audio_sec_total"),
            "error": str(job["error"]) if "error" in job else None,
        }

    @override
    async def result(self, job_id: str) -> tuple[Task | None, Json]:
        job = await self._client.job(job_id)
        status = _STATES.get(str(job.get("status")), "processing")
        if status in ("pending", "processing"):
            raise WrongJobState(not_completed(job_id, status))
        return None, await self._client.result(job)

    @override
    async def close(self) -> None:
        await self._client.close()

    async def _checked(self, audio: str, options: Mapping[str, Any]) -> tuple[Json, Json]:
        """Return the options of a call, and the fields beside them. Raises SourceForbidden for a path."""
        if not _ELSEWHERE.match(audio):
            await asyncio.to_thread(check_allowed, Path(audio), self._settings)
        fixed = {name: options[name] for name in ("messages",) if name in options}
        return {name: value for name, value in options.items() if name not in fixed}, fixed
