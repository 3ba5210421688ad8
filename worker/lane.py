"""The one thread on the device: gathers pieces across requests into batches, runs them, and survives what they do.

`put(piece, deliver)` queues a piece; `deliver(outcome)` is called exactly once, on the lane's thread, with a Done or with
an error. A batch that fails is split in halves until only the culprit fails. Out of memory does the same and lowers
the model's budget. A lost device fails everything queued and all that comes after: `lost` says so, and the worker must be
replaced. Whatever happens, the thread goes on.
"""
from __future__ import annotations

import dataclasses
import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from worker import catalog
from worker.backends.base import Backend, translate
from worker.batching import Limits, is_full, next_batch
from worker.errors import AviaryError, Cancelled, DeviceLost, InternalError, ModelError, ModelUnavailable, OutOfMemory
from worker.types import Batch, Output, Piece

log = logging.getLogger(__name__)


class Done(NamedTuple):
    """What came of a piece: the output, how long the piece waited for the device, its share of the device's time."""

    output: Output
    queue_sec: float
    model_sec: float


Deliver = Callable[[Done | AviaryError], None]


@dataclasses.dataclass(slots=True, eq=False)
class _Waiting:
    piece: Piece
    deliver: Deliver
    cancelled: Callable[[], bool]
    since: float


class Lane:
    """One device. `create` makes a model's backend; `coming` tells how many pieces are about to be put."""

    def __init__(self, limits: Limits, create: Callable[[catalog.Model], Backend], *, wait_sec: float = 0.05,
                 coming: Callable[[], int] = lambda: 0) -> None:
        self._limits, self._create, self._wait_sec, self._coming = limits, create, wait_sec, coming
        self._budgets: dict[str, Limits] = {}
        self._backends: dict[str, Backend] = {}
        self._waiting: dict[Piece, _Waiting] = {}
        self._loads: list[tuple[str, Future[None]]] = []
        self._changed = threading.Condition()
        self._closed = False
        self.lost: DeviceLost | None = None
        self._thread = threading.Thread(target=self._live, name="lane", daemon=True)
        self._thread.start()

    def put(self, piece: Piece, deliver: Deliver, *, cancelled: Callable[[], bool] = lambda: False) -> None:
        with self._changed:
            if self.lost is None and not self._closed:
                self._waiting[piece] = _Waiting(piece, deliver, cancelled, time.monotonic())
                self._changed.notify()
                return
        deliver(self.lost or Cancelled("the worker is shutting down"))

    def load(self, model: str) -> Future[None]:
        """Loads a model ahead of its first piece; the future fails with ModelUnavailable."""
        future: Future[None] = Future()
        with self._changed:
            self._loads.append((model, future))
            self._changed.notify()
        return future

    def nudge(self) -> None:
        """Something the gathering depends on has changed: fewer pieces are coming, or one was cancelled."""
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
        while True:
            try:
                loads, group = self._next()
            except Exception as error:  # noqa: BLE001  the lane never dies
                fault = InternalError("the batch could not be planned")
                fault.__cause__ = error
                self._abandon(_known(fault))
                continue
            for model, future in loads:
                self._preload(model, future)
            if group:
                self._run(group)
            elif not loads:
                break
        self._abandon(Cancelled("the worker is shutting down"))
        for backend in self._backends.values():
            backend.close()

    def _next(self) -> tuple[list[tuple[str, Future[None]]], list[_Waiting]]:
        """What to do now: models to load, the pieces of the next batch. Both empty: the lane is closed."""
        with self._changed:
            while not self._closed:
                if self._loads:
                    loads, self._loads = self._loads, []
                    return loads, []
                self._drop_cancelled()
                if self._waiting:
                    oldest = next(iter(self._waiting.values()))
                    limits = self._budgets.get(oldest.piece.options.model, self._limits)
                    batch = next_batch(list(self._waiting), limits)
                    patience = oldest.since + self._wait_sec - time.monotonic()
                    if patience <= 0 or is_full(batch, limits) or not self._coming():
                        return [], [self._waiting.pop(piece) for piece in batch.pieces]
                    self._changed.wait(patience)
                else:
                    self._changed.wait()
            return [], []

    def _drop_cancelled(self) -> None:
        for waiting in [w for w in self._waiting.values() if w.cancelled()]:
            del self._waiting[waiting.piece]
            _deliver(waiting, Cancelled("cancelled"))

    def _preload(self, model: str, future: Future[None]) -> None:
        try:
            self._backend(model)
        except Exception as error:  # noqa: BLE001  the lane never dies
            future.set_exception(_known(error))
        else:
            future.set_result(None)

    def _backend(self, model: str) -> Backend:
        if model not in self._backends:
            started = time.monotonic()
            backend = self._create(catalog.find(model))
            try:
                backend.load()
            except AviaryError:
                raise
            except Exception as error:
                raise ModelUnavailable(f"{model} could not be loaded: {type(error).__name__}: {error}") from error
            self._backends[model] = backend
            self._budgets[model] = dataclasses.replace(self._limits, max_waste_sec=backend.overhead_sec)
            log.info("loaded %s in %.1f s", model, time.monotonic() - started)
        return self._backends[model]

    def _run(self, group: list[_Waiting]) -> None:
        """Runs the group as one batch, or in halves if it fails, and delivers every piece."""
        limits = self._budgets.get(group[0].piece.options.model, self._limits)
        batch = Batch(tuple(w.piece for w in group), long=len(group) == 1 and group[0].piece.duration_sec > limits.long_sec)
        started = time.monotonic()
        try:
            outputs = self._backend(batch.options.model).infer(batch)
            if len(outputs) != len(group):
                raise InternalError(f"the backend gave {len(outputs)} outputs for {len(group)} pieces")
        except Exception as error:  # noqa: BLE001  the lane never dies
            self._recover(group, batch, translate(error))
            return
        took, total = time.monotonic() - started, sum(piece.duration_sec for piece in batch.pieces) or 1.0
        for waiting, output in zip(group, outputs, strict=True):
            share = took * waiting.piece.duration_sec / total
            _deliver(waiting, Done(output, started - waiting.since, share))

    def _recover(self, group: list[_Waiting], batch: Batch, error: AviaryError) -> None:
        if isinstance(error, DeviceLost):
            log.error("the device is lost: %r", error.__cause__)
            self.lost = error
            for waiting in group:
                _deliver(waiting, error)
            self._abandon(error)
            return
        if isinstance(error, OutOfMemory) and len(group) > 1:
            limits = self._budgets.get(batch.options.model, self._limits)
            lower = dataclasses.replace(limits, max_padded_sec=min(limits.max_padded_sec, batch.padded_sec / 2))
            self._budgets[batch.options.model] = lower
            log.warning("out of memory with %.0f padded seconds: batches of %s now hold %.0f", batch.padded_sec,
                        batch.options.model, lower.max_padded_sec)
        if len(group) == 1 or isinstance(error, ModelUnavailable):
            for waiting in group:
                _deliver(waiting, _known(error))
            return
        middle = len(group) // 2
        for half in (group[:middle], group[middle:]):
            if self.lost is None:
                self._run(half)
            else:
                for waiting in half:
                    _deliver(waiting, self.lost)

    def _abandon(self, error: AviaryError) -> None:
        with self._changed:
            waiting, self._waiting = list(self._waiting.values()), {}
        for one in waiting:
            _deliver(one, error)


def _known(error: Exception) -> AviaryError:
    """The error to tell the user; one whose cause is a stranger is logged under an id that its message carries."""
    if not isinstance(error, AviaryError):
        error = translate(error)
    if isinstance(error, InternalError) or (type(error) is ModelError and error.__cause__ is not None):
        name = uuid.uuid4().hex[:12]
        log.error("error %s", name, exc_info=error.__cause__ or error)
        if name not in error.message:
            error = type(error)(f"{error.message} (see the log, id {name})")
    return error


def _deliver(waiting: _Waiting, outcome: Done | AviaryError) -> None:
    try:
        waiting.deliver(outcome)
    except Exception:
        log.exception("a delivery failed")
