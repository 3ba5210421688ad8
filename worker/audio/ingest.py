"""Fetch and decode, ahead of the device: a few threads, a bound on the decoded seconds held, and turns between requests.

A Unit is one source to be opened and decoded once, however many inputs name it. Requests take turns, unit by unit, so
that a job of ten thousand files does not hold up one of a single file; those of the background take theirs BACKGROUND_SEC
later. Decoded seconds are held from the moment decoding begins (as the file's header or size foretells) until `release`;
while a queue (a model's, apart for the background) holds `read_ahead_sec`, nothing of it begins, so ten thousand inputs need
no more memory than a hundred, and what waits for a model to load holds up no other.
"""
from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from worker.audio.decode import Decoder, expected_sec
from worker.audio.fetch import Fetcher
from worker.config import Settings
from worker.errors import AviaryError, Cancelled, InternalError
from worker.types import Clip, Source

log = logging.getLogger(__name__)

BACKGROUND_SEC = 5.0     # what is in the background waits as if it had come so much later


class Queue(NamedTuple):
    """Whose read-ahead a unit counts in."""

    model: str
    background: bool


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A clip, and what it took. Whoever receives it must `release` it when the audio is no longer needed."""

    clip: Clip
    fetch_sec: float
    decode_sec: float


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One source to open and decode; `deliver` is called exactly once, on an ingest thread."""

    source: Source
    deliver: Callable[[Decoded | AviaryError], None]
    cancelled: Callable[[], bool]


@dataclass(slots=True, eq=False)
class _Turns:
    """One request's units. due: when its next turn is; the earliest of all goes first."""

    units: Iterator[Unit]
    queue: Queue
    due: float

    def take(self) -> Unit | None:
        self.due = time.monotonic() + self.queue.background * BACKGROUND_SEC
        return next(self.units, None)


class Ingest:
    """`delivered` is called whenever a unit has been delivered."""

    def __init__(self, settings: Settings, *, delivered: Callable[[], None] = lambda: None) -> None:
        self._fetcher, self._decoder = Fetcher(settings), Decoder(settings)
        self._read_ahead_sec, self._delivered = settings.read_ahead_sec, delivered
        self._turns: list[_Turns] = []
        self._held_sec: dict[Queue, float] = defaultdict(float)
        self._busy = 0
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._live, name=f"ingest-{i}", daemon=True)
                         for i in range(settings.decode_workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, units: Iterator[Unit], queue: Queue) -> None:
        """Queues the units of one request; each is made only when its turn comes."""
        with self._changed:
            if not self._closed:
                self._turns.append(_Turns(units, queue, time.monotonic() + queue.background * BACKGROUND_SEC))
                self._changed.notify_all()
                return
        _cancel(units)

    def coming(self) -> int:
        """How many units are being fetched and decoded right now."""
        return self._busy

    def warm(self) -> None:
        self._decoder.warm()

    def release(self, clip: Clip, queue: Queue) -> None:
        self._hold(queue, -clip.duration_sec)

    @property
    def held_sec(self) -> float:
        """Seconds of decoded audio in memory."""
        return sum(self._held_sec.copy().values())

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)
        self._decoder.close()
        self._fetcher.close()
        with self._changed:
            left, self._turns = self._turns, []
        for turns in left:
            _cancel(turns.units)

    def _live(self) -> None:
        while True:
            with self._changed:
                while (turns := self._first()) is None and not self._closed:
                    self._changed.wait()
                if turns is None or self._closed:
                    return
                unit = turns.take()
                if unit is None:
                    self._turns.remove(turns)
                    continue
                self._busy += 1
            try:
                self._work(unit, turns.queue)
            except Exception:
                log.exception("a delivery failed")
            finally:
                with self._changed:
                    self._busy -= 1
                self._delivered()

    def _first(self) -> _Turns | None:
        free = (turns for turns in self._turns if self._held_sec.get(turns.queue, 0.0) < self._read_ahead_sec)
        return min(free, key=lambda turns: turns.due, default=None)

    def _work(self, unit: Unit, queue: Queue) -> None:
        try:
            outcome: Decoded | AviaryError = self._decode(unit, queue)
        except AviaryError as error:
            outcome = error
        except BaseException:
            name = uuid.uuid4().hex[:12]
            log.exception("error %s while reading an input", name)
            outcome = InternalError(f"a fault of the worker while reading this input (see the log, id {name})")
        unit.deliver(outcome)

    def _decode(self, unit: Unit, queue: Queue) -> Decoded:
        if unit.cancelled():
            raise Cancelled("cancelled before it was read")
        started = time.monotonic()
        with self._fetcher.open(unit.source, cancelled=unit.cancelled) as file:
            fetched = time.monotonic()
            expected = expected_sec(file)
            self._hold(queue, expected)
            try:
                clip = self._decoder.decode(file, cancelled=unit.cancelled)
            except BaseException:
                self._hold(queue, -expected)
                raise
        self._hold(queue, clip.duration_sec - expected)
        return Decoded(clip, fetched - started, time.monotonic() - fetched)

    def _hold(self, queue: Queue, seconds: float) -> None:
        with self._changed:
            self._held_sec[queue] += seconds
            if abs(self._held_sec[queue]) < 1e-6:
                del self._held_sec[queue]       # no model's name is kept for ever
            if seconds < 0:
                self._changed.notify_all()


def _cancel(units: Iterator[Unit]) -> None:
    for unit in units:
        unit.deliver(Cancelled("the worker is shutting down"))
