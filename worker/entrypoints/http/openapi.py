"""What the routes take and give, as OpenAPI says it: keyword arguments for FastAPI's route decorators.

Bodies are read by `body.py` and judged by `worker.protocol.request`; here they are only described. A test lets
schemathesis find out whether the description is true.
"""

from __future__ import annotations

from typing import Any

from fastapi.responses import Response

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
NUMBER: Json = {"type": "number"}
INTEGER: Json = {"type": "integer"}
BOOLEAN: Json = {"type": "boolean"}
EVENT: Json = {
    "type": "object",
    "description": "a server-sent event, whose data is JSON, or [DONE] at the end",
    "properties": {"data": TEXT},
    "required": ["data"],
}
FILE: Json = {"type": "string", "format": "binary"}
SOURCE: Json = {
    "description": "a source as a string, or an object with url, or with data (base64)",
    "anyOf": [
        TEXT,
        {"type": "object", "properties": {"url": TEXT}, "required": ["url"]},
        {"type": "object", "properties": {"data": TEXT}, "required": ["data"]},
    ],
}
ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": TEXT, "type": TEXT, "param": {"type": ["string", "null"]}, "code": TEXT},
        }
    },
}
_GENERATION: Json = {
    "prompt": TEXT,
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "max_new_tokens": {"type": "integer", "minimum": 1, "maximum": 32_768},
}
_MODEL: Json = {"type": "string", "description": "an alias or id of GET /v1/models; unset: the server's default"}
_WORDS = {
    400: "The request is wrong",
    401: "No API key, or a wrong one",
    404: "No such model, file or job",
    409: "The state does not allow it",
    413: "Too large or too long",
    415: "Not audio, or not a body that this route reads",
    422: "The input cannot be used",
    429: "Too many requests or inputs; see Retry-After",
    500: "A fault of the worker",
    503: "Loading, or not able now; see Retry-After",
    507: "No space left to store it",
}
_WORK = (400, 401, 404, 413, 415, 422, 429, 500, 503)


def failures(*statuses: int) -> dict[int | str, Json]:
    """Responses that are OpenAI's error object."""
    return {
        status: {"description": _WORDS[status], "content": {"application/json": {"schema": ERROR}}}
        for status in statuses
    }


def described(
    summary: str,
    *,
    answer: Json | None = None,
    kinds: Json | None = None,
    form: Json | None = None,
    json: Json | None = None,
    required: tuple[str, ...] = (),
    statuses: tuple[int, ...] = _WORK,
) -> Json:
    """A route: its answer's JSON schema (kinds: other content types), its body's fields as a form and as JSON."""
    content = ({"application/json": {"schema": answer}} if answer is not None else {}) | (kinds or {})
    shape: Json = {
        "summary": summary,
        "responses": {200: {"description": "Done", "content": content}, **failures(*statuses)},
        "response_model": None,
        "response_class": Response,
    }
    bodies: Json = {}
    if form is not None:
        needed = [name for name in required if name in form] + (["file"] if "file" in form else [])
        bodies["multipart/form-data"] = {"schema": _object(form, needed, closed=True)}
    if json is not None:
        needed = [name for name in json if name in required or name == "audio"]
        bodies["application/json"] = {"schema": _object(json, needed, closed=True)}
    if bodies:
        shape["openapi_extra"] = {"requestBody": {"required": True, "content": bodies}}
    return shape


def _object(properties: Json, required: list[str] | tuple[str, ...] = (), *, closed: bool = False) -> Json:
    shape: Json = {"type": "object", "properties": properties}
    return (
        shape | ({"required": list(required)} if required else {}) | ({"additionalProperties": False} if closed else {})
    )


def speech(name: str) -> Json:
    fields: Json = {
        "model": _MODEL,
        "language": TEXT,
        **_GENERATION,
        "stream": BOOLEAN,
        "response_format": {"enum": ["json", "text", "srt", "verbose_json", "vtt"]},
    }
    levels = {"type": "array", "items": {"enum": ["word", "segment", "char"]}}
    times: Json = {"start": NUMBER, "end": NUMBER}
    answer = _object(
        {
            "text": TEXT,
            "usage": _object({"type": TEXT, "seconds": NUMBER}),
            "task": TEXT,
            "language": {"type": ["string", "null"]},
            "duration": NUMBER,
            "segments": {"type": "array", "items": _object({"id": INTEGER, "text": TEXT, **times})},
            "words": {"type": "array", "items": _object({"word": TEXT, **times})},
        },
        ["text"],
    )
    kinds = {"text/plain; charset=utf-8": {"schema": TEXT}, "text/event-stream; charset=utf-8": {"schema": EVENT}}
    what = {"transcriptions": "Speech to text", "translations": "Speech to English text"}[name]
    return described(
        what,
        answer=answer,
        kinds=kinds,
        form={"file": FILE, **fields, "timestamp_granularities[]": levels},
        json={"audio": SOURCE, **fields, "timestamp_granularities": levels},
    )


def sound(name: str) -> Json:
    caption: Json = {"style": {"enum": ["detailed", "brief", "technical"]}, **_GENERATION}
    embedding: Json = {"pooling": {"enum": ["none", "mean"]}, "encoding_format": {"enum": ["float", "base64", "s3"]}}
    fields = {"captions": caption, "embeddings": embedding, "analyze": caption | embedding}[name]
    what = {
        "captions": "Describe a sound or a song",
        "embeddings": "The audio encoder's features",
        "analyze": "A caption and features from one pass",
    }[name]
    answer = _object(
        {
            "model": TEXT,
            "caption": TEXT,
            "embedding": {"type": ["array", "string"]},
            "shape": {"type": "array", "items": INTEGER},
            "frame_rate": NUMBER,
            "duration_sec": NUMBER,
        },
        ["model"],
    )
    return described(
        what,
        answer=answer,
        form={"file": FILE, "model": _MODEL, **fields},
        json={"audio": SOURCE, "model": _MODEL, **fields},
    )


def chat() -> Json:
    part = {
        "anyOf": [
            _object({"type": {"const": "text"}, "text": TEXT}, ["type", "text"]),
            _object(
                {"type": {"const": "input_audio"}, "input_audio": _object({"data": TEXT, "format": TEXT}, ["data"])},
                ["type", "input_audio"],
            ),
            _object({"type": {"const": "audio"}, "audio": SOURCE}, ["type", "audio"]),
        ]
    }
    message = _object(
        {
            "role": {"enum": ["system", "user", "assistant"]},
            "content": {"anyOf": [TEXT, {"type": "array", "items": part}]},
        },
        ["role", "content"],
    )
    fields: Json = {
        "model": _MODEL,
        "messages": {"type": "array", "items": message, "minItems": 1},
        "stream": BOOLEAN,
        "stream_options": _object({"include_usage": BOOLEAN}),
        "user": TEXT,
        "n": {"const": 1},
        **dict.fromkeys(("max_tokens", "max_completion_tokens"), _GENERATION["max_new_tokens"]),
        **{name: _GENERATION[name] for name in ("temperature", "top_p")},
    }
    answer = _object(
        {"id": TEXT, "object": TEXT, "model": TEXT, "choices": {"type": "array"}, "usage": {"type": "object"}},
        ["id", "choices"],
    )
    return described(
        "Ask about a clip",
        answer=answer,
        json=fields,
        required=("messages",),
        kinds={"text/event-stream; charset=utf-8": {"schema": EVENT}},
    )


def models() -> Json:
    answer = _object({"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL_ROW}}, ["object", "data"])
    return described("The models, and what each can do", answer=answer, statuses=(401,))


def model() -> Json:
    return described("One model", answer=_MODEL_ROW, statuses=(401, 404))


_MODEL_ROW: Json = _object(
    {
        "id": TEXT,
        "object": {"const": "model"},
        "created": INTEGER,
        "owned_by": TEXT,
        "aliases": {"type": "array", "items": TEXT},
        "tasks": {"type": "array", "items": TEXT},
    },
    ["id", "object"],
)


def transcribe() -> Json:
    upload = {"file": FILE, "model": _MODEL, "language": TEXT, "include_timestamps": {"enum": ["true", "false"]}}
    paths = {
        "paths": {"type": "array", "items": TEXT, "minItems": 1},
        "model": _MODEL,
        "prompt": {"type": ["string", "null"]},
        "max_new_tokens": {"type": ["integer", "null"], "minimum": 1, "maximum": 32_768},
    }
    segment = _object({"start": NUMBER, "end": NUMBER, "text": TEXT})
    answer = {
        "anyOf": [
            _object(
                {"text": TEXT, "segments": {"type": "array", "items": segment}, "filename": TEXT, "timestamp": TEXT},
                ["text", "segments", "filename", "timestamp"],
            ),
            _object({"results": {"type": "array", "items": {"type": "object"}}}, ["results"]),
        ]
    }
    return described(
        "Transcribe an upload, or files of this machine", answer=answer, form=upload, json=paths, required=("paths",)
    )


def evaluate() -> Json:
    fields = {
        "audio_dir": TEXT,
        "gt_dir": TEXT,
        "manifest": TEXT,
        "match_mode": {"enum": ["exact", "normalized"]},
        "normalizer": {"enum": ["basic", "whisper"]},
        "model": _MODEL,
        "prompt": TEXT,
        "language": TEXT,
        "max_new_tokens": _GENERATION["max_new_tokens"],
    }
    answer = _object(
        {"summary": {"type": "object"}, "details": {"type": "array", "items": {"type": "object"}}},
        ["summary", "details"],
    )
    return described("Count a model's transcripts against labels on this machine", answer=answer, json=fields)


def score() -> Json:
    numbers = dict.fromkeys(("sim_score", "audio_sim_score", "text_sim_score"), NUMBER)
    named = {"uid": TEXT, "cid": TEXT, "model": TEXT}
    return described(
        "Compare a recording with a reference clip",
        answer=_object({"model": TEXT, **numbers}, ["model", *numbers]),
        form={"audio": FILE, **named},
        json={"audio": SOURCE, **named},
        required=("audio", "uid", "cid"),
    )


_STATE = {"enum": ["pending", "processing", "completed", "failed", "cancelled"]}
_JOB = _object(
    {
        "job_id": TEXT,
        "status": _STATE,
        "filename": {"type": ["string", "null"]},
        "created_at": TEXT,
        "completed_at": {"type": ["string", "null"]},
        "error": {"type": ["string", "null"]},
        "progress": _object({"done": INTEGER, "total": INTEGER}),
        "position": {"type": ["integer", "null"]},
    },
    ["status"],
)
_RUNPOD = _object(
    {
        "id": TEXT,
        "status": {"enum": ["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED"]},
        "delayTime": INTEGER,
        "executionTime": INTEGER,
        "error": TEXT,
        "output": {},
    },
    ["id", "status"],
)
_STORED = (401, 404, 503)


def submit() -> Json:
    fields = {
        "file": FILE,
        "model": _MODEL,
        "language": TEXT,
        "include_timestamps": {"enum": ["true", "false"]},
        "webhook": TEXT,
    }
    return described(
        "Transcribe an upload as a job",
        answer=_object({"job_id": TEXT, "status": _STATE, "message": TEXT}, ["job_id", "status", "message"]),
        form=fields,
        statuses=(*_WORK, 507),
    )


def jobs() -> Json:
    answer = _object(
        {
            "jobs": {"type": "array", "items": _JOB},
            "counts": {"type": "object"},
            "before": {"type": ["integer", "null"]},
        },
        ["jobs", "counts", "before"],
    )
    return described(
        "The newest jobs; `before` of an answer asks for those before them", answer=answer, statuses=(400, 401, 503)
    )


def job() -> Json:
    return described("How a job is", answer={"anyOf": [_JOB, _RUNPOD]}, statuses=_STORED)


def job_result() -> Json:
    return described("What a job came to", answer={"type": "object"}, statuses=(400, 500, *_STORED))


def cancel() -> Json:
    return described("Cancel a job", answer={"type": "object"}, statuses=(400, *_STORED, 507))


def run() -> Json:
    return described(
        "The handler's payload, as Runpod's API takes it",
        answer=_RUNPOD,
        json={"input": {"type": "object"}, "webhook": TEXT},
        required=("input",),
        statuses=(*_WORK, 507),
    )


def health(*statuses: int) -> Json:
    shape = described("How the server is", answer={"type": "object"}, statuses=())
    shape["responses"] |= {
        status: {"description": "Not now", "content": {"application/json": {"schema": {"type": "object"}}}}
        for status in statuses
    }
    return shape


def ping() -> Json:
    return {
        "summary": "For Runpod's load balancer",
        "response_model": None,
        "response_class": Response,
        "responses": {200: {"description": "Ready"}, 204: {"description": "Loading"}, 503: {"description": "Lost"}},
    }


def stats() -> Json:
    return described("What was done since the start", answer={"type": "object"}, statuses=(401,))


def metrics() -> Json:
    return described(
        "For Prometheus", kinds={"text/plain; version=1.0.0; charset=utf-8": {"schema": TEXT}}, statuses=(401,)
    )
