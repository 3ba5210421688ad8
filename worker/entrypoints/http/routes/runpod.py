"""Runpod's own API over HTTP: the handler's payload, run at once or as a job.

POST /run        stores a job; GET or POST /status/{id} reports on it, POST /cancel/{id} cancels it
POST /runsync    runs the payload and responds with its answer; nothing is stored
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import JSONResponse, Response

from worker.entrypoints.http.body import RequestBody
from worker.entrypoints.http.callers import SentBy
from worker.entrypoints.http.job_queue import JobQueue
from worker.entrypoints.http.openapi import STORED, TEXT, WORK, RunpodJob, body, failures
from worker.entrypoints.http.responses import large_json
from worker.entrypoints.http.service import Service
from worker.errors import AviaryError, RequestError
from worker.protocol import runpod
from worker.protocol.request import unwrap

Json = dict[str, Any]

_PAYLOAD = body(json={"input": {"type": "object"}, "webhook": TEXT}, required=("input",))


def router(service: Service, queue: JobQueue) -> APIRouter:
    """Return the routes on one service and its jobs."""
    routes = APIRouter(tags=["Runpod"])
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
            output = await service.run(http, unwrap(payload))
            failed = isinstance(output, dict) and "error" in output
            answer |= {"status": "FAILED" if failed else "COMPLETED", "output": output}
            answer |= {"error": output["error"]} if failed else {}
        except AviaryError as error:
            if error.status in (401, 429, 503):
                raise
            output = {"error": error.message, "code": error.code}
            answer |= {"status": "FAILED", "error": error.message, "output": output}
        return await large_json(lambda: answer | {"executionTime": round((time.monotonic() - started) * 1000)})

    async def status(name: str, caller: SentBy) -> Response:
        def read() -> Json:
            found = queue.find(name, caller)
            return runpod.job_json(found.job) | ({} if found.answer is None else {"output": found.answer})

        return await large_json(read)

    for method in ("GET", "POST"):
        routes.add_api_route(
            "/status/{name}",
            status,
            methods=[method],
            operation_id=f"runpod_status_{method.lower()}",
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
