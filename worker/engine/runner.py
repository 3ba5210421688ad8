"""The one thread on a device: takes batches from the pool, runs them, and survives what they do.

A batch that fails is split in halves until only the culprit fails. Out of memory does the same and lowers the model's
budget on
this device. A lost device ends the lane, and what it was running goes back to the pool. Whatever else happens, the
thread goes on.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable

from worker.backends.base import Backend
from worker.engine.batching import Limits
from worker.engine.model_manager import ModelManager
from worker.engine.scheduler import Assignment, PieceResult, QueuedPiece, Scheduler, deliver, deliver_all
from worker.errors import AviaryError, Cancelled, DeviceLost, InternalError, ModelUnavailable, OutOfMemory
from worker.faults import forget, report, translate
from worker.types import Batch

log = logging.getLogger(__name__)

OnBatch = Callable[[Batch, float, str], None]


class Runner:
    """One device. `residency` holds its models; `on_batch` is told of each batch that was run, its seconds, and the
    lane's `name`; `ended` gives the device up: called once its models are closed, before that where it is lost."""

    def __init__(
        self,
        scheduler: Scheduler,
        models: ModelManager,
        limits: Limits,
        *,
        name: str = "0",
        on_batch: OnBatch = lambda batch, seconds, device: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.models, self.name = models, name
        self.lost: DeviceLost | None = None
        self._scheduler, self._limits, self._on_batch, self._ended = scheduler, limits, on_batch, ended
        self._budgets: dict[str, Limits] = {}
        self._thread = threading.Thread(target=self._live, name=f"lane {name}", daemon=True)
        scheduler.add_runner(self)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Waits for the end of the batch that is running, after the pool is closed."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=30)

    def limits(self, model: str, backend: Backend) -> Limits:
        """What a batch of the model may hold here."""
        return self._budgets.setdefault(model, dataclasses.replace(self._limits, max_waste_sec=backend.overhead_sec))

    def _live(self) -> None:
        while not self._scheduler.closed and self.lost is None:
            try:
                self.models.warm()
                pause = self.models.evict_idle()
                if self.models.lost is not None:
                    self._lose(self.models.lost)
                elif taken := self._scheduler.next_assignment(self, pause):
                    self._act(taken)
                    del taken  # it holds the batch and its model
            except BaseException as error:  # noqa: BLE001  the lane never dies
                fault = InternalError("the batch could not be planned")
                fault.__cause__ = error
                self._scheduler.abandon(report(fault))
        if self.lost is not None:
            self._ended()  # a model might not close on a device like that
        self.models.close(self.lost or Cancelled("the worker is shutting down"))
        self._ended()

    def _act(self, taken: Assignment) -> None:
        if isinstance(taken.model, AviaryError):
            deliver_all(taken.group, report(taken.model))
            return
        try:
            self._run(taken.model, taken.group)
        finally:
            self.models.release(taken.group[0].piece.options.model)

    def _run(self, backend: Backend, group: list[QueuedPiece]) -> None:
        """Runs the group as one batch, or in halves if it fails, and delivers every piece."""
        limits = self._budgets[group[0].piece.options.model]
        batch = Batch(
            tuple(w.piece for w in group), long=len(group) == 1 and group[0].piece.duration_sec > limits.long_sec
        )
        for piece in batch.pieces:
            piece.begins()
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
            deliver(waiting, PieceResult(output, started - waiting.since, share))
        self._on_batch(batch, took, self.name)

    def _recover(self, backend: Backend, group: list[QueuedPiece], batch: Batch, error: AviaryError) -> None:
        if isinstance(error, DeviceLost):
            self._lose(error)
            deliver_all(self._scheduler.requeue(group, error, ran=True), error)
            return
        if isinstance(error, OutOfMemory) and len(group) > 1:
            limits = self._budgets[batch.options.model]
            lower = dataclasses.replace(limits, max_padded_sec=min(limits.max_padded_sec, batch.padded_sec / 2))
            self._budgets[batch.options.model] = lower
            log.warning(
                "out of memory with %.0f padded seconds: batches of %s now hold %.0f",
                batch.padded_sec,
                batch.options.model,
                lower.max_padded_sec,
            )
        if len(group) == 1 or isinstance(error, ModelUnavailable):
            deliver_all(group, report(error))
            return
        middle = len(group) // 2
        for half in (group[:middle], group[middle:]):
            if self.lost is None:
                self._run(backend, half)
            else:
                deliver_all(self._scheduler.requeue(half, self.lost, ran=False), self.lost)

    def _lose(self, error: DeviceLost) -> None:
        self.lost = error
        self._scheduler.remove_runner(self, error)
