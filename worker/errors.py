"""Every error that Aviary raises on purpose, as one tree.

    AviaryError
    ├── RequestError            the request as a whole
    │   ├── ModelNotFound
    │   ├── Unsupported
    │   ├── ClipNotFound
    │   ├── TooManyInputs
    │   ├── JobNotFound
    │   ├── FileNotFound
    │   ├── BatchNotFound
    │   ├── WrongJobState
    │   ├── ModelInUse
    │   ├── NotPermitted
    │   ├── NotReadable
    │   ├── EmptyBuffer
    │   ├── Unauthorized
    │   ├── Forbidden
    │   ├── BodyTimeout
    │   └── HeadTooLarge
    ├── Busy                    a temporary state of the server
    │   ├── RateLimited
    │   ├── QueueFull
    │   ├── TooManyConnections
    │   ├── StillLoading
    │   └── DeadlineExceeded
    ├── InputError              one input; the request's other inputs are processed
    │   ├── SourceForbidden
    │   ├── SourceNotFound
    │   ├── FetchFailed
    │   ├── TooLarge
    │   ├── TooLong
    │   ├── DecodeFailed
    │   └── EmptyAudio
    ├── ModelError              the model, or the device that runs it
    │   ├── ModelUnavailable
    │   ├── OutOfMemory
    │   └── DeviceLost
    ├── ConfigError
    ├── FfmpegMissing
    ├── NoBucket
    ├── JobFailed
    ├── ReferenceFailed
    ├── ResultTooLarge
    ├── StoreError              the job store
    │   └── DiskFull
    ├── WorkerLost
    ├── Cancelled
    ├── ServerUnreachable
    └── InternalError

Each class has a `code` (the public name of the error), a `status` (HTTP), and `retryable` (whether the same request may
succeed later). The first line of a class's docstring is the code's meaning in `docs/errors.md`. Messages address the
sender of the request: a message names the field or the input, and the allowed values.
"""

from __future__ import annotations

MESSAGE_CHARS = 2000  # Messages repeat values of the request, which may have millions of characters.
EXCERPT_CHARS = 200


class AviaryError(Exception):
    """The root of the tree. `param`: the field of the request that is at fault, if the error has one.

    `retry_after_sec`: the seconds to wait before the next try, if they are known.
    """

    code = "internal_error"
    status = 500
    retryable = False
    retry_after_sec: float | None = None

    def __init__(self, message: str, *, param: str | None = None, retryable: bool | None = None) -> None:
        message = _cut(message)
        super().__init__(message)
        self.message = message
        self.param = param if param is None else _cut(param)
        if retryable is not None:
            self.retryable = retryable


def excerpt(text: str) -> str:
    """Return the beginning of a client's text for a message, so that the advice after it is not cut off."""
    return _cut(text, EXCERPT_CHARS)


def _cut(text: str, limit: int = MESSAGE_CHARS) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"


class RequestError(AviaryError):
    """The request as a whole is invalid; the worker did nothing."""

    code = "invalid_request"
    status = 400


class ModelNotFound(RequestError):
    """The model is unknown, or this server does not allow it."""

    code = "model_not_found"
    status = 404


class Unsupported(RequestError):
    """The model does not support the task or one of the options."""

    code = "unsupported"


class ClipNotFound(RequestError):
    """No reference clip has this `uid` and `cid`."""

    code = "clip_not_found"
    status = 404


class TooManyInputs(RequestError):
    """The request has more than `MAX_INPUTS` inputs."""

    code = "too_many_inputs"
    status = 413


class JobNotFound(RequestError):
    """No job has this id, or the job has expired."""

    code = "job_not_found"
    status = 404


class FileNotFound(RequestError):
    """No file has this id, or the file has expired or belongs to another API key."""

    code = "file_not_found"
    status = 404


class BatchNotFound(RequestError):
    """No batch has this id, or the batch has expired or belongs to another API key."""

    code = "batch_not_found"
    status = 404


class WrongJobState(RequestError):
    """The job's state does not allow the operation."""

    code = "job_state"


class ModelInUse(RequestError):
    """A process of this machine has the model loaded or downloads it, so it cannot be removed."""

    code = "model_in_use"
    status = 409


class NotPermitted(RequestError):
    """The operation requires an operator's key (`ADMIN_API_KEY`)."""

    code = "insufficient_permissions"
    status = 403


class NotReadable(RequestError):
    """The body is neither JSON nor a form."""

    status = 415


class EmptyBuffer(RequestError):
    """A realtime client committed audio, and there is none to transcribe."""

    code = "input_audio_buffer_commit_empty"


class Unauthorized(RequestError):
    """The API key is missing or wrong."""

    code = "invalid_api_key"
    status = 401


class Forbidden(RequestError):
    """The request comes from a web page, or names a host, that the server does not accept (`CORS_ORIGINS`)."""

    code = "forbidden"
    status = 403


class BodyTimeout(RequestError):
    """The body of the request stopped arriving, or took too long to arrive (`CLIENT_TIMEOUT_SEC`)."""

    code = "body_timeout"
    status = 408


class HeadTooLarge(RequestError):
    """The URL and the headers of the request are longer than the server accepts."""

    code = "head_too_large"
    status = 431


class Busy(AviaryError):
    """The server cannot accept the request now. `retry_after_sec`: the seconds to wait before the next try."""

    status = 503
    retryable = True

    def __init__(self, message: str, *, retry_after_sec: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_sec = retry_after_sec


class RateLimited(Busy):
    """The key or address has sent more requests than `RATE_LIMIT` allows."""

    code = "rate_limit_exceeded"
    status = 429


class QueueFull(Busy):
    """The request would take the server over `MAX_QUEUE` unanswered inputs, or over the memory for bodies."""

    code = "queue_full"
    status = 429


class TooManyConnections(Busy):
    """The server has `MAX_CONNECTIONS` connections."""

    code = "too_many_connections"


class StillLoading(Busy):
    """The model is loading."""

    code = "model_loading"


class DeadlineExceeded(Busy):
    """The request took longer than `REQUEST_TIMEOUT_SEC`. It continues as the job `job_id`, if the error names one."""

    code = "deadline_exceeded"

    def __init__(self, message: str, *, retry_after_sec: float | None = None, job_id: str | None = None) -> None:
        super().__init__(message, retry_after_sec=retry_after_sec)
        self.job_id = job_id


class InputError(AviaryError):
    """A field of one input is invalid."""

    code = "invalid_input"
    status = 400


class SourceForbidden(InputError):
    """The path is outside `ALLOWED_PATHS`, or the address is not public."""

    code = "source_forbidden"


class SourceNotFound(InputError):
    """The file or URL does not exist."""

    code = "source_not_found"
    status = 404


class FetchFailed(InputError):
    """The download failed, timed out, or broke off; not retryable if the URL, certificate, or status rules it out."""

    code = "fetch_failed"
    status = 422
    retryable = True


class TooLarge(InputError):
    """The file or body is larger than the server accepts (`MAX_AUDIO_BYTES`, `MAX_JSON_BYTES`, `MAX_INPUTS`)."""

    code = "too_large"
    status = 413


class TooLong(InputError):
    """The audio is longer than `MAX_AUDIO_SEC`, or than the model accepts for the task."""

    code = "too_long"
    status = 413


class DecodeFailed(InputError):
    """The file is not audio, is damaged, or crashed or blocked its decoder."""

    code = "decode_failed"
    status = 415


class EmptyAudio(InputError):
    """The file has no bytes, or its audio has no samples."""

    code = "empty_audio"
    status = 422


class ModelError(AviaryError):
    """The model failed on the input; the worker's log has the details under the id in the message."""

    code = "model_error"


class ModelUnavailable(ModelError):
    """The model cannot be found or loaded; retryable only if the hub could not be reached."""

    code = "model_unavailable"
    status = 503


class OutOfMemory(ModelError):
    """The input alone needs more memory than the device has."""

    code = "out_of_memory"
    status = 503


class DeviceLost(ModelError):
    """The GPU failed; on Runpod, a fresh worker replaces this one."""

    code = "device_lost"
    status = 503
    retryable = True


class ReferenceFailed(AviaryError):
    """The reference clip cannot be read or decoded."""

    code = "reference_failed"


class ResultTooLarge(AviaryError):
    """The result exceeds `MAX_RESULT_BYTES`, and no bucket is configured."""

    code = "result_too_large"
    status = 413


class StoreError(AviaryError):
    """The job store cannot be used now; nothing was changed."""

    code = "store_unavailable"
    status = 503
    retryable = True


class DiskFull(StoreError):
    """The disk has no room for the input, the upload, or the job; nothing was changed."""

    code = "disk_full"
    status = 507


class ConfigError(AviaryError, ValueError):
    """A setting or a configuration file is invalid."""

    code = "config_error"


class FfmpegMissing(AviaryError):
    """ffmpeg is neither on `PATH` nor in the imageio-ffmpeg package."""

    code = "ffmpeg_missing"


class NoBucket(AviaryError):
    """The result must be stored, and no bucket is configured."""

    code = "no_bucket"
    status = 400


class JobFailed(AviaryError):
    """The job failed. `code`: the code of the error that the job failed with."""

    def __init__(self, message: str, *, code: str | None, retryable: bool) -> None:
        super().__init__(message, retryable=retryable)
        self.code = code or self.code


class WorkerLost(AviaryError):
    """The workers that ran the job died `JOB_MAX_ATTEMPTS` times."""

    code = "worker_lost"
    status = 503
    retryable = True


class Cancelled(AviaryError):
    """The request was canceled, or the worker is shutting down."""

    code = "cancelled"
    status = 499


class ServerUnreachable(AviaryError):
    """The Python client cannot reach the server, or the connection broke."""

    code = "server_unreachable"
    status = 503
    retryable = True


class InternalError(AviaryError):
    """Aviary has a bug; the worker's log has the details under the id in the message."""

    code = "internal_error"
