"""Pieces → batches: pure functions, without a clock or a device.

A batch holds one kind of work: equal `Options.kind`, and either only interactive pieces or only pieces of the
background. Pieces are sorted by duration, so that a piece shares its batch with pieces of similar length. A batch holds
up to `max_items` pieces and `max_padded_sec` seconds *counted with padding*: the longest piece times their number is
what the device computes and what its memory must hold. Long pieces run alone.

`next_batch` always serves the waiting piece of the lowest order first, so that no piece starves. The rest of its batch
are the pieces next to it by duration, from all requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from worker.config import Settings
from worker.types import Batch, Piece


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch may hold."""

    max_items: int
    """The most pieces."""
    max_padded_sec: float
    """The most seconds, counted with padding."""
    long_sec: float
    """Pieces that are longer, in seconds, run alone."""
    max_waste_sec: float = 100.0
    """The most seconds of padding: more would cost the device more than a further batch."""

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the limits that the settings give, before the device and the model lower them."""
        total = settings.batch_max_total_sec
        return cls(
            settings.batch_max_items, total, min(settings.short_max_sec, settings.local_attention_after_sec, total)
        )


def is_long(piece: Piece, limits: Limits) -> bool:
    """Whether the piece runs alone."""
    return piece.duration_sec > limits.long_sec


def plan(pieces: Sequence[Piece], limits: Limits) -> list[Batch]:
    """Return batches that hold every piece exactly once, each within the limits and of one kind of work."""
    batches: list[Batch] = []
    kinds: dict[object, list[Piece]] = {}
    for piece in pieces:
        if is_long(piece, limits):
            batches.append(Batch((piece,), long=True))
        else:
            kinds.setdefault(_kind(piece), []).append(piece)
    for kind in kinds.values():
        batches += _pack(sorted(kind, key=lambda piece: piece.duration_sec, reverse=True), limits)
    return batches


def next_batch(waiting: Sequence[Piece], limits: Limits) -> Batch:
    """Return the batch that holds the waiting piece of the lowest order. `waiting` must not be empty."""
    first = min(waiting, key=lambda piece: piece.order)
    if is_long(first, limits):
        return Batch((first,), long=True)
    kind = _kind(first)
    same = [piece for piece in waiting if _kind(piece) == kind and not is_long(piece, limits)]
    return next(batch for batch in plan(same, limits) if first in batch.pieces)


def is_full(batch: Batch, limits: Limits) -> bool:
    """Whether the batch cannot hold another piece like its own."""
    longest = max(piece.duration_sec for piece in batch.pieces)
    return batch.long or len(batch.pieces) >= limits.max_items or batch.padded_sec + longest > limits.max_padded_sec


def _kind(piece: Piece) -> tuple[object, bool]:
    return piece.options.kind, piece.background


def _pack(longest_first: Sequence[Piece], limits: Limits) -> list[Batch]:
    """Fill one batch after another, and start a new one where the next piece would break a limit."""
    batches: list[Batch] = []
    group: list[Piece] = []
    waste_sec = 0.0
    for piece in longest_first:
        if group:
            longest = group[0].duration_sec
            waste_sec += longest - piece.duration_sec
            if (
                len(group) == limits.max_items
                or (len(group) + 1) * longest > limits.max_padded_sec
                or waste_sec > limits.max_waste_sec
            ):
                batches.append(Batch(tuple(group)))
                group, waste_sec = [], 0.0
        group.append(piece)
    if group:
        batches.append(Batch(tuple(group)))
    return batches
