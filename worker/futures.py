"""One future after another, or after several, without a thread that waits.

    into(target, step)        a callback that hands a future's result to `step`, and a failure to `target`
    when_all(futures, then)   call `then` once every future is done
    any_of(futures)           a future that fails only if all of them fail
    all_of(futures)           a future of all outcomes, errors included
    count_done(futures, note) call `note` with the number of done futures, whenever it grows
    settle, fail              complete a future that may be done already

Callbacks run on the thread that completes the last future they wait for.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, TypeVar

from worker.errors import AviaryError, Cancelled
from worker.faults import report

T = TypeVar("T")


def into(target: Future[Any], step: Callable[[T], None]) -> Callable[[Future[T]], None]:
    """Return a done-callback that passes the future's result to `step`, unless `target` is done already.

    An exception of the future or of the step fails `target`, as an AviaryError.
    """

    def proceed(before: Future[T]) -> None:
        if target.done():
            return
        try:
            step(before.result())
        except CancelledError:
            fail(target, Cancelled("the request was canceled"))
        except Exception as error:  # noqa: BLE001  the callers that wait for `target` get the error
            fail(target, report(error))

    return proceed


def when_all(futures: Collection[Future[Any]], then: Callable[[], None]) -> None:
    """Call `then` once every future is done, failed or canceled; at once if there are none.

    The call is a done-callback of the last future, made on the thread that completes it.
    """
    left, lock = len(futures), threading.Lock()

    def count(_done: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            is_last = left == 0
        if is_last:
            then()

    if not futures:
        then()
    for future in futures:
        future.add_done_callback(count)


def any_of(futures: Sequence[Future[Any]]) -> Future[None]:
    """Return a future that is done when all `futures` (at least one) are.

    It fails, with the error of the first, only if all of them fail. It cannot be canceled.
    """
    target: Future[None] = Future()
    target.set_running_or_notify_cancel()

    def finish() -> None:
        errors = [error for future in futures if (error := future.exception()) is not None]
        if len(errors) == len(futures):
            target.set_exception(errors[0])
        else:
            target.set_result(None)

    when_all(futures, finish)
    return target


def all_of(futures: Sequence[Future[T]]) -> Future[list[T | AviaryError]]:
    """Return a future of every outcome, in order, with an error in the place of each future that failed.

    Cancelling it cancels all `futures`.
    """
    target: Future[list[T | AviaryError]] = Future()

    def cancel(done: Future[Any]) -> None:
        if done.cancelled():
            for future in futures:
                future.cancel()

    def finish() -> None:
        settle(target, [future.result() if (error := _error(future)) is None else error for future in futures])

    target.add_done_callback(cancel)
    when_all(futures, finish)
    return target


def count_done(futures: Sequence[Future[Any]], note: Callable[[int], None]) -> None:
    """Call `note` with how many of the futures are done, each time that one of them is."""
    done, lock = 0, threading.Lock()

    def count(_future: Future[Any]) -> None:
        nonlocal done
        with lock:
            done += 1
            note(done)

    for future in futures:
        future.add_done_callback(count)


def settle(target: Future[T], value: T) -> None:
    """Set the result of a future, unless it is done or canceled already."""
    with contextlib.suppress(InvalidStateError):
        target.set_result(value)


def fail(target: Future[Any], error: Exception) -> None:
    """Set the error of a future, unless it is done or canceled already."""
    with contextlib.suppress(InvalidStateError):
        target.set_exception(error)


def _error(done: Future[Any]) -> AviaryError | None:
    if done.cancelled():
        return Cancelled("the request was canceled")
    error = done.exception()
    return None if error is None else report(error)
