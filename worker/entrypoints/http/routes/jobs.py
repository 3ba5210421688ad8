"""Jobs over HTTP: an upload that is transcribed later and outlives a restart of the server.

    POST /transcribe/async          a form with `file`, `model`, `language`, `include_timestamps`, `webhook`
    GET  /jobs                      the newest jobs
    GET  /jobs/{id}/status, /jobs/{id}/result; POST /jobs/{id}/cancel, /jobs/{id}/retry

Jobs stored by POST /run are listed here too.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from worker.entrypoints.http.body import RequestBody
from worker.entrypoints.http.callers import SentBy
from worker.entrypoints.http.job_queue import UPLOAD, JobQueue
from worker.entrypoints.http.openapi import STORED, TEXT, UPLOAD_FORM, WORK, body, failures
from worker.entrypoints.http.response_models import JobAccepted, JobPage, JobStatus
from worker.entrypoints.http.responses import large_json
from worker.entrypoints.http.service import Service
from worker.errors import JobFailed, RequestError, WrongJobState
from worker.jobs.records import STATES, Job, Seen
from worker.protocol import legacy, runpod

Json = dict[str, Any]

MAX_LISTED = 500


def router(service: Service, queue: JobQueue) -> APIRouter:
    """Return the routes on one service and its jobs."""
    routes = APIRouter(tags=["Jobs"])
    store = queue.store

    @routes.post(
        "/transcribe/async",
        summary="Transcribe an upload as a job",
        response_model=JobAccepted,
        responses=failures(*WORK, 507),
        openapi_extra=body(form={**UPLOAD_FORM, "webhook": TEXT}),
    )
    async def submit(sent: RequestBody, caller: SentBy) -> Response:
        fields = dict(sent.fields)
        webhook = fields.pop("webhook", None)
        file, filename = sent.upload("file")
        payload = legacy.upload_payload(fields, service.settings) | {"audio": UPLOAD}
        job = await queue.submit(
            "transcribe", payload, file=file, filename=filename, webhook=webhook, owner=caller.owner
        )
        message = f"Transcription job started for {filename}"
        return JSONResponse({"job_id": job.id, "status": job.state, "message": message})

    @routes.get("/jobs", summary="The newest jobs", response_model=JobPage, responses=failures(400, 401, 503))
    async def newest(
        caller: SentBy,
        state: str | None = None,
        kind: str | None = None,
        search: str | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> Response:
        if state is not None and state not in STATES:
            raise RequestError(f"state must be one of {', '.join(STATES)}", param="state")
        if not 1 <= limit <= MAX_LISTED:
            raise RequestError(f"limit must be 1 to {MAX_LISTED}", param="limit")
        if before is not None and not 0 <= before < 1 << 62:
            raise RequestError("before must be the `before` of an earlier response", param="before")

        def read() -> Json:
            owner = caller.sees_jobs_of
            found = store.recent(state=state, kind=kind, owner=owner, search=search, limit=limit, before=before)
            return {
                "jobs": [legacy.job_json(one) for one in found],
                "counts": store.counts(owner=owner),
                "before": found[-1].job.number if len(found) == limit else None,
            }

        return await large_json(read)

    # Each of these moves to a thread once for everything it does: under load the move takes longest.

    @routes.get(
        "/jobs/{name}/status", summary="The state of a job", response_model=JobStatus, responses=failures(*STORED)
    )
    async def status(name: str, caller: SentBy, partial: bool = False) -> Response:
        def read() -> Json:
            found = queue.find(name, caller)
            completed = found.job.state == "completed"
            result = legacy.job_result(found.job, found.answer) if completed else None
            more = {"partial": queue.partial(found.job)} if partial else {}
            return legacy.job_json(found) | {"result": result} | more

        return await large_json(read)

    @routes.get(
        "/jobs/{name}/result", summary="The result of a job", response_model=Json, responses=failures(400, 500, *STORED)
    )
    async def result(name: str, caller: SentBy) -> Response:
        def read() -> Any:
            found = queue.find(name, caller)
            job = found.job
            if job.state == "failed":
                error = job.error or {}
                retryable = bool(error.get("retryable"))
                raise JobFailed(error.get("message", "failed"), code=error.get("code"), retryable=retryable)
            if job.state != "completed":
                later = "" if job.state == "cancelled" else " yet; ask again later"
                raise WrongJobState(f"the job is {job.state}: it has no result{later}")
            return legacy.job_result(job, found.answer)

        return await large_json(read)

    @routes.post(
        "/jobs/{name}/cancel",
        summary="Cancel a job",
        response_model=Json,
        responses=failures(400, *STORED, 507),
    )
    async def cancel(name: str, caller: SentBy) -> Response:
        job = await asyncio.to_thread(queue.cancel, name, caller)
        return JSONResponse({"message": f"Job {job.id} {job.state}", "status": job.state})

    @routes.post(
        "/jobs/{name}/retry",
        summary="Submit a failed or canceled job again",
        response_model=JobAccepted,
        responses=failures(*WORK, *STORED, 507),
    )
    async def retry(name: str, caller: SentBy) -> Response:
        job = await queue.retry(name, caller)
        return JSONResponse({"job_id": job.id, "status": job.state, "message": f"Job {name} runs again as {job.id}"})

    return routes


def webhook_body(job: Job) -> Json:
    """Return what a webhook gets: the status, in the shape of the route that took the job."""
    return runpod.job_json(job) if job.kind == "run" else legacy.job_json(Seen(job, None, None))
