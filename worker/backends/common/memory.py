"""The host's memory while a model loads.

with many_objects(): …    create objects that stay, without searching them for garbage again and again
release()                 return the memory that loading has freed to the operating system
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def many_objects() -> Iterator[None]:
    """Pause the garbage collector, and keep it from the objects that exist after the block.

    Python searches all objects whenever their number has grown by a quarter, which takes a fifth of the time of an
    import of thousands of modules.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def release() -> None:
    """Return free memory to the operating system, if the C library can: that of most Linux systems keeps it."""
    if trim := _trim():
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    function: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    return function
