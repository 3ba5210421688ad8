"""The one thread on the device: gathers pieces across requests into batches, runs them, and survives what they do.

`put(piece, deliver)` queues a piece; `deliver(outcome)` is called exactly once, on the lane's thread, with a Done or with
an error. What somebody waits for goes before the background, which still has a batch every BACKGROUND_SEC. A batch that fails
is split in halves until only the culprit fails. Out of memory does the same and lowers the model's budget. A lost device
fails everything queued and all that comes after: `lost` says so, and the worker must be replaced. Whatever happens, the
thread goes on.
"""
from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import NamedTuple

from worker.backends.base import Backend, forget, translate
from worker.batching import Limits, is_full, next_batch
from worker.errors import AviaryError, Cancelled, DeviceLost, InternalError, ModelError, ModelUnavailable, OutOfMemory
from worker.residency import Residency
from worker.types import Batch, Output, Piece

log = logging.getLogger(__name__)

BACKGROUND_SEC = 5.0     # the background waits for all that somebody waits for, but its next batch no longer than so


class Done(NamedTuple):
    """What came of a piece: the output, how long the piece waited for the device, its share of the device's time."""

    output: Output
    queue_sec: float
    model_sec: float


Deliver = Callable[[Done | AviaryError], None]
OnBatch = Callable[[Batch, float], None]


@dataclasses.dataclass(slots=True, eq=False)
class _Waiting:
    piece: Piece
    deliver: Deliver
    since: float


class Lane:
    """One device. `residency` holds its models; `coming` tells how many pieces, of the background or not of it, are
    about to be put; `on_batch` is told of each
    batch that was run, and its seconds."""

    def __init__(self, limits: Limits, residency: Residency, *, wait_sec: float = 0.05,
                 coming: Callable[[bool], int] = lambda background: 0, on_batch: OnBatch = lambda batch, seconds: None) -> None:
        self._on_batch = on_batch
        self._limits, self._residency, self._wait_sec, self._coming = limits, residency, wait_sec, coming
        self._budgets: dict[str, Limits] = {}
        self._waiting: dict[Piece, _Waiting] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._background_at = 0.0       # when a batch of the background was last run
        self.lost: DeviceLost | None = None
        self._thread = threading.Thread(target=self._live, name="lane", daemon=True)
        self._thread.start()

    def put(self, piece: Piece, deliver: Deliver) -> None:
        with self._changed:
            if self.lost is None and not self._closed:
                self._waiting[piece] = _Waiting(piece, deliver, time.monotonic())
                self._changed.notify()
                return
        deliver(self.lost or Cancelled("the worker is shutting down"))

    def __len__(self) -> int:
        """How many pieces wait."""
        return len(self._waiting)

    def nudge(self) -> None:
        """Something the gathering depends on has changed: fewer pieces are coming, one was cancelled, a model is loaded."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread after the batch it is running; what waits is delivered as cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=30)

    def _live(self) -> None:
        while not self._closed:
            try:
                self._residency.warm()
                pause = self._residency.sweep()
                if self._residency.lost is not None and self.lost is None:
                    self._lose(self._residency.lost)
                with self._changed:
                    act = self._next(pause)
                act()
                del act             # it holds the batch and its model
            except BaseException as error:  # noqa: BLE001  the lane never dies
                fault = InternalError("the batch could not be planned")
                fault.__cause__ = error
                self._abandon(known(fault))
        self._abandon(Cancelled("the worker is shutting down"))
        self._residency.close()

    def _next(self, pause: float | None) -> Callable[[], None]:
        """What to do now, the lock given back; if there is nothing, waits for a change, `pause` seconds at most."""
        cancelled = self._take([piece for piece in self._waiting if piece.cancelled()])
        if cancelled:
            return lambda: _deliver_all(cancelled, Cancelled("cancelled"))
        models: dict[str, list[_Waiting]] = {}
        for waiting in self._waiting.values():
            models.setdefault(waiting.piece.options.model, []).append(waiting)
        aged = time.monotonic() - self._background_at > BACKGROUND_SEC
        groups = models.items() if aged else [(model, _waited_for(own) or own) for model, own in models.items()]
        for model, own in sorted(groups, key=lambda group: min((one.piece.background and not aged, one.piece.order)
                                                               for one in group[1])):
            try:
                backend = self._residency.claim(model)
            except AviaryError as error:
                group = self._take([waiting.piece for waiting in own])
                return functools.partial(_deliver_all, group, known(error.with_traceback(None)))
            if backend is None:
                continue
            try:
                limits = self._budgets.setdefault(model, dataclasses.replace(self._limits, max_waste_sec=backend.overhead_sec))
                batch = next_batch([waiting.piece for waiting in own], limits)
                patience = own[0].since + self._wait_sec - time.monotonic()
                if patience <= 0 or is_full(batch, limits) or not self._coming(batch.pieces[0].background):
                    if batch.pieces[0].background:
                        self._background_at = time.monotonic()
                    return functools.partial(self._run_claimed, model, backend, self._take(batch.pieces))
            except BaseException:
                self._residency.release(model)
                raise
            self._residency.release(model)
            pause = patience if pause is None else min(pause, patience)
        if not self._closed and not self._residency.due:
            self._changed.wait(pause)
        return lambda: None

    def _run_claimed(self, model: str, backend: Backend, group: list[_Waiting]) -> None:
        try:
            self._run(backend, group)
        finally:
            self._residency.release(model)

    def _take(self, pieces: Iterable[Piece]) -> list[_Waiting]:
        return [self._waiting.pop(piece) for piece in pieces]

    def _run(self, backend: Backend, group: list[_Waiting]) -> None:
        """Runs the group as one batch, or in halves if it fails, and delivers every piece."""
        limits = self._budgets[group[0].piece.options.model]
        batch = Batch(tuple(w.piece for w in group), long=len(group) == 1 and group[0].piece.duration_sec > limits.long_sec)
        started = time.monotonic()
        try:
            outputs = backend.infer(batch)
            if len(outputs) != len(group):
                raise InternalError(f"the backend gave {len(outputs)} outputs for {len(group)} pieces")
        except BaseException as error:  # noqa: BLE001  the lane never dies, not of a Rust library's panic either
            forget(error)
            self._recover(backend, group, batch, translate(error))
            return
        took, total = time.monotonic() - started, sum(piece.duration_sec for piece in batch.pieces) or 1.0
        for waiting, output in zip(group, outputs, strict=True):
            share = took * waiting.piece.duration_sec / total
            _deliver(waiting, Done(output, started - waiting.since, share))
        self._on_batch(batch, took)

    def _recover(self, backend: Backend, group: list[_Waiting], batch: Batch, error: AviaryError) -> None:
        if isinstance(error, DeviceLost):
            _deliver_all(group, error)
            self._lose(error)
            return
        if isinstance(error, OutOfMemory) and len(group) > 1:
            limits = self._budgets[batch.options.model]
            lower = dataclasses.replace(limits, max_padded_sec=min(limits.max_padded_sec, batch.padded_sec / 2))
            self._budgets[batch.options.model] = lower
            log.warning("out of memory with %.0f padded seconds: batches of %s now hold %.0f", batch.padded_sec,
                        batch.options.model, lower.max_padded_sec)
        if len(group) == 1 or isinstance(error, ModelUnavailable):
            _deliver_all(group, known(error))
            return
        middle = len(group) // 2
        for half in (group[:middle], group[middle:]):
            if self.lost is None:
                self._run(backend, half)
            else:
                _deliver_all(half, self.lost)

    def _lose(self, error: DeviceLost) -> None:
        log.error("the device is lost: %r", error.__cause__)
        self.lost = error
        self._abandon(error)

    def _abandon(self, error: AviaryError) -> None:
        with self._changed:
            waiting, self._waiting = list(self._waiting.values()), {}
        _deliver_all(waiting, error)


def _waited_for(group: list[_Waiting]) -> list[_Waiting]:
    return [one for one in group if not one.piece.background]


def known(error: BaseException) -> AviaryError:
    """The error to tell the user; one whose cause is a stranger is logged under an id that its message carries."""
    if not isinstance(error, AviaryError):
        error = translate(error)
    if isinstance(error, InternalError) or (type(error) is ModelError and error.__cause__ is not None):
        name = uuid.uuid4().hex[:12]
        log.error("error %s", name, exc_info=error.__cause__ or error)
        if name not in error.message:
            error = type(error)(f"{error.message} (see the log, id {name})")
    return error


def _deliver_all(group: list[_Waiting], outcome: AviaryError) -> None:
    for waiting in group:
        _deliver(waiting, outcome)


def _deliver(waiting: _Waiting, outcome: Done | AviaryError) -> None:
    try:
        waiting.deliver(outcome)
    except Exception:
        log.exception("a delivery failed")
