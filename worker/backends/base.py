"""What every backend is: load once, then batches in, as many outputs out, in the same order.

`load` runs on a thread of its own, so that other models go on meanwhile; everything else on the lane's thread, one call at a
time. So a backend may change its model's state while it runs a batch, if it restores it.
`translate` is the one seam where the exceptions of torch and its friends become errors of ours; `forget` takes from them what
they hold.
"""
from __future__ import annotations

import traceback
from abc import ABC, abstractmethod

from worker.errors import AviaryError, DeviceLost, ModelError, OutOfMemory
from worker.types import Batch, Output


class Backend(ABC):
    """A model that can be run.

    `overhead_sec`: what a batch costs beyond its audio, told in seconds of audio (known once loaded): more padding than that
    is not worth sharing a batch for.
    """

    overhead_sec: float = 100.0

    def weigh(self) -> int:
        """Bytes of device memory the weights will take, as far as their files tell before they are loaded."""
        return 0

    @abstractmethod
    def load(self) -> None:
        """Puts the weights on the device. Raises ModelUnavailable with what to do about it."""

    def warm(self) -> None:
        """After `load`, once, what needs the device to itself."""
        return

    @abstractmethod
    def infer(self, batch: Batch) -> list[Output]:
        """One output per piece, in the order of `batch.pieces`; it must not depend on a piece's neighbours."""

    def close(self) -> None:
        """Gives the device's memory back."""
        return


_OUT_OF_MEMORY = ("out of memory", "cublas_status_alloc_failed", "can't allocate memory", "cannot allocate memory")
_LOST = ("cuda error", "device-side assert", "illegal memory access", "unspecified launch failure", "ecc error",
         "cublas_status_execution_failed", "cudnn_status_execution_failed", "device is lost", "nccl error")


def forget(error: BaseException) -> None:
    """Empties the frames that the error and what led to it passed through: they hold the failed batch's tensors, or the
    weights of a model that did not load."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            left += [one.__cause__, one.__context__]


def translate(error: BaseException) -> AviaryError:
    """The error of ours that a backend's exception means. The original stays its cause."""
    if isinstance(error, AviaryError):
        return error
    text = f"{type(error).__name__}: {error}".lower()
    if isinstance(error, MemoryError) or "outofmemory" in text or any(sign in text for sign in _OUT_OF_MEMORY):
        ours: AviaryError = OutOfMemory("the device has not enough memory for this input")
    elif any(sign in text for sign in _LOST) or type(error).__name__ == "AcceleratorError":
        ours = DeviceLost("the device failed; the worker restarts, send the request again")
    else:
        ours = ModelError(f"the model failed on this input: {type(error).__name__}")
    ours.__cause__ = error
    return ours
