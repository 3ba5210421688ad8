"""Fetch and decode, ahead of the device: a few threads, a bound on the decoded seconds held, and turns between
requests.

A Unit is one source to be opened and decoded once, however many inputs name it. Requests take turns, unit by unit, so
that a job of ten thousand files does not hold up one of a single file; those of the background take theirs
BACKGROUND_SEC
later. Decoded seconds are held from the moment decoding begins (as the file's header or size foretells) until
`release`;
while a queue (a model's, apart for the background) holds `read_ahead_sec`, nothing of it begins (what has begun is
finished),
so ten thousand inputs need no more memory than a hundred, and what waits for a model to load holds up no other. While
somebody waits for an answer the background holds no more than a batch: the cores are for what comes first.
"""

from __future__ import annotations

import dataclasses
import heapq
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from worker.audio.decode import Decoder, expected_sec
from worker.audio.fetch import Fetcher
from worker.config import Settings
from worker.errors import AviaryError, Cancelled
from worker.faults import report
from worker.types import Clip, Source

log = logging.getLogger(__name__)

FETCHERS = 4  # for each decoder: a slow address keeps a thread waiting, and should keep no file from its decoder
BACKGROUND_SEC = 5.0  # what is in the background waits as if it had come so much later
CLOSE_SEC = 5.0  # a thread that waits for a name or a connection is not waited for longer

_CLOSING = "the worker is shutting down"


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


@dataclass(slots=True, order=True)
class _Turns:
    """One request's units. due: when its next turn is; the earliest of all goes first."""

    due: float
    units: Iterator[Unit] = field(compare=False)
    cancelled: Callable[[], bool] = field(compare=False)


class Ingest:
    """`idle` is called when the last unit, of the background or not of it, that was being read has been delivered."""

    def __init__(self, settings: Settings, *, idle: Callable[[], None] = lambda: None) -> None:
        self._fetcher, self._decoder = Fetcher(settings), Decoder(settings)
        self._read_ahead_sec, self._idle = settings.read_ahead_sec, idle
        self._behind_sec = min(settings.read_ahead_sec, settings.batch_max_total_sec)
        self._turns: dict[Queue, list[_Turns]] = defaultdict(list)  # each a heap
        self._held_sec: dict[Queue, float] = defaultdict(float)
        self._busy = self._behind = self._downloading = 0  # _behind: those of the background
        self._decoders, self._decoding = settings.decode_workers, threading.Semaphore(settings.decode_workers)
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._live, name=f"ingest-{i}", daemon=True)
            for i in range(settings.decode_workers * FETCHERS)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, units: Iterator[Unit], queue: Queue, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Queues the units of one request; each is made only when its turn comes."""
        with self._changed:
            if not self._closed:
                heapq.heappush(self._turns[queue], _Turns(_due(queue), units, cancelled))
                self._wake()
                return
        _cancel(units, _CLOSING)

    def drop_cancelled(self) -> None:
        """Delivers what of cancelled requests is not begun, though its queue may be full and its turn far."""
        gone: list[_Turns] = []
        with self._changed:
            for queue, waiting in list(self._turns.items()):
                gone += [turns for turns in waiting if turns.cancelled()]
                left = [turns for turns in waiting if not turns.cancelled()]
                heapq.heapify(left)
                if left:
                    self._turns[queue] = left
                else:
                    del self._turns[queue]
        for turns in gone:
            _cancel(turns.units, "cancelled before it was read")

    def coming(self, background: bool) -> int:
        """How many units, of the background or not of it, are being fetched and decoded right now."""
        return self._behind if background else self._busy - self._behind

    def warm(self) -> None:
        self._decoder.warm()

    def release(self, clip: Clip, queue: Queue) -> None:
        self._hold(queue, -clip.duration_sec)

    @property
    def held_sec(self) -> float:
        """Seconds of decoded audio in memory."""
        return sum(self._held_sec.copy().values())

    def close(self) -> None:
        """Ends the threads; what they are reading is delivered as cancelled, and what waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + CLOSE_SEC
        for thread in self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))
        self._decoder.close()
        self._fetcher.close()
        with self._changed:
            left, self._turns = [turns for waiting in self._turns.values() for turns in waiting], {}
        for turns in left:
            _cancel(turns.units, _CLOSING)

    def _live(self) -> None:
        done: Queue | None = None
        while not self._closed:
            with self._changed:
                if done is not None:
                    self._count(done, -1)
                begun = self._begin()
            if done is not None and not self.coming(done.background):
                self._idle()
            done = None
            if begun is None:
                with self._changed:
                    while not self._closed and self._first() is None:
                        self._changed.wait()
                continue
            unit, queue = begun
            try:
                self._work(unit, queue)
            except (
                BaseException
            ):  # a panic of a Rust library is no Exception: the thread goes on, and gives its place back
                log.exception("a delivery failed")
            done = queue

    def _begin(self) -> tuple[Unit, Queue] | None:
        """The unit whose turn it is."""
        while (queue := self._first()) is not None:
            unit = self._take(queue)
            if unit is not None:
                self._count(queue, 1)
                self._wake()
                return unit, queue
        return None

    def _wake(self) -> None:
        """Wakes a thread if there is something for it, which does the same when it has begun: more would wake in
        vain."""
        if self._first() is not None:
            self._changed.notify()

    def _count(self, queue: Queue, units: int) -> None:
        self._busy += units
        self._behind += units * queue.background

    def _first(self) -> Queue | None:
        """Whose turn it is, of those that may read ahead; nobody's while all decoders have something to do."""
        if self._busy - self._downloading >= self._decoders:
            return None
        waited_for = any(not queue.background for queue in self._held_sec)
        free = [
            queue
            for queue in self._turns
            if self._held_sec.get(queue, 0.0)
            < (self._behind_sec if queue.background and waited_for else self._read_ahead_sec)
        ]
        return min(free, key=lambda queue: self._turns[queue][0].due, default=None)

    def _take(self, queue: Queue) -> Unit | None:
        """The next unit of the request whose turn it is; None if it has no more."""
        waiting = self._turns[queue]
        unit = next(waiting[0].units, None)
        if unit is None:
            heapq.heappop(waiting)
        else:
            heapq.heapreplace(waiting, dataclasses.replace(waiting[0], due=_due(queue)))
        if not waiting:
            del self._turns[queue]
        return unit

    def _work(self, unit: Unit, queue: Queue) -> None:
        try:
            outcome: Decoded | AviaryError = self._decode(unit, queue)
        except AviaryError as error:
            outcome = error
        except BaseException as error:  # noqa: BLE001  an input is answered whatever happens
            outcome = report(error, during="the reading of this input")
        unit.deliver(outcome)

    def _decode(self, unit: Unit, queue: Queue) -> Decoded:
        def cancelled() -> bool:
            return self._closed or unit.cancelled()

        if cancelled():
            raise Cancelled("cancelled before it was read")
        started = time.monotonic()
        with self._open(unit, cancelled) as file:
            fetched = time.monotonic()
            expected = expected_sec(file)
            with self._decoding:
                began = time.monotonic()
                self._hold(queue, expected)
                try:
                    clip = self._decoder.decode(file, cancelled=cancelled)
                except BaseException:
                    self._hold(queue, -expected)
                    raise
        self._hold(queue, clip.duration_sec - expected)
        return Decoded(clip, fetched - started, time.monotonic() - began)

    def _open(self, unit: Unit, cancelled: Callable[[], bool]) -> BinaryIO:
        """A download waits for others, and keeps no decoder from its work meanwhile."""
        download = unit.source.kind in ("url", "s3")
        self._note(download)
        try:
            return self._fetcher.open(unit.source, cancelled=cancelled)
        finally:
            self._note(-download)

    def _note(self, downloads: int) -> None:
        if downloads:
            with self._changed:
                self._downloading += downloads
                self._wake()

    def _hold(self, queue: Queue, seconds: float) -> None:
        with self._changed:
            self._held_sec[queue] += seconds
            if abs(self._held_sec[queue]) < 1e-6:
                del self._held_sec[queue]  # no model's name is kept for ever
            if seconds < 0:
                self._wake()


def _cancel(units: Iterator[Unit], why: str) -> None:
    for unit in units:
        unit.deliver(Cancelled(why))


def _due(queue: Queue) -> float:
    return time.monotonic() + queue.background * BACKGROUND_SEC
