"""One future after another, without a thread that waits."""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, TypeVar

from worker.errors import Cancelled
from worker.lane import known

T = TypeVar("T")


def into(target: Future[Any], step: Callable[[T], None]) -> Callable[[Future[T]], None]:
    """A done-callback that hands the result to `step`, unless `target` is done by then. What fails, there or in the step,
    fails `target`, as an error of ours."""
    def proceed(before: Future[T]) -> None:
        if target.done():
            return
        try:
            step(before.result())
        except CancelledError:
            fail(target, Cancelled("cancelled"))
        except Exception as error:  # noqa: BLE001  whoever waits is told
            fail(target, known(error))

    return proceed


def settle(target: Future[T], value: T) -> None:
    """Sets the result of a future that may have been cancelled or failed meanwhile."""
    with contextlib.suppress(InvalidStateError):
        target.set_result(value)


def fail(target: Future[Any], error: Exception) -> None:
    """Fails a future that may be done already."""
    with contextlib.suppress(InvalidStateError):
        target.set_exception(error)
