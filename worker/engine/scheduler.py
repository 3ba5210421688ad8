"""Which batch a free device runs next: one scheduler for all runners.

    submit(piece, on_outcome)      queues a piece
    next_assignment(runner)        the runner's next batch, with its model acquired on the runner's device
    end(group, took_sec)           the batch has ended
    requeue(group)                 takes back the pieces that a lost device did not finish
    remove_runner(runner, error)   takes a lost device out of service

Requests take turns; see worker.engine.piece_queue. While more pieces are about to be submitted, a batch waits to be
filled, for `wait_sec` at most. Otherwise the idle runners share the pieces that wait, in parts that are each worth a
batch.

Pieces that a lost device was running are returned to the queue once. Returned pieces run alone, so one that crashes
devices takes no others down with it; after its second crash it fails. When the last runner is removed, `lost` says
why, and all pieces fail. A model that does not load on one device is left to the other devices; its pieces fail if it
loads on none.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from worker.backends.base import Backend
from worker.engine.batching import Limits, is_full, turn_batch
from worker.engine.model_manager import ModelManager
from worker.engine.piece_queue import Group, OnOutcome, PieceQueue, QueuedPiece, deliver_all
from worker.errors import AviaryError, Cancelled, DeviceLost
from worker.types import Batch, Piece, Task

log = logging.getLogger(__name__)


class Assignment(NamedTuple):
    """What a runner does next."""

    group: list[QueuedPiece]
    model: Backend | AviaryError
    """The acquired model to run the pieces on, to be released afterward; or the error that the pieces fail with."""


class DeviceRunner(Protocol):
    """A runner, as the scheduler uses it."""

    models: ModelManager
    name: str

    def limits(self, model: str, backend: Backend, task: Task) -> Limits:
        """Return what a batch of the model, for one task, may hold on the runner's device."""
        ...


class Scheduler:
    """The queue of pieces, and the runners that take batches from it. Thread-safe.

    wait_sec: the longest time that a batch waits for more pieces.
    incoming: returns how many pieces, of the background (True) or interactive (False), are about to be submitted.
    clock: returns the time in seconds.
    """

    def __init__(
        self,
        *,
        wait_sec: float = 0.05,
        incoming: Callable[[bool], int] = lambda background: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wait_sec, self._incoming, self._clock = wait_sec, incoming, clock
        self._queue = PieceQueue(clock)
        self._changed = threading.Condition()
        self._runners: list[DeviceRunner] = []
        self._idle: list[DeviceRunner] = []  # the runners that wait for an assignment
        self._refusals = _Refusals()
        self.closed = False
        self.lost: DeviceLost | None = None

    def __len__(self) -> int:
        """Return how many pieces wait."""
        return len(self._queue)

    def add_runner(self, runner: DeviceRunner) -> None:
        """Add a runner. All runners are added before the first asks for an assignment."""
        self._runners.append(runner)

    def submit(self, piece: Piece, on_outcome: OnOutcome) -> None:
        """Queue a piece. `on_outcome` is called once, with its result or an error, on the thread that has it."""
        queued = QueuedPiece(piece, on_outcome, self._clock())
        with self._changed:
            is_open = self.lost is None and not self.closed
            if is_open:
                self._queue.put(queued)
                self._changed.notify_all()
        if not is_open:
            queued.deliver(self.lost or Cancelled("the worker is shutting down"))

    def wake(self) -> None:
        """Wake the runners that wait: fewer pieces are incoming, a request was canceled, or a model is loaded."""
        with self._changed:
            self._changed.notify_all()

    def next_assignment(self, runner: DeviceRunner, pause: float | None) -> Assignment | None:
        """Return what the runner does next.

        If there is nothing to do, wait for a change, `pause` seconds at most (None: without a limit), and return None.
        """
        with self._changed:
            cancelled = self._queue.pop_cancelled()
            if cancelled:
                return Assignment(cancelled, Cancelled("the request was canceled"))
            fills_up = False  # an interactive batch, which must not wait for one of the background
            for group in self._queue.groups():
                if fills_up and group.first.background:
                    continue
                try:
                    backend = runner.models.acquire(group.model)
                except AviaryError as error:
                    if self._refused_by_all(group.model, runner, error):
                        return Assignment(self._pop(group.pieces), error.with_traceback(None))
                    continue
                if backend is None:
                    continue
                assignment, patience_sec = self._assign(runner, backend, group)
                if assignment is not None:
                    return assignment
                pause = patience_sec if pause is None else min(pause, patience_sec)
                fills_up = fills_up or not group.first.background
            if not self.closed and self.lost is None and not runner.models.has_work:
                self._idle.append(runner)
                self._changed.wait(pause)
                self._idle.remove(runner)
        return None

    def end(self, group: Sequence[QueuedPiece], took_sec: float) -> None:
        """Note that the batch of an assignment has ended, and how long it ran."""
        with self._changed:
            self._queue.end([queued.piece for queued in group], took_sec)

    def requeue(self, group: Sequence[QueuedPiece], *, ran: bool) -> list[QueuedPiece]:
        """Take back the pieces that a lost device did not finish, and return those that must fail.

        `ran`: whether the device was running the pieces. Of those, a piece that was running on another lost device
        before must fail. All pieces must fail if no runner is left.
        """
        with self._changed:
            if self.lost is not None or self.closed:
                return list(group)
            failing = [queued for queued in group if ran and queued.suspect]
            again = [queued for queued in group if not (ran and queued.suspect)]
            for queued in again:
                queued.suspect = queued.suspect or ran
            self._queue.put_back(again)
            self._changed.notify_all()
        return failing

    def remove_runner(self, runner: DeviceRunner, error: DeviceLost) -> None:
        """Take a runner out of service whose device is lost."""
        with self._changed:
            self._runners.remove(runner)
            if not self._runners:
                self.lost = error
            self._changed.notify_all()
        log.error("device %s is lost; %d left", runner.name, len(self._runners), exc_info=error.__cause__ or error)
        if self.lost is not None:
            self.fail_all(error)

    def fail_all(self, error: AviaryError) -> None:
        """Deliver the error to all pieces that wait."""
        with self._changed:
            group = self._queue.pop_all()
        deliver_all(group, error)

    def close(self) -> None:
        """Stop: no piece is assigned any more, and those that wait fail with Cancelled."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        self.fail_all(Cancelled("the worker is shutting down"))

    def _assign(self, runner: DeviceRunner, backend: Backend, group: Group) -> tuple[Assignment | None, float]:
        """Return the assignment of a batch out of the group; or None, and the seconds that it may still wait.

        The model of the group is acquired, and is released here if there is no assignment.
        """
        assignment = None
        try:
            limits = runner.limits(group.model, backend, group.first.options.task)
            batch, patience_sec = self._next_batch(runner, group, limits)
            if batch is not None:
                self._refusals.remove(group.model, runner)
                assignment = Assignment(self._queue.pop_batch(batch), backend)
                if self._queue and self._idle:
                    self._changed.notify_all()
            return assignment, patience_sec
        finally:
            if assignment is None:
                runner.models.release(group.model)

    def _next_batch(self, runner: DeviceRunner, group: Group, limits: Limits) -> tuple[Batch | None, float]:
        """Return the batch to run now; or None, and the seconds that it may still wait to be filled."""
        suspect = next((queued.piece for queued in group.pieces if queued.suspect), None)
        if suspect is not None:
            return Batch((suspect,)), 0.0
        pieces = [queued.piece for queued in group.pieces]
        batch = turn_batch(pieces, limits, group.first, self._queue.is_new)
        patience_sec = group.pieces[0].since + self._wait_sec - self._clock()
        if self._incoming(group.first.background):
            return (batch if patience_sec <= 0 or is_full(batch, limits) else None), patience_sec
        sharers = self._idle_runners_with(group.model, besides=runner)
        if not sharers:
            return batch, patience_sec
        share_sec = sum(piece.duration_sec for piece in pieces) / (1 + len(sharers))
        share = min(max(share_sec, limits.max_waste_sec), limits.max_padded_sec)
        limits = dataclasses.replace(limits, max_padded_sec=share)
        return turn_batch(pieces, limits, group.first, self._queue.is_new), patience_sec

    def _idle_runners_with(self, model: str, *, besides: DeviceRunner) -> list[DeviceRunner]:
        return [runner for runner in self._idle if runner is not besides and runner.models.is_ready(model)]

    def _refused_by_all(self, model: str, runner: DeviceRunner, error: AviaryError) -> bool:
        """Record that the model does not load on the runner's device. Return whether it loads on no device."""
        is_new = self._refusals.add(model, runner)
        if is_new and len(self._runners) > 1:
            log.warning("device %s cannot load %s: %s", runner.name, model, error.message)
        return self._refusals.are_complete(model, self._runners)

    def _pop(self, group: Sequence[QueuedPiece]) -> list[QueuedPiece]:
        return self._queue.pop(queued.piece for queued in group)


class _Refusals:
    """Which models do not load on which devices."""

    def __init__(self) -> None:
        self._runners: dict[str, set[DeviceRunner]] = {}

    def add(self, model: str, runner: DeviceRunner) -> bool:
        """Record a refusal. Return whether it is new."""
        runners = self._runners.setdefault(model, set())
        is_new = runner not in runners
        runners.add(runner)
        return is_new

    def remove(self, model: str, runner: DeviceRunner) -> None:
        """Forget a refusal: the model has loaded."""
        self._runners.get(model, set()).discard(runner)

    def are_complete(self, model: str, runners: Collection[DeviceRunner]) -> bool:
        """Return whether all runners refuse the model; its refusals are then forgotten, as it may be loaded again."""
        if self._runners[model].issuperset(runners):
            del self._runners[model]
            return True
        return False
