"""The shapes of the servers that Aviary replaces: their fields → our payload, our answer → their JSON.

    upload   `file`, `model`, `language`, `include_timestamps`   → {"text", "segments", "filename", "timestamp"}
    paths    `paths`, `prompt`, `max_new_tokens`, `model`        → {"results": [{"file", "text", …}]}

`max_new_tokens`, which those clients always send, changes nothing for a model that does not generate token by token.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from worker.config import Settings
from worker.errors import RequestError
from worker.jobs.records import Job, Seen
from worker.protocol.model_names import find_model
from worker.protocol.options import MAX_NEW_TOKENS

Json = dict[str, Any]

_YES, _NO = ("true", "True", "1", True), ("false", "False", "0", False)


def upload_payload(fields: Json, settings: Settings) -> Json:
    """Return the payload of an upload, whose `file` is the name of an open file or a source. Raises RequestError."""
    _refuse_unknown(fields, {"file", "model", "language", "include_timestamps"})
    wanted = fields.get("include_timestamps")
    if wanted not in (None, *_YES, *_NO):
        raise RequestError("include_timestamps must be true or false", param="include_timestamps")
    payload = {"audio": fields["file"]} | {name: fields[name] for name in ("model", "language") if fields.get(name)}
    model = find_model(fields.get("model") or None, settings)
    if wanted in _YES or (wanted is None and model.timestamps):
        payload["timestamps"] = ["segment"]
    return payload


def filename(source: str) -> str:
    """Return the last part of the path of a source, or `audio` if it has none."""
    path = "" if source.startswith("data:") else source.partition("?")[0]
    return path.rpartition("/")[2] or "audio"


def upload_json(result: Json, filename: str | None, done_at: float) -> Json:
    """Return the answer to an upload, from its result. `done_at`: seconds since the epoch."""
    segments = result.get("timestamps", {}).get("segment", [])
    return {
        "text": result["text"],
        "segments": [{"start": one["start"], "end": one["end"], "text": one["segment"]} for one in segments],
        "filename": filename,
        "timestamp": iso(done_at),
    }


def paths_payload(fields: Json, settings: Settings) -> Json:
    """Return the payload of a body with paths. Raises RequestError."""
    _refuse_unknown(fields, {"paths", "prompt", "max_new_tokens", "model"})
    paths = fields.get("paths")
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise RequestError("paths must be a list of paths, one at least", param="paths")
    options = {name: value for name, value in fields.items() if name != "paths" and value is not None}
    return {"inputs": paths, **without_unused_bound(options, settings)}


def file_json(path: str, result: Json, elapsed_sec: float) -> Json:
    """Return one file's part of the answer to a body with paths."""
    if "error" in result:
        return {"file": path, "error": result["error"]}
    return {
        "file": path,
        "text": result["text"],
        "tokens_generated": result.get("tokens_generated"),
        "elapsed_sec": round(elapsed_sec, 3),
        **{name: result[name] for name in ("finish_reason", "warning") if name in result},
    }


def without_unused_bound(fields: Json, settings: Settings) -> Json:
    """Return the fields without a valid `max_new_tokens` if the model does not generate token by token."""
    bound, name = fields.get("max_new_tokens"), fields.get("model") or settings.default_model
    if not isinstance(name, str) or type(bound) is not int or not 1 <= bound <= MAX_NEW_TOKENS:
        return fields
    if "max_new_tokens" in find_model(name, settings).options:
        return fields
    return {field: value for field, value in fields.items() if field != "max_new_tokens"}


def job_json(found: Seen) -> Json:
    """Return the status of a job."""
    job = found.job
    return {
        "job_id": job.id,
        "status": job.state,
        "kind": job.kind,
        "task": job.task,
        "model": job.model,
        "filename": job.filename,
        "upload_bytes": job.upload_bytes,
        "created_at": iso(job.created_at),
        "started_at": iso(job.started_at),
        "completed_at": iso(job.completed_at),
        "error": (job.error or {}).get("message"),
        "error_code": (job.error or {}).get("code"),
        "progress": job.progress,
        "position": found.position,
    }


def job_result(job: Job, answer: Any) -> Any:
    """Return the result of a completed job: an upload's in the shape of uploads, any other answer as it is."""
    if job.kind != "transcribe":
        return answer
    (result,) = answer["results"]
    return upload_json(result, job.filename, job.completed_at or job.created_at)


def iso(seconds: float | None) -> str | None:
    """Return UTC in ISO 8601, to the second and with the zone Z, or None."""
    if seconds is None:
        return None
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _refuse_unknown(fields: Mapping[str, Any], known: set[str]) -> None:
    unknown = fields.keys() - known
    if unknown:
        raise RequestError(f"{min(unknown)} is not a field of this route", param=min(unknown))
