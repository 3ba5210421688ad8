"""How long a batch will run: learned from the batches of one model that ran on one device. No clock.

    seconds = overhead_sec + rate x padded seconds of audio

The slope is that of Theil and Sen, the median over all pairs of batches, which a few slow batches do not move. While
the batches are of nearly one length, which leaves the slope open, the backend's own overhead, in seconds of audio,
takes its place. The libraries warm up in the first batch, which counts only until there is another. Before any batch
has run, a batch is expected to run for the target if it holds FIRST_SEC of audio.
"""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from dataclasses import dataclass

from worker.types import Batch

MEMORY = 24  # batches
LINE_OF = 4  # batches: a line through fewer of them says little
SPREAD = 1.5  # the longest batch by the shortest, for the slope to be known
FIRST_SEC = 60.0
FIRST_ALONE_SEC = 1.0  # FIRST_SEC of a backend whose batches cost as much as their pieces one by one
SHORTEST_SEC = 0.01  # of audio, so that no batch counts as empty


@dataclass(frozen=True, slots=True)
class BatchCost:
    """What a batch costs. The default costs nothing."""

    overhead_sec: float = 0.0
    """Seconds to start a batch."""
    rate: float = 0.0
    """Seconds for each second of audio, padding included."""
    least_sec: float = 0.0
    """The model pads every piece to this length, in seconds of audio."""

    def of(self, count: int, longest_sec: float) -> float:
        """Return the seconds for `count` pieces of which the longest has `longest_sec` seconds of audio."""
        return self.overhead_sec + self.rate * count * max(longest_sec, self.least_sec)


FREE = BatchCost()


class CostEstimate:
    """The cost of the batches of a model on a device.

    overhead_sec, least_sec: those of the backend, in seconds of audio.
    target_sec: how long a batch should run at most.
    """

    def __init__(self, overhead_sec: float, least_sec: float, target_sec: float) -> None:
        self._overhead, self._least = overhead_sec, least_sec
        self._batches: deque[tuple[float, float]] = deque(maxlen=MEMORY)  # padded seconds of audio, seconds
        self._count = 0
        self.cost = BatchCost(0.0, target_sec / (FIRST_SEC if overhead_sec else FIRST_ALONE_SEC), least_sec)

    def add(self, batch: Batch, took_sec: float) -> None:
        """Learn from a batch that ran."""
        if self._count == 1:
            self._batches.clear()
        self._count += 1
        longest = max(piece.duration_sec for piece in batch.pieces)
        self._batches.append((len(batch.pieces) * max(longest, self._least, SHORTEST_SEC), took_sec))
        self.cost = self._line() or self._through_the_origin()

    def _line(self) -> BatchCost | None:
        """Return the cost by the slope of Theil and Sen, or None if the batches do not show it."""
        lengths = [length for length, _ in self._batches]
        if len(lengths) < LINE_OF or max(lengths) < SPREAD * min(lengths):
            return None
        pairs = itertools.combinations(self._batches, 2)
        rate = statistics.median((b - a) / (y - x) for (x, a), (y, b) in pairs if x != y)
        overhead_sec = statistics.median(took - rate * length for length, took in self._batches)
        return BatchCost(overhead_sec, rate, self._least) if rate > 0 and overhead_sec >= 0 else None

    def _through_the_origin(self) -> BatchCost:
        """Return the cost if a batch starts in the time of `overhead_sec` seconds of audio."""
        rate = statistics.median(took / (self._overhead + length) for length, took in self._batches)
        return BatchCost(rate * self._overhead, rate, self._least)
