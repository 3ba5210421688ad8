"""Runpod's own API over HTTP: the handler's payload, run at once or as a job.

POST /run        stored; GET or POST /status/{id} tells of it, POST /cancel/{id} ends it
POST /runsync    answered at once, and not stored
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import JSONResponse, Response

from worker.entrypoints.http import answers, body, openapi
from worker.entrypoints.http.job_queue import JobQueue
from worker.entrypoints.http.route import Route
from worker.entrypoints.http.service import Service
from worker.errors import AviaryError, RequestError
from worker.jobs.records import Job

Json = dict[str, Any]

_STATES = {
    "pending": "IN_QUEUE",
    "processing": "IN_PROGRESS",
    "completed": "COMPLETED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
}


def router(service: Service, background: JobQueue) -> APIRouter:
    """The routes, on one service and its jobs."""
    routes = APIRouter(tags=["Runpod"], route_class=Route)

    @routes.post("/run", **openapi.run())
    async def run(http: Request) -> JSONResponse:
        given = await body.read(http)
        given.close()
        payload, webhook = _payload(given.fields)
        service.allow(payload)
        job = await background.submit("run", payload, webhook=webhook)
        return JSONResponse({"id": job.id, "status": _STATES[job.state]})

    @routes.post("/runsync", **openapi.run())
    async def runsync(http: Request) -> Response:
        given = await body.read(http)
        given.close()
        payload, webhook = _payload(given.fields)
        if webhook is not None:
            raise RequestError("webhook is for /run: /runsync answers itself", param="webhook")
        started = time.monotonic()
        answer: Json = {"id": f"sync-{uuid.uuid4()}", "delayTime": 0}
        try:
            output = await service.run(http, payload)
            failed = isinstance(output, dict) and "error" in output
            answer |= {"status": "FAILED" if failed else "COMPLETED", "output": output}
            answer |= {"error": output["error"]} if failed else {}
        except AviaryError as error:
            if error.status in (401, 429, 503):
                raise
            answer |= {
                "status": "FAILED",
                "error": error.message,
                "output": {"error": error.message, "code": error.code},
            }
        return await answers.of(lambda: answer | {"executionTime": round((time.monotonic() - started) * 1000)})

    async def runpod_status(name: str) -> Response:
        def told() -> Json:
            found = background.find(name)
            return shape(found.job) | ({} if found.answer is None else {"output": found.answer})

        return await answers.of(told)

    for method in ("GET", "POST"):
        routes.add_api_route(
            "/status/{name}",
            runpod_status,
            methods=[method],
            operation_id=f"runpod_status_{method.lower()}",
            **openapi.job(),
        )

    @routes.post("/cancel/{name}", **openapi.cancel())
    async def runpod_cancel(name: str) -> JSONResponse:
        return JSONResponse(shape(await asyncio.to_thread(background.cancel, name)))

    return routes


def _payload(fields: Json) -> tuple[Json, str | None]:
    """A body of Runpod's API: the handler's payload, and the webhook."""
    payload = fields.get("input")
    if not isinstance(payload, dict):
        raise RequestError("input must be a JSON object that holds the request", param="input")
    unknown = fields.keys() - {"input", "webhook", "s3Config"}
    if unknown:
        raise RequestError(f"{min(unknown)} is not a field of this route", param=min(unknown))
    if "s3Config" in fields:
        raise RequestError("s3Config is Runpod's alone: set BUCKET_* on the server", param="s3Config")
    webhook = fields.get("webhook")
    return payload, webhook


def shape(job: Job) -> Json:
    """A job as Runpod tells of it."""
    told: Json = {"id": job.id, "status": _STATES[job.state]}
    if job.started_at is not None:
        told["delayTime"] = round((job.started_at - job.created_at) * 1000)
        if job.completed_at is not None:
            told["executionTime"] = round((job.completed_at - job.started_at) * 1000)
    if job.error:
        told["error"] = job.error["message"]
    return told
