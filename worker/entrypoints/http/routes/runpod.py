"""Runpod's own API over HTTP: the handler's payload, run at once or as a job.

POST /run        stores a job; GET or POST /status/{id} reports on it, POST /cancel/{id} cancels it
POST /runsync    runs the payload and responds with its answer; a payload that takes longer than
                 REQUEST_TIMEOUT_SEC continues as a job, and the response is the job's id and state

Runpod's SDK looks for these routes below /v2/{endpoint}/, where `endpoint` may be any name, and for three more:

GET /health          the caller's jobs and the worker's state, in Runpod's shape
GET /stream/{id}     a job without partial outputs, because the handler returns its output at once
POST /purge-queue    cancels the caller's pending jobs
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.requests import Request
from fastapi.responses import JSONResponse, Response

from worker.entrypoints.http.body import RequestBody
from worker.entrypoints.http.callers import SentBy
from worker.entrypoints.http.job_queue import JobForm, JobQueue
from worker.entrypoints.http.openapi import STORED, TEXT, WORK, body, failures
from worker.entrypoints.http.response_models import RunpodHealth, RunpodJob, RunpodPurge, RunpodStream
from worker.entrypoints.http.responses import large_json
from worker.entrypoints.http.service import Service
from worker.errors import AviaryError, DeadlineExceeded, RequestError
from worker.protocol import runpod
from worker.protocol.request import unwrap

Json = dict[str, Any]

_PAYLOAD = body(json={"input": {"type": "object"}, "webhook": TEXT}, required=("input",))


# Runpod's words for the states of a service.
_WORKERS = {"loading": "initializing", "ready": "ready", "unhealthy": "unhealthy"}


def router(service: Service, queue: JobQueue) -> APIRouter:
    """Return the routes on one service and its jobs."""
    routes = APIRouter(tags=["Runpod"])
    routes.include_router(_jobs(service, queue))
    for sub in (_jobs(service, queue, suffix="_v2"), _endpoint_routes(service, queue)):
        routes.include_router(sub, prefix="/v2/{endpoint}", dependencies=[Depends(_endpoint)])
    return routes


def _endpoint(endpoint: str) -> None:
    """Declare the name of the endpoint. A server is one endpoint, so the name selects nothing."""


def _endpoint_routes(service: Service, queue: JobQueue) -> APIRouter:
    routes = APIRouter()

    @routes.get(
        "/health",
        summary="The caller's jobs, and the state of the worker that responds",
        response_model=RunpodHealth,
        responses=failures(401, 503),
    )
    async def endpoint_health(caller: SentBy) -> Response:
        counts = await asyncio.to_thread(lambda: queue.store.counts(owner=caller.sees_jobs_of))
        jobs = {
            "inQueue": counts["pending"],
            "inProgress": counts["processing"],
            "completed": counts["completed"],
            "failed": counts["failed"],
        }
        workers = {word: int(state == service.state) for state, word in _WORKERS.items()}
        return JSONResponse({"jobs": jobs, "workers": workers})

    @routes.get(
        "/stream/{name}",
        summary="The state of a job, without partial outputs",
        response_model=RunpodStream,
        responses=failures(*STORED),
    )
    async def stream(name: str, caller: SentBy) -> Response:
        found = await asyncio.to_thread(queue.find, name, caller)
        return JSONResponse({**runpod.job_json(found.job), "stream": []})

    @routes.post(
        "/purge-queue",
        summary="Cancel the caller's pending jobs",
        response_model=RunpodPurge,
        responses=failures(401, 503, 507),
    )
    async def purge_queue(caller: SentBy) -> Response:
        removed = await asyncio.to_thread(lambda: queue.runner.cancel_pending(owner=caller.sees_jobs_of))
        return JSONResponse({"removed": removed, "status": "completed"})

    return routes


def _jobs(service: Service, queue: JobQueue, *, suffix: str = "") -> APIRouter:
    routes = APIRouter()
    runs: Json = {"response_model": RunpodJob, "responses": failures(*WORK, 507), "openapi_extra": _PAYLOAD}

    @routes.post("/run", summary="Store a payload as a job", **runs)
    async def run(sent: RequestBody, caller: SentBy) -> Response:
        payload, webhook = runpod.payload(sent.fields)
        job = await queue.submit("run", unwrap(payload), webhook=webhook, owner=caller.owner)
        return JSONResponse({"id": job.id, "status": runpod.STATES[job.state]})

    @routes.post("/runsync", summary="Run a payload", **runs)
    async def runsync(http: Request, sent: RequestBody) -> Response:
        payload, webhook = runpod.payload(sent.fields)
        if webhook is not None:
            raise RequestError("webhook is a field of /run: /runsync responds with the result", param="webhook")
        started = time.monotonic()
        answer = {"id": f"sync-{uuid.uuid4()}", "delayTime": 0}
        try:
            fields = unwrap(payload)
            output = await service.run(http, fields, job=JobForm("run", fields, sent))
            failed = isinstance(output, dict) and "error" in output
            answer |= {"status": "FAILED" if failed else "COMPLETED", "output": output}
            answer |= {"error": output["error"]} if failed else {}
        except AviaryError as error:
            if isinstance(error, DeadlineExceeded) and error.job_id is not None:
                return JSONResponse({"id": error.job_id, "status": runpod.STATES["processing"]})
            if error.status in (401, 429, 503):
                raise
            output = {"error": error.message, "code": error.code}
            answer |= {"status": "FAILED", "error": error.message, "output": output}
        return await large_json(lambda: answer | {"executionTime": round((time.monotonic() - started) * 1000)})

    async def status(name: str, caller: SentBy, partial: bool = False) -> Response:
        def read() -> Json:
            found = queue.find(name, caller)
            more = {"partial": queue.partial(found.job)} if partial else {}
            return runpod.job_json(found.job) | more | ({} if found.answer is None else {"output": found.answer})

        return await large_json(read)

    for method in ("GET", "POST"):
        routes.add_api_route(
            "/status/{name}",
            status,
            methods=[method],
            operation_id=f"runpod_status_{method.lower()}{suffix}",
            summary="The state of a job, and its output",
            response_model=RunpodJob,
            responses=failures(*STORED),
        )

    @routes.post(
        "/cancel/{name}",
        summary="Cancel a job",
        response_model=RunpodJob,
        responses=failures(400, *STORED, 507),
    )
    async def runpod_cancel(name: str, caller: SentBy) -> Response:
        return JSONResponse(runpod.job_json(await asyncio.to_thread(queue.cancel, name, caller)))

    return routes
