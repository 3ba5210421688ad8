"""A job as Runpod's API shows it, and the body that Runpod's API takes."""

from __future__ import annotations

from typing import Any

from worker.errors import RequestError
from worker.jobs.records import Job

Json = dict[str, Any]

STATES = {
    "pending": "IN_QUEUE",
    "processing": "IN_PROGRESS",
    "completed": "COMPLETED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
}


def payload(body: Json) -> tuple[Json, str | None]:
    """Return the handler's payload and the webhook of a body. Raises RequestError."""
    request = body.get("input")
    if not isinstance(request, dict):
        raise RequestError("input must be a JSON object that holds the request", param="input")
    unknown = body.keys() - {"input", "webhook", "s3Config"}
    if unknown:
        raise RequestError(f"{min(unknown)} is not a field of this route", param=min(unknown))
    if "s3Config" in body:
        raise RequestError("s3Config works on Runpod only: set BUCKET_* on this server", param="s3Config")
    return request, body.get("webhook")


def job_json(job: Job) -> Json:
    """Return the status of a job. Times are in milliseconds."""
    shape: Json = {"id": job.id, "status": STATES[job.state]}
    if job.state == "processing":
        shape["progress"] = job.progress
    if job.started_at is not None:
        shape["delayTime"] = round((job.started_at - job.created_at) * 1000)
        if job.completed_at is not None:
            shape["executionTime"] = round((job.completed_at - job.started_at) * 1000)
    if job.error:
        shape["error"] = job.error["message"]
    return shape
