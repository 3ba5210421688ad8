"""Any exception → an `AviaryError`: the one place where a stranger becomes one of ours.

    translate(error)    what an exception of a backend (torch, NeMo, transformers) means for the request
    report(error)       the error to answer with; one that nobody expected is logged under an id that the answer carries
    forget(error)       releases the tensors and weights that the frames of a traceback hold

Clients see the id of an unexpected error and nothing else of it; the traceback is in the log.
"""

from __future__ import annotations

import logging
import traceback
import uuid

from worker.errors import AviaryError, DeviceLost, InternalError, ModelError, OutOfMemory

log = logging.getLogger(__name__)

_OUT_OF_MEMORY = ("out of memory", "cublas_status_alloc_failed", "can't allocate memory", "cannot allocate memory")
_LOST = (
    "cuda error",
    "device-side assert",
    "illegal memory access",
    "unspecified launch failure",
    "ecc error",
    "cublas_status_execution_failed",
    "cudnn_status_execution_failed",
    "device is lost",
    "nccl error",
)


def translate(error: BaseException) -> AviaryError:
    """Return the error of the tree that a backend's exception means; the exception becomes its cause."""
    if isinstance(error, AviaryError):
        return error
    ours = _of_the_device(error) or ModelError(f"the model failed on this input: {type(error).__name__}")
    ours.__cause__ = error
    return ours


def report(error: BaseException, *, during: str = "this request") -> AviaryError:
    """Return the error to answer with, and log it if it is unexpected.

    Unexpected are exceptions from outside the tree, `InternalError`, and a `ModelError` with a cause. Their message
    gets the
    id of the log entry, once. `during` says what failed, for the log and the message of an exception from outside the
    tree.
    """
    if not isinstance(error, AviaryError):
        found = _of_the_device(error) or InternalError(f"an internal error during {during}")
        found.__cause__ = error
        error = found
    if isinstance(error, InternalError) or (type(error) is ModelError and error.__cause__ is not None):
        name = uuid.uuid4().hex[:12]
        log.error("error %s during %s", name, during, exc_info=error.__cause__ or error)
        if _LOGGED not in error.message:
            error = type(error)(f"{error.message}{_LOGGED}{name})")
    return error


def forget(error: BaseException) -> None:
    """Clear the frames that the error and its causes passed through.

    They hold the tensors of the failed batch, or the weights of a model that did not load.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            left += [one.__cause__, one.__context__]


_LOGGED = " (the worker's log has the details under id "


def _of_the_device(error: BaseException) -> AviaryError | None:
    """The error that the device is to blame for, if it is."""
    text = f"{type(error).__name__}: {error}".lower()
    if isinstance(error, MemoryError) or "outofmemory" in text or any(sign in text for sign in _OUT_OF_MEMORY):
        return OutOfMemory("the device does not have enough memory for this input")
    if type(error).__name__ == "AcceleratorError" or any(sign in text for sign in _LOST):
        return DeviceLost("the device failed and the worker restarts; send the request again")
    return None
