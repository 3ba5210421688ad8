"""The memory of the host and the device while models are loaded and unloaded.

with many_objects(): …    create objects that stay, without searching them for garbage again and again
release()                 return the memory that loading has freed to the operating system
collect()                 free what a closed model leaves behind
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def many_objects() -> Iterator[None]:
    """Pause the garbage collector.

    Python searches all objects whenever their number has grown by a quarter, which takes a fifth of the time of an
    import of thousands of modules. The objects are not frozen: a model is part of cycles, which only the collector
    frees once the model is unloaded.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def collect() -> None:
    """Free the objects that nothing refers to any more, frozen ones included, and return their memory.

    The parts of a model refer to one another, so the end of the last reference to the model does not free its weights.
    """
    gc.unfreeze()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    release()


def release() -> None:
    """Return free memory to the operating system, if the C library can: that of most Linux systems keeps it."""
    if trim := _trim():
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    function: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    return function
