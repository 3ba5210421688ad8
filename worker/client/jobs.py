"""Calls and jobs of a server, or of a Runpod endpoint, with results as plain JSON.

    result = await client.call(kind, audio, options)     the result of one input, as `worker.protocol.render` writes it
    job = await client.submit(kind, audio, options)      POST /run
    status = await client.job(job)                       GET /status/{id}, as Runpod's API shows it
    result = await client.result(status)                 of a completed job; raises the error of a failed one

A server and a Runpod endpoint have the same routes for jobs. A server accepts a body of MAX_JSON_BYTES, and Runpod one
of 10 MB, so send long audio as a URL.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Any

from worker.client.audio import Audio
from worker.client.clients import AsyncClient
from worker.client.results import CallResult
from worker.client.runpod import READ_SEC, Endpoint, output_of, result
from worker.client.transport import Json, Send, exchange
from worker.errors import InternalError


class JobClient(AsyncClient):
    """An awaitable client for calls and jobs. Every method raises AviaryError."""

    async def call(self, kind: type[CallResult], audio: Audio, options: Mapping[str, Any], **fixed: Any) -> Json:
        """Return the result of a call. `fixed` are fields beside the options."""
        return await self._run(self._calls.target.call(*self._calls.request(kind, audio, options, **fixed)))

    async def submit(self, kind: type[CallResult], audio: Audio, options: Mapping[str, Any], **fixed: Any) -> str:
        """Submit a job, and return its id."""
        task, source, fields = self._calls.request(kind, audio, options, **fixed)
        target = self._calls.target
        if isinstance(target, Endpoint):
            payload = target.payload(task, source, fields)
        else:
            payload = {"task": task, **fields, "inputs": [{"source": source}]}
        job = await self._run(exchange(Send("POST", f"{target.base}/run", json={"input": payload}), 0))
        if not isinstance(job.get("id"), str):
            raise InternalError("the server stored a job without an id")
        return str(job["id"])

    async def job(self, job_id: str) -> Json:
        """Return the status of a job. Raises JobNotFound."""
        name = urllib.parse.quote(job_id, safe="")
        url = f"{self._calls.target.base}/status/{name}"
        return await self._run(exchange(Send("GET", url, timeout=READ_SEC), self._calls.retries))

    async def result(self, status: Json) -> Json:
        """Return the result in the status of a job that has ended. Raises the error of a job that failed."""
        output = output_of(status)
        target = self._calls.target
        if isinstance(target, Endpoint):
            output = await self._run(target.stored(output))
        return result(output)
