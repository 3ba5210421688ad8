"""The threads that share one operation of torch on a CPU.

    many small operations ── one_thread ──▶ no barrier
    a few large ones      ────────────────▶ all threads, and a barrier after each operation

At the end of an operation that several threads share, each thread waits for the others at a barrier. Beside a busy
process, one of the threads may have to wait for a core, for some 4 ms on Linux, and all others wait with it. A loop of
operations that take microseconds each then takes milliseconds for each. A single thread has no barrier.

`worker.config.let_waiting_threads_sleep` sets how the threads wait.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class _Contexts:
    """The `one_thread` contexts that are open in this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open = 0
        self.threads_outside = 1


_CONTEXTS = _Contexts()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's operations in the calling thread only.

    A thread that uses torch for the first time while such a context is open in another thread gets one thread too, and
    the same results. It gets all threads when it leaves a context of its own.
    """
    import torch

    with _CONTEXTS.lock:
        if _CONTEXTS.open == 0:
            _CONTEXTS.threads_outside = torch.get_num_threads()
        _CONTEXTS.open += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _CONTEXTS.lock:
            _CONTEXTS.open -= 1
            torch.set_num_threads(_CONTEXTS.threads_outside)


def in_one_thread(*, unless: Callable[..., bool]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator that runs a function in `one_thread`, unless `unless` is true of the function's arguments."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            with contextlib.nullcontext() if unless(*args, **kwargs) else one_thread():
                return function(*args, **kwargs)

        return run

    return decorate
