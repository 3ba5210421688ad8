"""What FastAPI cannot see of the routes: request bodies that are a form or JSON, and answers of several content types.

Fields come from `worker.protocol.request`, the one list of options. Answers are TypedDicts, for the document only: the
routes return finished responses. A test lets schemathesis compare the document with the server.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from typing_extensions import NotRequired, TypedDict

from worker.jobs.records import BatchStatus, State
from worker.protocol import openai, openai_batch, openai_fields, speech_timestamps
from worker.protocol.request import option_schema, options_of
from worker.types import FinishReason, Level, Task

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


class _ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str
    job_id: NotRequired[str]
    status_url: NotRequired[str]


class ErrorBody(TypedDict):
    """OpenAI's error object."""

    error: _ErrorDetail


class _Usage(TypedDict):
    type: str
    seconds: float


class _TimedSegment(TypedDict):
    """A segment of verbose_json, or of diarized_json."""

    id: int | str
    text: str
    start: float
    end: float
    seek: NotRequired[int]
    tokens: NotRequired[list[int] | None]
    temperature: NotRequired[float | None]
    avg_logprob: NotRequired[float | None]
    compression_ratio: NotRequired[float | None]
    no_speech_prob: NotRequired[float | None]
    type: NotRequired[str]
    speaker: NotRequired[str]
    channel: NotRequired[int]
    confidence: NotRequired[float | None]


class _TimedWord(TypedDict):
    word: str
    start: float
    end: float
    speaker: NotRequired[str]
    channel: NotRequired[int]
    confidence: NotRequired[float | None]


class _Logprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class _Language(TypedDict):
    code: str


class Transcription(TypedDict):
    """OpenAI's json, verbose_json and diarized_json."""

    text: str
    usage: _Usage
    languages: NotRequired[list[_Language]]
    task: NotRequired[str]
    language: NotRequired[str]
    duration: NotRequired[float]
    segments: NotRequired[list[_TimedSegment]]
    words: NotRequired[list[_TimedWord]]
    confidence: NotRequired[float | None]
    logprobs: NotRequired[list[_Logprob]]
    finish_reason: NotRequired[FinishReason]
    warning: NotRequired[str]


class Features(TypedDict):
    """A caption, an embedding, or both."""

    model: str
    caption: NotRequired[str]
    finish_reason: NotRequired[FinishReason]
    warning: NotRequired[str]
    embedding: NotRequired[list[Any] | str]
    shape: NotRequired[list[int]]
    frame_rate: NotRequired[float]
    duration_sec: NotRequired[float]


class _SpeakerTurn(TypedDict):
    start: float
    end: float
    speaker: str


class SpeakerTurns(TypedDict):
    """Who speaks when."""

    model: str
    duration: float
    segments: list[_SpeakerTurn]
    warning: NotRequired[str]


class ChatCompletion(TypedDict):
    """OpenAI's chat completion."""

    id: str
    object: str
    model: str
    choices: list[Any]
    usage: Json
    warning: NotRequired[str]


class _Download(TypedDict):
    bytes_done: int
    bytes_total: int


class ModelInfo(TypedDict):
    """OpenAI's model object, what the model can do, and where its weights are; unknown sizes are null.

    `root` differs from `id` for an alias: it is the id of the model that the alias means. `download` is the progress
    while the model is being downloaded, else null.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    aliases: list[str]
    license: str
    tasks: list[str]
    loaded: bool
    default: bool
    installed: bool
    on_disk: bool | None
    size_bytes: int | None
    download: _Download | None


class ModelDeleted(TypedDict):
    """OpenAI's confirmation that a model is deleted, here from the disk of the server."""

    id: str
    object: Literal["model"]
    deleted: Literal[True]


class ModelPage(TypedDict):
    """OpenAI's list of models. `scoring_models` are the keys that /score accepts as `model`."""

    object: Literal["list"]
    data: list[ModelInfo]
    scoring_models: list[str]


class SpeechSpan(TypedDict):
    """A span of speech, in milliseconds."""

    start: int
    end: int


class DetectedLanguage(TypedDict):
    """The language of speech. What the model does not know is null."""

    detected_language: str | None
    language_code: str | None
    confidence: float | None


class _UploadSegment(TypedDict):
    start: float
    end: float
    text: str


class UploadTranscript(TypedDict):
    """The answer to an upload at /transcribe."""

    text: str
    segments: list[_UploadSegment]
    filename: str
    timestamp: str


class PathTranscripts(TypedDict):
    """The answer to paths at /transcribe."""

    results: list[Json]


class EvaluationReport(TypedDict):
    """Error rates, and what every file came to."""

    summary: Json
    details: list[Json]


class ScoreAnswer(TypedDict):
    """How similar a recording and its reference clip are, from 0 to 1."""

    model: str
    sim_score: float
    audio_sim_score: float
    text_sim_score: float


class JobAccepted(TypedDict):
    """A stored job."""

    job_id: str
    status: State
    message: str


class _Progress(TypedDict):
    """Inputs, and seconds of audio; null while the seconds are unknown."""

    done: int
    total: int
    audio_sec_done: float | None
    audio_sec_total: float | None


class _PartialText(TypedDict):
    index: int
    text: str


class JobStatus(TypedDict):
    """The state of a job; times in ISO 8601, UTC."""

    job_id: str
    status: State
    kind: str
    task: str | None
    model: str | None
    filename: str | None
    upload_bytes: int | None
    created_at: str
    started_at: str | None
    completed_at: str | None
    error: str | None
    error_code: str | None
    progress: _Progress
    position: int | None
    partial: NotRequired[list[_PartialText]]


class JobPage(TypedDict):
    """Jobs from the newest on. `before` is the cursor of the next page, or null on the last one."""

    jobs: list[JobStatus]
    counts: Json
    before: int | None


class FileObject(TypedDict):
    """OpenAI's File object; times in seconds since 1970."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"]


class FilePage(TypedDict):
    """OpenAI's list of files. `has_more`: whether the list continues after `last_id`."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(TypedDict):
    """OpenAI's confirmation that a file is deleted."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class _BatchError(TypedDict):
    code: str
    line: int | None
    message: str
    param: str | None


class _BatchErrors(TypedDict):
    object: Literal["list"]
    data: list[_BatchError]


class _RequestCounts(TypedDict):
    total: int
    completed: int
    failed: int


class BatchObject(TypedDict):
    """OpenAI's Batch object; times in seconds since 1970."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: _BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: _RequestCounts
    metadata: dict[str, str] | None


class BatchPage(TypedDict):
    """OpenAI's list of batches. `has_more`: whether the list continues after `last_id`."""

    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class RunpodJob(TypedDict):
    """A job as Runpod's API shows it; times in milliseconds."""

    id: str
    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED"]
    delayTime: NotRequired[int]
    executionTime: NotRequired[int]
    progress: NotRequired[_Progress]
    partial: NotRequired[list[_PartialText]]
    error: NotRequired[str]
    output: NotRequired[Any]


class _RunpodJobs(TypedDict):
    inQueue: int
    inProgress: int
    completed: int
    failed: int


class _RunpodWorkers(TypedDict):
    initializing: int
    ready: int
    unhealthy: int


class RunpodHealth(TypedDict):
    """The health of an endpoint as Runpod's API shows it."""

    jobs: _RunpodJobs
    workers: _RunpodWorkers


class RunpodStream(RunpodJob):
    """A job, and the parts of its output that were not sent yet, as Runpod's API shows them."""

    stream: list[Any]


class RunpodPurge(TypedDict):
    """How many pending jobs were canceled."""

    removed: int
    status: Literal["completed"]


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
