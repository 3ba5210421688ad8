"""The bound on decoded audio: how many seconds each queue holds, and whether it may decode more.

Seconds are held from the moment when decoding starts, as estimated, until the audio is no longer needed. All queues
together hold READ_AHEAD_SEC; a unit that starts below the bound may exceed it. No queue starves another one:

- A queue that holds nothing may always decode one unit, however long. Inputs that wait for a model to load therefore do
  not stop the inputs of other models.
- An interactive queue that would hold no more than a SHARE may exceed the bound, by a RESERVE for all queues together.
- While audio of interactive requests is held, the background holds no more than a batch, so that the cores work on
  interactive requests.

The length of a file may be unknown, and a hostile file becomes a thousand times its size. A unit that reaches its
estimate therefore asks for more seconds. If all queues together hold READ_AHEAD_SEC, only one unit of each queue gets
them, until that queue holds nothing. Every other unit must be decoded again when there is room for all that it may
become. All queues together therefore hold at most READ_AHEAD_SEC, the RESERVE, one file, and two files of each queue.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

from worker.config import Settings
from worker.types import SAMPLE_RATE

SHARE, RESERVE = 1 / 8, 1 / 4  # of the read-ahead
GUESS = 1 / 4  # of the read-ahead: the most seconds that a guess counts for
SLACK_SEC = 60.0  # decoded beyond the estimate without counting, so that a rough estimate does not interrupt decoding
GROWTH_SEC = 600.0  # by how much a unit that reaches its estimate extends it


class Queue(NamedTuple):
    """Units that share a read-ahead."""

    model: str
    """The id of the model."""
    background: bool


class NoRoomError(Exception):
    """The audio is longer than estimated, and there is no room for it."""


class Holding:
    """What one unit holds while it is decoded. `samples` is the estimate that it counts for."""

    def __init__(self, queue: Queue, samples: int) -> None:
        self.queue, self.samples = queue, samples
        self.may_exceed = False


class ReadAhead:
    """The decoded samples that are held. Not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._bound = settings.read_ahead_sec * SAMPLE_RATE
        self._background_bound = min(settings.read_ahead_sec, settings.batch_max_total_sec) * SAMPLE_RATE
        self.guess_max_sec = settings.read_ahead_sec * GUESS
        self._held: dict[Queue, int] = defaultdict(int)
        self._exceeding: set[Queue] = set()  # the queues of which one unit exceeds the bound, or did

    @property
    def samples(self) -> int:
        """The samples that all queues hold. May be called from any thread."""
        return sum(self._held.copy().values())

    def has_room(self, queue: Queue, samples: int) -> bool:
        """Return whether the queue may decode a unit of so many samples, by the rules in the module's docstring."""
        own = self._held.get(queue, 0)
        if not own:
            return True
        if queue.background and own >= self._background_bound and any(not other.background for other in self._held):
            return False
        total = self.samples
        if total < self._bound:
            return True
        is_reserve_left = total < self._bound * (1 + RESERVE)
        return not queue.background and is_reserve_left and own + samples <= self._bound * SHARE

    def add(self, queue: Queue, samples: int) -> None:
        """Count samples that the queue holds from now on, or, if negative, no longer holds."""
        self._held[queue] += samples
        if not self._held[queue]:
            del self._held[queue]  # the names of models must not accumulate
            self._exceeding.discard(queue)

    def extend(self, holding: Holding, samples: int) -> int:
        """Return up to how many samples a unit may be decoded that has reached `samples`. Raises NoRoomError."""
        slack = int(SLACK_SEC * SAMPLE_RATE)
        if samples > holding.samples + slack:
            if self.samples >= self._bound and not holding.may_exceed:
                if holding.queue in self._exceeding:
                    raise NoRoomError
                self._exceeding.add(holding.queue)
                holding.may_exceed = True
            growth = samples + math.ceil(GROWTH_SEC * SAMPLE_RATE) - holding.samples
            self.add(holding.queue, growth)
            holding.samples += growth
        return holding.samples + slack
