"""Clips → Batches: pure functions, no clock, no device.

A batch holds one kind of work (equal `Options.kind`, all or none of the background). Clips are sorted by length, so
that neighbours pad each other little, and packed up to `max_items` clips and `max_padded_sec` seconds *counted with
padding*: the
longest clip times their number is what the device computes and what its memory must hold. Long clips run alone.

`next_batch` serves the waiting piece of the lowest order first, whatever else is waiting, so that nobody starves; its
neighbours are those that sorting puts beside it, from whichever requests they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from worker.config import Settings
from worker.types import Batch, Piece


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch may hold. `long_sec`: clips longer than this run alone. `max_waste_sec`: padding that one more
    batch would cost less than, which depends on the device."""

    max_items: int
    max_padded_sec: float
    long_sec: float
    max_waste_sec: float = 100.0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        total = settings.batch_max_total_sec
        return cls(
            settings.batch_max_items, total, min(settings.short_max_sec, settings.local_attention_after_sec, total)
        )


def is_long(piece: Piece, limits: Limits) -> bool:
    return piece.duration_sec > limits.long_sec


def plan(pieces: Sequence[Piece], limits: Limits) -> list[Batch]:
    """Every piece in exactly one batch, each batch within the limits and of one kind of work."""
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
    """The batch that holds the waiting piece of the lowest order. `waiting` must not be empty."""
    first = min(waiting, key=lambda piece: piece.order)
    if is_long(first, limits):
        return Batch((first,), long=True)
    kind = _kind(first)
    same = [piece for piece in waiting if _kind(piece) == kind and not is_long(piece, limits)]
    return next(batch for batch in plan(same, limits) if first in batch.pieces)


def is_full(batch: Batch, limits: Limits) -> bool:
    """Whether waiting for more pieces could not make the batch any larger."""
    longest = max(piece.duration_sec for piece in batch.pieces)
    return batch.long or len(batch.pieces) >= limits.max_items or batch.padded_sec + longest > limits.max_padded_sec


def _kind(piece: Piece) -> tuple[object, bool]:
    return piece.options.kind, piece.background


def _pack(longest_first: Sequence[Piece], limits: Limits) -> list[Batch]:
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
