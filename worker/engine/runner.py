"""The one thread of a device: takes batches from the scheduler and runs them, and outlives their failures.

A batch that fails is run again in halves, until only the piece at fault fails. Running out of memory does the same, and
lowers the model's budget on this device. From the batches that ran, the runner learns how long the next one may be. The
loss of the device ends the thread, and the pieces that it was running go
back to the scheduler. No other exception ends the thread.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence

from worker.backends.base import Backend
from worker.engine.batch_cost import CostEstimate
from worker.engine.batching import Limits
from worker.engine.model_manager import ModelManager
from worker.engine.piece_queue import PieceResult, QueuedPiece, deliver_all
from worker.engine.scheduler import Assignment, Scheduler
from worker.errors import AviaryError, Cancelled, DeviceLost, InternalError, ModelUnavailable, OutOfMemory
from worker.faults import forget, report, translate
from worker.types import Batch, Output, Task

log = logging.getLogger(__name__)

OnBatch = Callable[[Batch, float, str], None]
JOIN_SEC = 30.0


class Runner:
    """One device.

    models: the models on the device.
    limits: what a batch may hold, before a model runs out of memory.
    target_sec: returns how long a batch should run at most. It is called once a model is loaded.
    name: the name of the device.
    on_batch: called with each batch that ran, its seconds and `name`, on the device's thread.
    on_end: called to give up the device, when its models are closed. If the device is lost, it is called before that
        too, because models on a lost device might not close.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        models: ModelManager,
        limits: Limits,
        *,
        target_sec: Callable[[], float] = lambda: math.inf,
        name: str = "0",
        on_batch: OnBatch = lambda batch, seconds, device: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.models, self.name = models, name
        self.lost: DeviceLost | None = None
        self._scheduler, self._limits, self._on_batch, self._on_end = scheduler, limits, on_batch, on_end
        self._target_sec = target_sec
        self._budgets: dict[str, Limits] = {}  # by model
        self._estimates: dict[tuple[str, Task], CostEstimate] = {}  # by model and task
        self._thread = threading.Thread(target=self._run, name=f"runner {name}", daemon=True)
        scheduler.add_runner(self)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the running batch has ended, for JOIN_SEC at most. The scheduler must be closed."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=JOIN_SEC)

    def limits(self, model: str, backend: Backend, task: Task) -> Limits:
        """Return what a batch of the model, for one task, may hold on this device."""
        if model not in self._budgets:
            self._budgets[model] = dataclasses.replace(
                self._limits, max_waste_sec=backend.overhead_sec, target_sec=self._target_sec()
            )
        if (model, task) not in self._estimates:
            target_sec = self._budgets[model].target_sec
            self._estimates[model, task] = CostEstimate(backend.overhead_sec, backend.least_sec, target_sec)
        return dataclasses.replace(self._budgets[model], cost=self._estimates[model, task].cost)

    def _run(self) -> None:
        while not self._scheduler.closed and self.lost is None:
            try:
                self._step()
            except BaseException as error:  # noqa: BLE001  no exception ends the thread
                self._fail_all(error)
        if self.lost is not None:
            self._on_end()
        self.models.close(self.lost or Cancelled("the worker is shutting down"))
        self._on_end()

    def _step(self) -> None:
        self.models.warm()
        pause = self.models.evict_idle()
        if self.models.lost is not None:
            self._lose(self.models.lost)
            return
        assignment = self._scheduler.next_assignment(self, pause)
        if assignment is not None:
            self._execute(assignment)

    def _fail_all(self, error: BaseException) -> None:
        fault = InternalError("the batch could not be planned")
        fault.__cause__ = error
        self._scheduler.fail_all(report(fault))

    def _execute(self, assignment: Assignment) -> None:
        group, model = assignment
        if isinstance(model, AviaryError):
            deliver_all(group, report(model))
            return
        started = time.monotonic()
        try:
            self._run_batch(model, group)
        finally:
            self._scheduler.end(group, time.monotonic() - started)
            self.models.release(group[0].piece.options.model)

    def _run_batch(self, backend: Backend, group: Sequence[QueuedPiece]) -> None:
        """Run the group as one batch, or in halves if it fails, and deliver an outcome to every piece."""
        limits = self._budgets[group[0].piece.options.model]
        pieces = tuple(queued.piece for queued in group)
        batch = Batch(pieces, long=len(pieces) == 1 and pieces[0].duration_sec > limits.long_sec)
        for piece in pieces:
            piece.begins()
        started = time.monotonic()
        try:
            outputs = backend.infer(batch)
            if len(outputs) != len(group):
                raise InternalError(f"the backend returned {len(outputs)} outputs for {len(group)} pieces")
        except BaseException as error:  # noqa: BLE001  no exception ends the thread, not even a Rust library's panic
            forget(error)
            self._recover(backend, group, batch, translate(error))
            return
        took_sec = time.monotonic() - started
        if not batch.long:
            self._estimates[batch.options.model, batch.options.task].add(batch, took_sec)
        _deliver_outputs(group, outputs, started, took_sec)
        self._on_batch(batch, took_sec, self.name)

    def _recover(self, backend: Backend, group: Sequence[QueuedPiece], batch: Batch, error: AviaryError) -> None:
        if isinstance(error, DeviceLost):
            self._lose(error)
            deliver_all(self._scheduler.requeue(group, ran=True), error)
            return
        if isinstance(error, OutOfMemory) and len(group) > 1:
            self._lower_budget(batch)
        if len(group) == 1 or isinstance(error, ModelUnavailable):
            deliver_all(group, report(error))
            return
        middle = len(group) // 2
        for half in (group[:middle], group[middle:]):
            if self.lost is None:
                self._run_batch(backend, half)
            else:
                deliver_all(self._scheduler.requeue(half, ran=False), self.lost)

    def _lower_budget(self, batch: Batch) -> None:
        model = batch.options.model
        limits = self._budgets[model]
        padded_sec = min(limits.max_padded_sec, batch.padded_sec / 2)
        self._budgets[model] = dataclasses.replace(limits, max_padded_sec=padded_sec)
        log.warning(
            "out of memory with %.0f padded seconds; batches of %s are now limited to %.0f",
            batch.padded_sec,
            model,
            padded_sec,
        )

    def _lose(self, error: DeviceLost) -> None:
        self.lost = error
        self._scheduler.remove_runner(self, error)


def _deliver_outputs(group: Sequence[QueuedPiece], outputs: Sequence[Output], started: float, took_sec: float) -> None:
    """Deliver each output, and share out the batch's seconds by duration."""
    total_sec = sum(queued.piece.duration_sec for queued in group) or 1.0
    for queued, output in zip(group, outputs, strict=True):
        share_sec = took_sec * queued.piece.duration_sec / total_sec
        queued.deliver(PieceResult(output, started - queued.since, share_sec))
