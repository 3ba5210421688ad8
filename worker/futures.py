"""One future after another, or of several, without a thread that waits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, TypeVar

from worker.errors import AviaryError, Cancelled
from worker.faults import report

T = TypeVar("T")


def into(target: Future[Any], step: Callable[[T], None]) -> Callable[[Future[T]], None]:
    """A done-callback that hands the result to `step`, unless `target` is done by then. What fails, there or in the
    step, fails `target`, as an error of ours."""

    def proceed(before: Future[T]) -> None:
        if target.done():
            return
        try:
            step(before.result())
        except CancelledError:
            fail(target, Cancelled("cancelled"))
        except Exception as error:  # noqa: BLE001  whoever waits is told
            fail(target, report(error))

    return proceed


def any_of(several: Sequence[Future[T]]) -> Future[None]:
    """Done when all are (one at least): fails, with the first one's error, only if all of them have."""
    target: Future[None] = Future()
    target.set_running_or_notify_cancel()
    left, lock = len(several), threading.Lock()

    def count(_done: Future[T]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            errors = [error for one in several if (error := one.exception()) is not None]
            if len(errors) == len(several):
                target.set_exception(errors[0])
            else:
                target.set_result(None)

    for one in several:
        one.add_done_callback(count)
    return target


def settle(target: Future[T], value: T) -> None:
    """Sets the result of a future that may have been cancelled or failed meanwhile."""
    with contextlib.suppress(InvalidStateError):
        target.set_result(value)


def fail(target: Future[Any], error: Exception) -> None:
    """Fails a future that may be done already."""
    with contextlib.suppress(InvalidStateError):
        target.set_exception(error)


def all_of(several: Sequence[Future[T]]) -> Future[list[T | AviaryError]]:
    """Return a future of every outcome, in order, with an error in the place of each that failed.

    Cancelling it cancels all of them.
    """
    target: Future[list[T | AviaryError]] = Future()
    left, lock = len(several), threading.Lock()

    def count(_done: Future[T]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        if target.set_running_or_notify_cancel():
            outcomes = [_outcome(one) for one in several]
            target.set_result(outcomes)

    def cancel(done: Future[Any]) -> None:
        if done.cancelled():
            for one in several:
                one.cancel()

    target.add_done_callback(cancel)
    for one in several:
        one.add_done_callback(count)
    return target


def _outcome(done: Future[Any]) -> Any:
    error = Cancelled("cancelled") if done.cancelled() else done.exception()
    return done.result() if error is None else report(error)
