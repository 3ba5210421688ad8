"""Jobs over HTTP: an upload that is transcribed some time later, whatever happens to the server meanwhile.

    POST /transcribe/async          a form with `file`, `model`, `language`, `include_timestamps`, `webhook`
    GET  /jobs                      the newest
    GET  /jobs/{id}/status, /jobs/{id}/result; POST /jobs/{id}/cancel

Those that /run has stored can be asked for here too.
"""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import JSONResponse, Response

from worker.entrypoints.http import answers, body, openapi
from worker.entrypoints.http.job_queue import UPLOAD, JobQueue
from worker.entrypoints.http.route import Route
from worker.entrypoints.http.routes import legacy, runpod
from worker.entrypoints.http.service import Service
from worker.errors import JobFailed, RequestError, WrongJobState
from worker.jobs.records import STATES, Job, Seen

Json = dict[str, Any]

MOST_LISTED = 500


def router(service: Service, background: JobQueue) -> APIRouter:
    """The routes, on one service and its jobs."""
    routes = APIRouter(tags=["Jobs"], route_class=Route)
    store = background.store

    @routes.post("/transcribe/async", **openapi.submit())
    async def submit(http: Request) -> JSONResponse:
        given = await body.read(http)
        try:
            webhook = given.fields.pop("webhook", None)
            payload, filename = legacy.upload_payload(given, service)
            file = given.files[payload.pop("audio")]
            job = await background.submit(
                "transcribe", {"audio": UPLOAD, **payload}, file=file, filename=filename, webhook=webhook
            )
        finally:
            given.close()
        return JSONResponse(
            {"job_id": job.id, "status": job.state, "message": f"Transcription job started for {filename}"}
        )

    @routes.get("/jobs", **openapi.jobs())
    async def listed(
        state: str | None = None, kind: str | None = None, limit: int = 100, before: int | None = None
    ) -> JSONResponse:
        if state is not None and state not in STATES:
            raise RequestError(f"state must be one of {', '.join(STATES)}", param="state")
        if not 1 <= limit <= MOST_LISTED:
            raise RequestError(f"limit must be 1 to {MOST_LISTED}", param="limit")
        if before is not None and not 0 <= before < 1 << 62:
            raise RequestError("before must be the cursor of an earlier answer", param="before")

        def read() -> Json:
            found = store.recent(state=state, kind=kind, limit=limit, before=before)
            return {
                "jobs": [_status(one) for one in found],
                "counts": store.counts(),
                "before": found[-1].job.number if len(found) == limit else None,
            }

        return JSONResponse(await asyncio.to_thread(read))

    # Each of these hops to a thread once, for all it does: under load a hop is what takes longest.

    @routes.get("/jobs/{name}/status", **openapi.job())
    async def status(name: str) -> Response:
        def told() -> Json:
            found = background.find(name)
            return _status(found) | {"result": _result(found) if found.job.state == "completed" else None}

        return await answers.of(told)

    @routes.get("/jobs/{name}/result", **openapi.job_result())
    async def result(name: str) -> Response:
        def told() -> Any:
            found = background.find(name)
            job = found.job
            if job.state == "failed":
                error = job.error or {}
                raise JobFailed(
                    error.get("message", "failed"), code=error.get("code"), retryable=bool(error.get("retryable"))
                )
            if job.state != "completed":
                raise WrongJobState(
                    f"the job is {job.state}: there is no result" + (" yet" if job.state != "cancelled" else "")
                )
            return _result(found)

        return await answers.of(told)

    @routes.post("/jobs/{name}/cancel", **openapi.cancel())
    async def cancel(name: str) -> JSONResponse:
        job = await asyncio.to_thread(background.cancel, name)
        return JSONResponse({"message": f"Job {job.id} cancelled", "status": job.state})

    return routes


def webhook_body(job: Job) -> Json:
    """What a webhook is told: the status, in the manner in which the job was sent."""
    return runpod.shape(job) if job.kind == "run" else _status(Seen(job, None, None))


def _status(found: Seen) -> Json:
    job = found.job
    return {
        "job_id": job.id,
        "status": job.state,
        "filename": job.filename,
        "created_at": _iso(job.created_at),
        "completed_at": _iso(job.completed_at),
        "error": (job.error or {}).get("message"),
        "progress": {"done": job.done, "total": job.total},
        "position": found.position,
    }


def _result(found: Seen) -> Any:
    """What an upload's job answers in its own manner; another's answer is itself."""
    job, answer = found.job, found.answer
    if job.kind != "transcribe":
        return answer
    (one,) = answer["results"]
    segments = [
        {"start": s["start"], "end": s["end"], "text": s["segment"]}
        for s in one.get("timestamps", {}).get("segment", [])
    ]
    return {"text": one["text"], "segments": segments, "filename": job.filename, "timestamp": _iso(job.completed_at)}


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return (
        datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
        .replace(tzinfo=None)
        .isoformat(timespec="seconds")
    )
