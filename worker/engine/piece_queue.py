"""The pieces that wait for a device, and the order in which they are served. No lock, no device.

    put(queued)         a new piece
    put_back(group)     pieces that a lost device did not finish
    groups()            the pieces that may share batches by model, those to serve first in front
    pop_batch(batch)    takes out what runs now
    end(pieces, …)      what ran has ended
    pop…                takes pieces out otherwise

Requests and their owners take turns; see worker.engine.turns. Interactive pieces go before those of the background.
While interactive pieces wait, the background gets one batch at a time. Its next batch is due when it has waited for
BACKGROUND_SEC, counted from the end of the last one, and has had BACKGROUND_SHARE of the time since that one began.
Interactive requests for which nothing has run yet go before a batch that is due, by BACKGROUND_SEC at most.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from worker.audio.ingest import BACKGROUND_SEC
from worker.engine.turns import FairShare
from worker.errors import AviaryError
from worker.types import Batch, Output, Piece, Turn

log = logging.getLogger(__name__)

BACKGROUND_SHARE = 1 / 20  # of one device's time, while interactive requests wait


class PieceResult(NamedTuple):
    """The output of a piece and its share of the request's time."""

    output: Output
    queue_sec: float
    """Seconds that the piece waited for the device."""
    model_sec: float
    """The piece's share of the seconds that its batch ran, by duration."""


OnOutcome = Callable[[PieceResult | AviaryError], None]


@dataclasses.dataclass(slots=True, eq=False)
class QueuedPiece:
    """A piece that waits for a device or runs on it."""

    piece: Piece
    on_outcome: OnOutcome
    """Called exactly once, with the result or the error, on the thread that has it."""
    since: float
    """When the piece was queued, on time.monotonic()."""
    suspect: bool = False
    """Whether a device was lost that was running the piece."""

    def deliver(self, outcome: PieceResult | AviaryError) -> None:
        """Call `on_outcome`. Its exceptions are logged: they must not end the thread of a device."""
        try:
            self.on_outcome(outcome)
        except Exception:
            log.exception("the outcome of a piece could not be delivered")


def deliver_all(group: Iterable[QueuedPiece], error: AviaryError) -> None:
    """Deliver the error to each piece."""
    for queued in group:
        queued.deliver(error)


class Group(NamedTuple):
    """The pieces of one model that wait, either all interactive or all of the background."""

    model: str
    pieces: list[QueuedPiece]
    """The pieces, in the order in which they came."""
    first: Piece
    """The piece whose turn it is."""


class PieceQueue:
    """The pieces that wait, in the order in which they came. Not thread-safe: the scheduler's lock protects it.

    clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._queued: dict[Piece, QueuedPiece] = {}
        self._shares = {False: FairShare(), True: FairShare()}  # of the interactive pieces, and of the background's
        self._background_runs = 0  # batches
        self._background_due_at = 0.0

    def __len__(self) -> int:
        return len(self._queued)

    def put(self, queued: QueuedPiece) -> None:
        """Append a piece."""
        self._queued[queued.piece] = queued
        self._shares[queued.piece.background].enter(queued.piece.turn)

    def put_back(self, group: Iterable[QueuedPiece]) -> None:
        """Put pieces before all others."""
        others, self._queued = self._queued, {}
        for queued in group:
            self.put(queued)
        self._queued |= others

    def groups(self) -> list[Group]:
        """Return what waits, grouped, in the order in which the groups are to be served.

        The background's pieces of a model that has interactive ones are left out, unless their batch is due.
        """
        for share in self._shares.values():
            share.settle()
        by_class: dict[tuple[bool, str], list[QueuedPiece]] = {}
        for queued in self._queued.values():
            by_class.setdefault((queued.piece.background, queued.piece.options.model), []).append(queued)
        background_first = self._background_is_next()
        if not background_first:
            by_class = {key: group for key, group in by_class.items() if not key[0] or (False, key[1]) not in by_class}
        groups = [Group(model, pieces, self._first(pieces)) for (_, model), pieces in by_class.items()]
        return sorted(
            groups, key=lambda group: (group.first.background is not background_first, self._place(group.first))
        )

    def is_new(self, piece: Piece) -> bool:
        """Whether nothing has run for the request of a piece that waits, whose owner is not ahead of its share."""
        return self._shares[piece.background].is_new(piece.turn)

    def pop(self, pieces: Iterable[Piece]) -> list[QueuedPiece]:
        """Take these pieces out."""
        popped = [self._queued.pop(piece) for piece in pieces]
        for queued in popped:
            self._shares[queued.piece.background].leave(queued.piece.turn)
        return popped

    def pop_batch(self, batch: Batch) -> list[QueuedPiece]:
        """Take out the pieces of a batch that is to run now. `end` must follow."""
        group = self.pop(batch.pieces)
        for piece in batch.pieces:
            self._shares[piece.background].charge(piece.turn, piece.duration_sec)
        self._background_runs += batch.pieces[0].background
        return group

    def end(self, pieces: Sequence[Piece], took_sec: float) -> None:
        """Note that a batch has ended, and how long it ran."""
        background = pieces[0].background
        self._shares[background].end((piece.turn, piece.duration_sec) for piece in pieces)
        if background:
            self._background_runs -= 1
            pause_sec = max(BACKGROUND_SEC, took_sec * (1 / BACKGROUND_SHARE - 1))
            self._background_due_at = self._clock() + pause_sec

    def pop_cancelled(self) -> list[QueuedPiece]:
        """Take out the pieces whose request was canceled."""
        return self.pop([piece for piece in self._queued if piece.cancelled()])

    def pop_all(self) -> list[QueuedPiece]:
        """Take out all pieces."""
        return self.pop(list(self._queued))

    def _background_is_next(self) -> bool:
        late_sec = self._clock() - self._background_due_at
        if self._background_runs or late_sec < 0:
            return False
        return late_sec >= BACKGROUND_SEC or not any(
            self._shares[False].is_new(piece.turn) for piece in self._queued if not piece.background
        )

    def _first(self, group: Iterable[QueuedPiece]) -> Piece:
        of_requests: dict[Turn, Piece] = {}
        for queued in group:
            piece = queued.piece
            if of_requests.setdefault(piece.turn, piece).order > piece.order:
                of_requests[piece.turn] = piece
        return min(of_requests.values(), key=self._place)

    def _place(self, piece: Piece) -> tuple[object, float]:
        return self._shares[piece.background].place(piece.turn), piece.order
