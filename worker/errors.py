"""Every error Aviary raises on purpose, as one tree.

    AviaryError
    ├── RequestError            the request as a whole is wrong: nothing was done
    │   ├── ModelNotFound         no such model
    │   ├── Unsupported           the model cannot do this task, or this option
    │   ├── ClipNotFound          no such reference clip to score against
    │   ├── TooManyInputs
    │   ├── JobNotFound           no such job, or it has expired
    │   ├── WrongJobState         the job is not in the state that this needs
    │   ├── NotReadable           the body is neither JSON nor a form
    │   └── Unauthorized          no API key, or a wrong one
    ├── Busy                    not now: the same request may work later
    │   ├── RateLimited           this key has sent too many requests
    │   ├── QueueFull             more inputs wait already than MAX_QUEUE
    │   ├── StillLoading          the worker has just started
    │   └── DeadlineExceeded      it took longer than REQUEST_TIMEOUT_SEC
    ├── InputError              one input is at fault: the others go on
    │   ├── SourceForbidden       a path or address this worker may not read
    │   ├── SourceNotFound
    │   ├── FetchFailed           the other side failed, timed out or broke off
    │   ├── TooLarge              more bytes than MAX_AUDIO_BYTES
    │   ├── TooLong               more seconds than MAX_AUDIO_SEC or than the model hears
    │   ├── DecodeFailed          not audio, broken, or a decoder that crashed or hung
    │   └── EmptyAudio            audio without a single sample
    ├── ModelError              the model, or the device under it
    │   ├── ModelUnavailable      cannot be found or loaded
    │   ├── OutOfMemory           one piece alone is too much for the device
    │   └── DeviceLost            the device is gone: the worker needs a restart
    ├── ConfigError             a setting or a configuration file is wrong
    ├── FfmpegMissing           neither on PATH nor in the imageio-ffmpeg package
    ├── NoBucket                something is to be stored and no bucket is configured
    ├── JobFailed               of a job that failed: its own error, with its own code
    ├── ReferenceFailed         the reference clip to score against cannot be read
    ├── ResultTooLarge          the answer does not fit through Runpod and there is no bucket
    ├── StoreError              the job store cannot be used at present
    │   └── DiskFull              the disk that holds it has no room
    ├── WorkerLost              a job's workers died, as often as it may be tried
    ├── Cancelled
    ├── ServerUnreachable       of the Python client: nobody answers there, or the connection broke
    └── InternalError           a fault of ours; its id is in the log

Each class has `code` (what users match on), `status` (HTTP) and `retryable` (whether the same request may work later).
Messages are written for the person who sent the request: they name the field or the input, and the values allowed.
"""

from __future__ import annotations


class AviaryError(Exception):
    """The root. `param` names the field of the request that is at fault, where there is one."""

    code = "internal_error"
    status = 500
    retryable = False
    retry_after_sec: float | None = None

    def __init__(self, message: str, *, param: str | None = None, retryable: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if retryable is not None:
            self.retryable = retryable


class RequestError(AviaryError):
    code = "invalid_request"
    status = 400


class ModelNotFound(RequestError):
    code = "model_not_found"
    status = 404


class Unsupported(RequestError):
    code = "unsupported"


class ClipNotFound(RequestError):
    code = "clip_not_found"
    status = 404


class TooManyInputs(RequestError):
    code = "too_many_inputs"
    status = 413


class JobNotFound(RequestError):
    code = "job_not_found"
    status = 404


class WrongJobState(RequestError):
    code = "job_state"


class NotReadable(RequestError):
    status = 415


class Unauthorized(RequestError):
    code = "invalid_api_key"
    status = 401


class Busy(AviaryError):
    """`retry_after_sec`: when it is worth asking again."""

    status = 503
    retryable = True

    def __init__(self, message: str, *, retry_after_sec: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_sec = retry_after_sec


class RateLimited(Busy):
    code = "rate_limit_exceeded"
    status = 429


class QueueFull(Busy):
    code = "queue_full"
    status = 429


class StillLoading(Busy):
    code = "model_loading"


class DeadlineExceeded(Busy):
    code = "deadline_exceeded"


class InputError(AviaryError):
    code = "invalid_input"
    status = 400


class SourceForbidden(InputError):
    code = "source_forbidden"


class SourceNotFound(InputError):
    code = "source_not_found"
    status = 404


class FetchFailed(InputError):
    code = "fetch_failed"
    status = 422
    retryable = True


class TooLarge(InputError):
    code = "too_large"
    status = 413


class TooLong(InputError):
    code = "too_long"
    status = 413


class DecodeFailed(InputError):
    code = "decode_failed"
    status = 415


class EmptyAudio(InputError):
    code = "empty_audio"
    status = 422


class ModelError(AviaryError):
    code = "model_error"


class ModelUnavailable(ModelError):
    code = "model_unavailable"
    status = 503


class OutOfMemory(ModelError):
    code = "out_of_memory"
    status = 503


class DeviceLost(ModelError):
    code = "device_lost"
    status = 503
    retryable = True


class ReferenceFailed(AviaryError):
    code = "reference_failed"


class ResultTooLarge(AviaryError):
    code = "result_too_large"
    status = 413


class StoreError(AviaryError):
    code = "store_unavailable"
    status = 503
    retryable = True


class DiskFull(StoreError):
    code = "disk_full"
    status = 507


class ConfigError(AviaryError, ValueError):
    code = "config_error"


class FfmpegMissing(AviaryError):
    code = "ffmpeg_missing"


class NoBucket(AviaryError):
    code = "no_bucket"
    status = 400


class JobFailed(AviaryError):
    """`code`: that of the error with which the job failed."""

    def __init__(self, message: str, *, code: str | None, retryable: bool) -> None:
        super().__init__(message, retryable=retryable)
        self.code = code or self.code


class WorkerLost(AviaryError):
    code = "worker_lost"
    status = 503
    retryable = True


class Cancelled(AviaryError):
    code = "cancelled"
    status = 499


class ServerUnreachable(AviaryError):
    code = "server_unreachable"
    status = 503
    retryable = True


class InternalError(AviaryError):
    code = "internal_error"
