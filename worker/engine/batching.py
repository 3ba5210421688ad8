"""Pieces → batches: pure functions, without a clock or a device.

A batch holds one kind of work: equal `Options.kind`, either only interactive pieces or only pieces of the background,
and either only pieces of live audio or none. Pieces are sorted by duration, so that a piece shares its batch with
pieces of similar length. A batch holds up to `max_items` pieces and `max_padded_sec` seconds *counted with padding*:
the longest piece times their number is what the device computes and what its memory must hold. Long pieces run alone.

A batch is expected to run for `target_sec` at most, so that the next request does not wait for long. There are two
exceptions. If a batch takes long to start, it may run for EFFICIENT times as long as that: shorter batches would do
little but start. If one piece alone takes longer, the batch may run longer than that piece by what it costs to start
another batch.

`next_batch` serves the piece whose turn it is. The rest of its batch are the pieces next to it by duration, from all
requests. `turn_batch` leaves out those that would delay it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.config import Settings
from worker.engine.batch_cost import FREE, BatchCost
from worker.types import Batch, Piece

EFFICIENT = 4  # the start of a batch then takes a quarter of its time at most
DELAY = 1.25  # a batch may run this much longer because of pieces whose turn it is not


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
    target_sec: float = math.inf
    """How long a batch may be expected to run, unless one piece takes longer."""
    cost: BatchCost = FREE
    """What a batch costs on the device."""

    def allow(self, count: int, longest_sec: float) -> bool:
        """Return whether a batch may hold so many pieces of which the longest has so many seconds."""
        return (
            count <= self.max_items
            and count * longest_sec <= self.max_padded_sec
            and self.cost.of(count, longest_sec)
            <= max(
                self.target_sec,
                EFFICIENT * self.cost.overhead_sec,
                self.cost.of(1, longest_sec) + self.cost.overhead_sec,
            )
        )

    def cost_of(self, batch: Batch) -> float:
        """Return the seconds that a batch is expected to run."""
        return self.cost.of(len(batch.pieces), _longest_sec(batch))

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return the limits that the settings give, before the device and the model lower them."""
        total = settings.batch_max_total_sec
        local_after_sec = settings.local_attention_after_sec or math.inf
        return cls(settings.batch_max_items, total, min(settings.short_max_sec, local_after_sec, total))


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


def next_batch(waiting: Sequence[Piece], limits: Limits, first: Piece | None = None) -> Batch:
    """Return the batch that holds `first`, one of the waiting pieces; by default that of the lowest order.

    `waiting` must not be empty.
    """
    if first is None:
        first = min(waiting, key=lambda piece: piece.order)
    if is_long(first, limits):
        return Batch((first,), long=True)
    kind = _kind(first)
    same = [piece for piece in waiting if _kind(piece) == kind and not is_long(piece, limits)]
    return next(batch for batch in plan(same, limits) if first in batch.pieces)


def turn_batch(waiting: Sequence[Piece], limits: Limits, first: Piece, is_new: Callable[[Piece], bool]) -> Batch:
    """Return the batch that holds `first`, without pieces that would delay the end of its request.

    is_new: whether the request of a piece is new, so that it may share every batch. Pieces of other requests fill the
    batch if it then runs little longer, or if more of the request of `first` waits than the batch can hold.
    """
    batch = next_batch(waiting, limits, first)
    if first.background or all(map(is_new, batch.pieces)):
        return batch
    prompt = next_batch([piece for piece in waiting if is_new(piece) or piece.turn == first.turn], limits, first)
    of_request = sum(piece.turn == first.turn for piece in waiting)
    is_last = sum(piece.turn == first.turn for piece in prompt.pieces) == of_request
    return prompt if is_last and limits.cost_of(batch) > DELAY * limits.cost_of(prompt) else batch


def is_full(batch: Batch, limits: Limits) -> bool:
    """Whether the batch cannot hold another piece like its own."""
    return batch.long or not limits.allow(len(batch.pieces) + 1, _longest_sec(batch))


def _longest_sec(batch: Batch) -> float:
    return max(piece.duration_sec for piece in batch.pieces)


def _kind(piece: Piece) -> tuple[object, bool, bool]:
    return piece.options.kind, piece.background, piece.live is not None


def _pack(longest_first: Sequence[Piece], limits: Limits) -> list[Batch]:
    """Fill one batch after another, and start a new one where the next piece would break a limit."""
    batches: list[Batch] = []
    group: list[Piece] = []
    waste_sec = 0.0
    for piece in longest_first:
        if group:
            longest = group[0].duration_sec
            waste_sec += longest - piece.duration_sec
            if not limits.allow(len(group) + 1, longest) or waste_sec > limits.max_waste_sec:
                batches.append(Batch(tuple(group)))
                group, waste_sec = [], 0.0
        group.append(piece)
    if group:
        batches.append(Batch(tuple(group)))
    return batches
