"""What waits for the devices, and which of it a free one is given: one pool, however many lanes take from it.

`put(piece, deliver)` queues a piece; `take(lane)` gives a lane its next batch, with the model that it has claimed on
its
device. What somebody waits for goes before the background, which still has a batch every BACKGROUND_SEC. While more is
coming a batch waits to be filled; when nothing is, lanes that are idle share what is there, in parts that are worth a
batch of their own.

A lane whose device is lost gives back what it was running, once: what comes back runs alone, so that a piece which
takes
devices with it takes no other piece, and after the second device it fails. When the last lane has left, `lost` says
why, and
everything fails. A model that cannot be loaded on one device is left to the others; pieces fail with it when no lane
has it.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from worker.backends.base import Backend
from worker.engine.batching import Limits, is_full, next_batch
from worker.engine.model_manager import ModelManager
from worker.errors import AviaryError, Cancelled, DeviceLost
from worker.types import Batch, Output, Piece

log = logging.getLogger(__name__)

BACKGROUND_SEC = 5.0  # the background waits for all that somebody waits for, but its next batch no longer than so


class PieceResult(NamedTuple):
    """What came of a piece: the output, how long the piece waited for the device, its share of the device's time."""

    output: Output
    queue_sec: float
    model_sec: float


Deliver = Callable[[PieceResult | AviaryError], None]


@dataclasses.dataclass(slots=True, eq=False)
class QueuedPiece:
    """A piece, since when it waits, and whether a device was lost that was running it."""

    piece: Piece
    deliver: Deliver
    since: float
    suspect: bool = False


class Assignment(NamedTuple):
    """Pieces to run with the claimed model, to be released then, or to be answered with an error."""

    group: list[QueuedPiece]
    model: Backend | AviaryError


class DeviceRunner(Protocol):
    """A lane, as the pool sees it."""

    models: ModelManager
    name: str

    def limits(self, model: str, backend: Backend) -> Limits: ...


class Scheduler:
    """`coming` tells how many pieces, of the background or not of it, are about to be put; a batch waits `wait_sec`
    for them at most. Thread-safe."""

    def __init__(self, *, wait_sec: float = 0.05, coming: Callable[[bool], int] = lambda background: 0) -> None:
        self._wait_sec, self._coming = wait_sec, coming
        self._waiting: dict[Piece, QueuedPiece] = {}
        self._changed = threading.Condition()
        self._runners: list[DeviceRunner] = []
        self._idle: list[DeviceRunner] = []  # those that wait for something to do
        self._without: dict[str, set[DeviceRunner]] = {}  # who could not load a model
        self._background_at = 0.0  # when a batch of the background was last taken
        self.closed = False
        self.lost: DeviceLost | None = None

    def add_runner(self, runner: DeviceRunner) -> None:
        """All that share the work join before any begins to take."""
        self._runners.append(runner)

    def submit(self, piece: Piece, deliver: Deliver) -> None:
        """`deliver(outcome)` is called exactly once, with a Done or an error, on the thread that has it."""
        with self._changed:
            if self.lost is None and not self.closed:
                self._waiting[piece] = QueuedPiece(piece, deliver, time.monotonic())
                self._changed.notify_all()
                return
        deliver(self.lost or Cancelled("the worker is shutting down"))

    def __len__(self) -> int:
        """How many pieces wait."""
        return len(self._waiting)

    def nudge(self) -> None:
        """Something the gathering depends on has changed: fewer pieces are coming, one was cancelled, a model is
        loaded."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more is taken; what waits is delivered as cancelled."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        self.abandon(Cancelled("the worker is shutting down"))

    def next_assignment(self, runner: DeviceRunner, pause: float | None) -> Assignment | None:
        """What this lane is to do next; if there is nothing, waits for a change, `pause` seconds at most."""
        with self._changed:
            gone = self._pop(piece for piece in list(self._waiting) if piece.cancelled())
            if gone:
                return Assignment(gone, Cancelled("cancelled"))
            for model, own in self._groups():
                try:
                    backend = runner.models.acquire(model)
                except AviaryError as error:
                    if self._refused(runner, model, error):
                        return Assignment(self._pop(waiting.piece for waiting in own), error.with_traceback(None))
                    continue
                if backend is None:
                    continue
                try:
                    batch, patience = self._next(runner, own, runner.limits(model, backend))
                    if batch is not None:
                        return self._assign(runner, batch, backend)
                except BaseException:
                    runner.models.release(model)
                    raise
                runner.models.release(model)
                pause = patience if pause is None else min(pause, patience)
            if not self.closed and self.lost is None and not runner.models.has_work:
                self._idle.append(runner)
                self._changed.wait(pause)
                self._idle.remove(runner)
        return None

    def remove_runner(self, runner: DeviceRunner, error: DeviceLost) -> None:
        """The lane's device is lost."""
        with self._changed:
            self._runners.remove(runner)
            if not self._runners:
                self.lost = error
            self._changed.notify_all()
        log.error("device %s is lost, %d left: %r", runner.name, len(self._runners), error.__cause__)
        if self.lost is not None:
            self.abandon(error)

    def requeue(self, group: list[QueuedPiece], error: DeviceLost, *, ran: bool) -> list[QueuedPiece]:
        """Takes back what a lane that has left did not finish. Returns what is to fail with the error: what was running
        (`ran`) when it lost its second device, and everything where no lane is left."""
        with self._changed:
            if self.lost is not None or self.closed:
                return group
            again = {one.piece: one for one in group if not (ran and one.suspect)}
            for one in again.values():
                one.suspect |= ran
            self._waiting = {**again, **self._waiting}
            self._changed.notify_all()
        return [one for one in group if one.piece not in again]

    def abandon(self, error: AviaryError) -> None:
        """Answers all that waits with the error."""
        with self._changed:
            waiting, self._waiting = list(self._waiting.values()), {}
        deliver_all(waiting, error)

    def _groups(self) -> list[tuple[str, list[QueuedPiece]]]:
        """What waits by model, in the order in which the models are to be served."""
        models: dict[str, list[QueuedPiece]] = {}
        for waiting in self._waiting.values():
            models.setdefault(waiting.piece.options.model, []).append(waiting)
        aged = time.monotonic() - self._background_at > BACKGROUND_SEC
        groups = models.items() if aged else [(model, _waited_for(own) or own) for model, own in models.items()]
        return sorted(
            groups, key=lambda group: min((one.piece.background and not aged, one.piece.order) for one in group[1])
        )

    def _next(self, runner: DeviceRunner, own: list[QueuedPiece], limits: Limits) -> tuple[Batch | None, float]:
        """The batch to be run now, or None and for how many seconds it may still be filled."""
        suspect = next((one.piece for one in own if one.suspect), None)
        if suspect is not None:
            return Batch((suspect,)), 0.0
        pieces = [one.piece for one in own]
        batch = next_batch(pieces, limits)
        patience = own[0].since + self._wait_sec - time.monotonic()
        if self._coming(batch.pieces[0].background):
            return (batch if patience <= 0 or is_full(batch, limits) else None), patience
        model = batch.options.model
        sharing = 1 + sum(one is not runner and one.models.is_ready(model) for one in self._idle)
        if sharing == 1:
            return batch, patience
        share = max(sum(piece.duration_sec for piece in pieces) / sharing, limits.max_waste_sec)
        return next_batch(
            pieces, dataclasses.replace(limits, max_padded_sec=min(share, limits.max_padded_sec))
        ), patience

    def _assign(self, runner: DeviceRunner, batch: Batch, backend: Backend) -> Assignment:
        if batch.pieces[0].background:
            self._background_at = time.monotonic()
        self._without.get(batch.options.model, set()).discard(runner)
        group = self._pop(batch.pieces)
        if self._waiting and self._idle:
            self._changed.notify_all()
        return Assignment(group, backend)

    def _refused(self, runner: DeviceRunner, model: str, error: AviaryError) -> bool:
        """Notes that the model cannot be loaded for this lane; whether it cannot for any."""
        without = self._without.setdefault(model, set())
        if runner not in without and len(self._runners) > 1:
            log.warning("device %s goes without %s: %s", runner.name, model, error.message)
        without.add(runner)
        if without.issuperset(self._runners):
            del self._without[model]
            return True
        return False

    def _pop(self, pieces: Iterable[Piece]) -> list[QueuedPiece]:
        return [self._waiting.pop(piece) for piece in pieces]


def _waited_for(group: list[QueuedPiece]) -> list[QueuedPiece]:
    return [one for one in group if not one.piece.background]


def deliver_all(group: list[QueuedPiece], outcome: AviaryError) -> None:
    for waiting in group:
        deliver(waiting, outcome)


def deliver(waiting: QueuedPiece, outcome: PieceResult | AviaryError) -> None:
    try:
        waiting.deliver(outcome)
    except Exception:
        log.exception("a delivery failed")
