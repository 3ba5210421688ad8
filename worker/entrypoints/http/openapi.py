"""What FastAPI cannot see of the routes: request bodies that are a form or JSON, and answers of several content types.

Fields come from `worker.protocol.options`, the one list of options. The answers' own shapes are in
`response_models.py`. A test lets schemathesis compare the document with the server.
"""

from __future__ import annotations

from typing import Any, get_args

from worker.entrypoints.http.response_models import ErrorBody
from worker.protocol import openai, openai_batch, openai_fields, speech_timestamps
from worker.protocol.options import option_schema, options_of
from worker.types import Level, Task

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
BOOLEAN: Json = {"type": "boolean"}
FILE: Json = {"type": "string", "format": "binary", "description": "the audio"}
MODEL: Json = {"type": "string", "description": "an alias or id of GET /v1/models; default: the server's model"}
SOURCE: Json = {
    "description": "a source as a string, or an object with url, or with data (base64)",
    "anyOf": [
        TEXT,
        {"type": "object", "properties": {"url": TEXT}, "required": ["url"]},
        {"type": "object", "properties": {"data": TEXT}, "required": ["data"]},
    ],
}
EVENT: Json = {
    "type": "object",
    "description": "a server-sent event, whose data is JSON, or [DONE] at the end",
    "properties": {"data": TEXT},
    "required": ["data"],
}
EVENTS: Json = {"text/event-stream; charset=utf-8": {"schema": EVENT}}
PLAIN_TEXT: Json = {"text/plain; charset=utf-8": {"schema": TEXT}}
_LOGPROBS: Json = {"type": "array", "items": {"enum": ["logprobs"]}}
METRICS: Json = {"text/plain; version=1.0.0; charset=utf-8": {"schema": TEXT}}

_NO_EFFECT: Json = {name: {"description": "accepted without effect"} for name in openai_fields.IGNORED}

_MEANINGS = {
    400: "The request is wrong",
    401: "The API key is missing or wrong",
    403: "The server does not accept the web page or the host of the request, or the key may not do this",
    404: "There is no such model, file or job",
    408: "The body did not arrive in time",
    409: "The model is loaded or being downloaded",
    413: "The request or the audio is too large or too long",
    415: "The file is not audio, or the route does not accept this kind of body",
    422: "The input cannot be used",
    429: "Too many requests or inputs; see Retry-After",
    500: "An internal error",
    503: "The model is loading or not available; see Retry-After",
    507: "The disk is full",
}
WORK = (400, 401, 404, 408, 413, 415, 422, 429, 500, 503)
OPENAI_WORK = tuple(status for status in WORK if status != 422)  # of work on /v1, whose unusable inputs are 400
STORED = (401, 404, 503)


def failures(*statuses: int) -> dict[int | str, Json]:
    """Return the responses that are OpenAI's error object; every route may respond with 403."""
    return {status: {"description": _MEANINGS[status], "model": ErrorBody} for status in (403, *statuses)}


def also(kinds: Json, *statuses: int) -> dict[int | str, Json]:
    """Return the responses of a route whose answer has other content types besides JSON."""
    return {200: {"description": "Successful Response", "content": kinds}, **failures(*statuses)}


def beside_text(*statuses: int) -> dict[int | str, Json]:
    """Return the responses of a route that responds with text alone, and with OpenAI's error object."""
    error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}}
    described = {
        status: {"description": one["description"], "content": error} for status, one in failures(*statuses).items()
    }
    return {200: {"description": "Successful Response", "content": PLAIN_TEXT}, **described}


def body(*, form: Json | None = None, json: Json | None = None, required: tuple[str, ...] = ()) -> Json:
    """Return the request body of a route (FastAPI's `openapi_extra`), which accepts no other fields."""
    content = {"multipart/form-data": form, "application/json": json}
    return {
        "requestBody": {
            "required": True,
            "content": {
                kind: {
                    "schema": {
                        "type": "object",
                        "properties": fields,
                        "required": [name for name in fields if name in (*required, "file", "audio")],
                        "additionalProperties": False,
                    }
                }
                for kind, fields in content.items()
                if fields is not None
            },
        }
    }


def audio_body(route: str) -> Json:
    """Return the request body of /v1/audio/{route}: a form with `file`, or JSON with `audio`."""
    task = openai.TASKS[route]
    fields = {"model": MODEL} | _options(task) | _NO_EFFECT
    if route in ("transcriptions", "translations"):
        fields |= {"stream": BOOLEAN, "chunking_strategy": {"const": "auto"}}
    timed, included = fields.pop("timestamp_granularities", None), fields.pop("include", None)
    if timed is None:
        return body(form={"file": FILE, **fields}, json={"audio": SOURCE, **fields})
    levels = {"type": "array", "items": {"enum": list(get_args(Level))}}
    languages = fields.pop("languages")
    return body(
        form={
            "file": FILE,
            **fields,
            "timestamp_granularities[]": levels,
            "include[]": _LOGPROBS,
            "languages[]": languages,
        },
        json={
            "audio": SOURCE,
            **fields,
            "timestamp_granularities": levels,
            "include": included,
            "languages": languages,
        },
    )


def speech_body() -> Json:
    """Return the request body of /v1/audio/speech/timestamps: a form with `file`, or JSON with `audio`."""
    fields = speech_timestamps.DetectionFields.model_json_schema()["properties"]
    fields = {
        name: {key: value for key, value in schema.items() if key != "default"} for name, schema in fields.items()
    }
    return body(form={"file": FILE, **fields}, json={"audio": SOURCE, **fields})


def chat_body() -> Json:
    """Return the request body of /v1/chat/completions."""
    parts = [
        _part("text", TEXT),
        _part("input_audio", {"type": "object", "properties": {"data": TEXT, "format": TEXT}, "required": ["data"]}),
        _part("audio", SOURCE),
    ]
    message = {
        "type": "object",
        "properties": {
            "role": {"enum": ["system", "user", "assistant"]},
            "content": {"anyOf": [TEXT, {"type": "array", "items": {"anyOf": parts}}]},
        },
        "required": ["role", "content"],
    }
    options = _options("chat")
    fields = {
        "model": MODEL,
        "messages": {"type": "array", "items": message, "minItems": 1},
        "stream": BOOLEAN,
        "stream_options": {"type": "object", "properties": {"include_usage": BOOLEAN}},
        "n": {"const": 1},
        **_NO_EFFECT,
        **dict.fromkeys(("max_tokens", "max_completion_tokens"), options["max_new_tokens"]),
        **{name: schema for name, schema in options.items() if name not in ("messages", "response_format")},
    }
    return body(json=fields, required=("messages",))


def option(name: str) -> Json:
    """Return the schema of an option's value."""
    return {key: value for key, value in option_schema(name).items() if key != "tasks"}


def _options(task: Task) -> Json:
    """Return the schemas of a task's options, by the names that OpenAI's routes give them."""
    renamed = {ours: theirs for theirs, ours in openai.RENAMED.items()}
    return {renamed.get(name, name): option(name) for name in options_of(task)}


def _part(kind: str, schema: Json) -> Json:
    return {"type": "object", "properties": {"type": {"const": kind}, kind: schema}, "required": ["type", kind]}


UPLOAD_FORM: Json = {
    "file": FILE,
    "model": MODEL,
    "language": option("language"),
    "include_timestamps": {"enum": ["true", "false"]},
}

_EXPIRES_AFTER: Json = {
    "type": "object",
    "properties": {
        "anchor": {"const": "created_at"},
        "seconds": {
            "type": "integer",
            "minimum": openai_batch.KEEP_SEC[0],
            "maximum": openai_batch.KEEP_SEC[1],
        },
    },
    "required": ["anchor", "seconds"],
    "additionalProperties": False,
}
FILE_FORM: Json = {
    "file": FILE | {"description": "the file: JSONL of a batch, or audio that a batch names"},
    "purpose": {"enum": list(openai_batch.PURPOSES)},
    "expires_after[anchor]": {"const": "created_at"},
    "expires_after[seconds]": _EXPIRES_AFTER["properties"]["seconds"],
}
NEW_BATCH: Json = {
    "input_file_id": TEXT,
    "endpoint": {"enum": list(openai_batch.ENDPOINTS)},
    "completion_window": {"const": openai_batch.WINDOW},
    "metadata": {
        "type": ["object", "null"],
        "maxProperties": openai_batch.MOST_PAIRS,
        "propertyNames": {"maxLength": openai_batch.KEY_CHARS},
        "additionalProperties": {"type": "string", "maxLength": openai_batch.VALUE_CHARS},
    },
    "output_expires_after": _EXPIRES_AFTER,
}
