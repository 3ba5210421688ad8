"""The pieces that wait for a device, and the order in which models and pieces are served. No lock, no device.

    put(queued)       a new piece
    put_back(group)   pieces that a lost device did not finish: they go before all others
    by_model()        the pieces of each model, the model to serve first in front
    pop…              takes pieces out

Interactive pieces go before those of the background, which still get a batch every BACKGROUND_SEC.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from worker.audio.ingest import BACKGROUND_SEC
from worker.errors import AviaryError
from worker.types import Batch, Output, Piece

log = logging.getLogger(__name__)


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


class PieceQueue:
    """The pieces that wait, in the order in which they came. Not thread-safe: the scheduler's lock protects it."""

    def __init__(self) -> None:
        self._queued: dict[Piece, QueuedPiece] = {}
        self._background_at = 0.0  # when the background last got a batch, on time.monotonic()

    def __len__(self) -> int:
        return len(self._queued)

    def put(self, queued: QueuedPiece) -> None:
        """Append a piece."""
        self._queued[queued.piece] = queued

    def put_back(self, group: Iterable[QueuedPiece]) -> None:
        """Put pieces before all others."""
        self._queued = {**{queued.piece: queued for queued in group}, **self._queued}

    def by_model(self) -> list[tuple[str, list[QueuedPiece]]]:
        """Return the pieces of each model, by its id, in the order in which the models are to be served.

        The pieces of the background are left out of a model that has others, unless a batch of theirs is due.
        """
        models: dict[str, list[QueuedPiece]] = {}
        for queued in self._queued.values():
            models.setdefault(queued.piece.options.model, []).append(queued)
        background_is_due = time.monotonic() - self._background_at > BACKGROUND_SEC
        if not background_is_due:
            models = {model: _interactive(group) or group for model, group in models.items()}

        def rank(group: list[QueuedPiece]) -> tuple[bool, float]:
            return min((queued.piece.background and not background_is_due, queued.piece.order) for queued in group)

        return sorted(models.items(), key=lambda entry: rank(entry[1]))

    def pop(self, pieces: Iterable[Piece]) -> list[QueuedPiece]:
        """Take these pieces out."""
        return [self._queued.pop(piece) for piece in pieces]

    def pop_batch(self, batch: Batch) -> list[QueuedPiece]:
        """Take out the pieces of a batch that is to run now."""
        if batch.pieces[0].background:
            self._background_at = time.monotonic()
        return self.pop(batch.pieces)

    def pop_cancelled(self) -> list[QueuedPiece]:
        """Take out the pieces whose request was canceled."""
        return self.pop([piece for piece in self._queued if piece.cancelled()])

    def pop_all(self) -> list[QueuedPiece]:
        """Take out all pieces."""
        return self.pop(list(self._queued))


def _interactive(group: Iterable[QueuedPiece]) -> list[QueuedPiece]:
    return [queued for queued in group if not queued.piece.background]
