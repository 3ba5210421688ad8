"""OpenAI's JSON of files and batches: what clients send, checked, and what they get.

    purpose_of(fields), keep_sec_of(fields, …)   the fields of POST /v1/files
    new_batch(fields)                            the body of POST /v1/batches
    line_of(value, endpoint)                     one line of a batch's input
    file_json, batch_json, page, output_line     what clients get

A line is {"custom_id", "method": "POST", "url": the endpoint, "body": JSON as the endpoint accepts it}. The body of a
transcription or a translation may name the audio by `file_id`, an uploaded file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.errors import RequestError
from worker.jobs.records import Batch, Ended, StoredFile
from worker.types import Task

Json = dict[str, Any]

ENDPOINTS: dict[str, Task] = {
    "/v1/audio/transcriptions": "transcribe",
    "/v1/audio/translations": "translate",
    "/v1/chat/completions": "chat",
}
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
OUTPUT = "batch_output"  # the purpose of files of results
WINDOW, WINDOW_SEC = "24h", 24 * 3600.0  # the only `completion_window`
KEEP_SEC = (3600, 30 * 86400)  # the range of OpenAI's `expires_after`
MOST_PAIRS, KEY_CHARS, VALUE_CHARS = 16, 64, 512  # of OpenAI's `metadata`
CUSTOM_ID_CHARS = 512
MOST_LINES = 50_000
MOST_ERRORS = 100
_BATCH_FIELDS = ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after")


@dataclass(frozen=True, slots=True)
class NewBatch:
    """The body of POST /v1/batches. `keep_sec`: how long the files of results are kept."""

    input_file_id: str
    endpoint: str
    metadata: dict[str, str] | None
    keep_sec: float


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a batch's input."""

    custom_id: str
    body: Json


class LineError(Exception):
    """A line of a batch's input is wrong, so that no line runs. `code` is OpenAI's."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    def to_json(self, line: int | None) -> Json:
        """Return the entry in the `errors` of the batch. line: the number of the line, from 1, if it has one."""
        return {"code": self.code, "line": line, "message": self.message, "param": self.param}


def purpose_of(fields: Mapping[str, Any]) -> str:
    """Return the purpose of an upload. Raises RequestError, also for a field that the route does not have."""
    for name in fields:
        if name not in ("file", "purpose", "expires_after"):
            raise RequestError(f"{name} is not a field of this route", param=name)
    purpose = fields.get("purpose")
    if purpose not in PURPOSES:
        raise RequestError(f"purpose must be one of {', '.join(PURPOSES)}", param="purpose")
    return str(purpose)


def keep_sec_of(fields: Mapping[str, Any], name: str, default: float) -> float:
    """Return how long to keep a file, from `expires_after` or `output_expires_after`. Raises RequestError."""
    value = fields.get(name)
    if value is None:
        return default
    least, most = KEEP_SEC
    seconds = _whole(value.get("seconds")) if isinstance(value, Mapping) else None
    if (
        seconds is None
        or not least <= seconds <= most
        or value.keys() != {"anchor", "seconds"}
        or value["anchor"] != "created_at"
    ):
        raise RequestError(
            f"{name} must be an object with the anchor created_at and the seconds, {least} to {most}", param=name
        )
    return float(seconds)


def _whole(value: Any) -> int | None:
    """Return a whole number, which forms write as text, or None if the value is none."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def new_batch(fields: Mapping[str, Any], default_keep_sec: float) -> NewBatch:
    """Return the batch that a body asks for. Raises RequestError."""
    for name in fields:
        if name not in _BATCH_FIELDS:
            raise RequestError(f"{name} is not a field of this route", param=name)
    file_id, endpoint, window = (fields.get(name) for name in _BATCH_FIELDS[:3])
    if not isinstance(file_id, str):
        raise RequestError("input_file_id is missing: send the id of a file of POST /v1/files", param="input_file_id")
    if not isinstance(endpoint, str) or endpoint not in ENDPOINTS:
        raise RequestError(f"endpoint must be one of {', '.join(ENDPOINTS)}", param="endpoint")
    if window != WINDOW:
        raise RequestError(f"completion_window must be {WINDOW}", param="completion_window")
    metadata = _metadata(fields.get("metadata"))
    keep_sec = keep_sec_of(fields, "output_expires_after", default_keep_sec)
    return NewBatch(file_id, endpoint, metadata, keep_sec)


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if (
        not isinstance(value, dict)
        or len(value) > MOST_PAIRS
        or not all(isinstance(text, str) for pair in value.items() for text in pair)
        or any(len(key) > KEY_CHARS or len(text) > VALUE_CHARS for key, text in value.items())
    ):
        raise RequestError(
            f"metadata must be an object of at most {MOST_PAIRS} texts, with keys of up to {KEY_CHARS} characters and "
            f"values of up to {VALUE_CHARS}",
            param="metadata",
        )
    return value


def line_of(value: Any, endpoint: str) -> Line:
    """Return a line of an input by its JSON. Raises LineError."""
    if not isinstance(value, dict):
        raise LineError("invalid_json_line", "The line is not a JSON object.")
    for name in ("custom_id", "method", "url", "body"):
        if value.get(name) in (None, ""):
            raise LineError("missing_required_parameter", f"{name} is missing.", name)
    custom_id, body = value["custom_id"], value["body"]
    if not isinstance(custom_id, str) or len(custom_id) > CUSTOM_ID_CHARS:
        message = f"custom_id must be a text of at most {CUSTOM_ID_CHARS} characters."
        raise LineError("invalid_custom_id", message, "custom_id")
    if value["method"] != "POST":
        raise LineError("invalid_method", "method must be POST.", "method")
    if value["url"] != endpoint:
        raise LineError("invalid_url", f"url must be {endpoint}, the endpoint of the batch.", "url")
    if not isinstance(body, dict):
        raise LineError("invalid_json_line", "body must be a JSON object.", "body")
    return Line(custom_id, body)


def file_json(file: StoredFile) -> Json:
    """Return OpenAI's File object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "expires_at": int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def batch_json(batch: Batch) -> Json:
    """Return OpenAI's Batch object."""
    errors = None if batch.errors is None else {"object": "list", "data": batch.errors}
    names = "in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": errors,
        "input_file_id": batch.input_file_id,
        "completion_window": WINDOW,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": int(batch.created_at),
        **{f"{name}_at": _seconds(getattr(batch, f"{name}_at")) for name in names},
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata,
    }


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)


def page(data: Sequence[Json], *, has_more: bool) -> Json:
    """Return OpenAI's page of a list."""
    ids = [one["id"] for one in data]
    return {
        "object": "list",
        "data": list(data),
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": has_more,
    }


def response_of(job: Ended, custom_id: str, not_run: Json) -> tuple[bool, Json]:
    """Return whether a job of a batch succeeded, and its line in the files of results.

    not_run: the error of a job that was canceled. Another error without a response is one of the server.
    """
    answer = job.answer if isinstance(job.answer, dict) else {}
    response = answer.get("response")
    error = not_run if job.state == "cancelled" else job.error if response is None else None
    return job.state == "completed", output_line(f"batch_req_{job.id}", custom_id, response, error, request_id=job.id)


def output_line(
    line_id: str | None, custom_id: str, response: Json | None, error: Json | None, *, request_id: str | None = None
) -> Json:
    """Return a line of the files of results. `line_id` is None for a line of the input that never became a job."""
    return {
        "id": line_id,
        "custom_id": custom_id,
        "response": None if response is None else {**response, "request_id": request_id},
        "error": None if error is None else {"code": error["code"], "message": error["message"]},
    }
