"""The shapes of the routes' answers: TypedDicts for the OpenAPI document alone. The routes return finished responses.

A test lets schemathesis compare the document with the server.
"""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

from worker.jobs.records import BatchStatus, State
from worker.types import FinishReason

Json = dict[str, Any]


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
