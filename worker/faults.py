"""Any exception → an `AviaryError`: the one place where a foreign exception becomes an error of the tree.

    translate(error)              what an exception of a running model (torch, NeMo, transformers) means for its input
    translate_load(error, model)  what an exception means that stopped a model from loading
    device_error(error)           what an exception means if the device or its driver is at fault
    disk_errors()                 raises the exceptions that mean a full disk as DiskFull
    report(error)                 the error to respond with; an unexpected one is logged under an id that it carries
    forget(error)                 releases the tensors and weights that the frames of a traceback hold

Clients see the id of an unexpected error and nothing else of it; the traceback is in the log.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
import traceback
import uuid
from collections.abc import Iterator

from worker.errors import AviaryError, DeviceLost, DiskFull, InternalError, ModelError, ModelUnavailable, OutOfMemory

log = logging.getLogger(__name__)

DEVICE_LOST = "the device failed and the worker restarts; send the request again"

_LOGGED = " (the worker's log has the details under id "

# What a message of CUDA and its libraries means, all in lower case. `device_error` tries the rows from the top.
# A library that finds no memory for its handle is "not initialized", and torch's allocator, where NVML does not work,
# reports the assertion about NVML in place of the memory.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "allocation_failed",
    "cublas_status_not_initialized",
    "cudnn_status_not_initialized",
    "nvml_success == r",
)
_NO_CODE = "no kernel image is available"
_DRIVER = (
    "cuda driver version is insufficient",
    "the provided ptx was compiled with an unsupported toolchain",
    "unsupported display driver / cuda driver combination",
    "forward compatibility was attempted on non supported hw",
)
# The errors after which, by NVIDIA's documentation of cudaError_t, the process cannot use the device again, and those
# that name a fault of the hardware. The status of a library (CUDNN_STATUS_EXECUTION_FAILED) and an error of a capture
# are not among them: both may pass, and if the device is lost, CUDA itself says so in the next batch.
_LOST = (
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "misaligned address",
    "operation not supported on global/shared address space",
    "invalid program counter",
    "hardware stack error",
    "device-side assert",
    "unspecified launch failure",
    "the launch timed out and was terminated",
    "tensor memory not completely freed",
    "the mps client has been terminated",
    "an async error has occured in external entity",  # sic
    "invalid access of peer gpu memory over nvlink or a hardware error",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "cuda-capable device(s) is/are busy or unavailable",
    "no cuda-capable device is detected",
    "error: context is destroyed",
    "error: unknown error",
    "cuda unknown error",
    "device is lost",
    "gpu is lost",
)


class RemoteTraceback(Exception):
    """The traceback of an exception in another process, as text: the cause of the error that is raised in this one."""


def translate(error: BaseException) -> AviaryError:
    """Return the error of the tree that an exception of a running model means; the exception becomes its cause."""
    if isinstance(error, AviaryError):
        return error
    ours = device_error(error) or ModelError(f"the model failed on this input: {type(error).__name__}")
    ours.__cause__ = error
    return ours


def translate_load(error: BaseException, model: str) -> AviaryError:
    """Return the error that an exception means which stopped `model` from loading; the exception becomes its cause.

    The result is a ModelUnavailable, unless the exception is an AviaryError already or the device is lost.
    """
    ours = translate(error)
    if isinstance(error, AviaryError) or isinstance(ours, DeviceLost | ModelUnavailable):
        return ours
    if isinstance(ours, OutOfMemory):
        ours = ModelUnavailable(f"{model} does not fit into the device's memory beside the models that are loaded")
    else:
        ours = ModelUnavailable(f"{model} could not be loaded: {type(error).__name__}: {error}")
    ours.__cause__ = error
    return ours


def device_error(error: BaseException) -> AviaryError | None:
    """Return the error that the exception means if it is the fault of the device or its driver, else None."""
    text = f"{type(error).__name__}: {error}".lower()
    if isinstance(error, MemoryError) or "outofmemory" in text or any(sign in text for sign in _OUT_OF_MEMORY):
        return OutOfMemory("the device does not have enough memory for this input")
    if _NO_CODE in text:
        return ModelUnavailable(f"torch has no code for this GPU. {_requirement()}")
    if any(sign in text for sign in _DRIVER):
        return ModelUnavailable(f"the GPU's driver does not fit this torch ({_first_line(error)}). Update the driver.")
    if any(sign in text for sign in _LOST):
        return DeviceLost(f"{DEVICE_LOST} ({_first_line(error)})")
    return None


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Raise DiskFull in place of an OSError which means that the disk or the quota is used up."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull("the worker's disk has no room for this input; send it again later") from error


def report(error: BaseException, *, during: str = "this request") -> AviaryError:
    """Return the error to respond with, and log it if it is unexpected.

    Unexpected are exceptions from outside the tree, InternalError, and a ModelError with a cause. Their message gets
    the id of the log entry, once. `during` says what failed, for the log and for the message of an exception from
    outside the tree.
    """
    if not isinstance(error, AviaryError):
        found = device_error(error) or InternalError(f"an internal error during {during}")
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

    The frames hold the tensors of the failed batch, or the weights of a model that did not load.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        current = left.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            traceback.clear_frames(current.__traceback__)
            left += [current.__cause__, current.__context__]


def _requirement() -> str:
    """Return the name and the architecture of the GPU, and the architectures that this torch has code for."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return "Use a newer GPU, or a torch that is built for this one."
    major, minor = torch.cuda.get_device_capability()
    return (
        f"The {torch.cuda.get_device_name()} is an sm_{major}{minor}; torch {torch.__version__} requires one of "
        f"{', '.join(torch.cuda.get_arch_list())}. Use another GPU, or a torch that is built for this one."
    )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
