"""Fetch and decode, ahead of the device: a few threads, a bound on the decoded seconds held, and turns between
requests.

A Unit is one source, opened and decoded once, even if several inputs name it. Requests take turns, unit by unit, so
that a request of ten thousand files does not delay a request of one file. A turn of the background is due
BACKGROUND_SEC later.

Decoded seconds are held from the moment when decoding starts (as estimated from the file's header or size) until
`release`. Each model has two queues: one for interactive requests and one for the background. A queue that holds
`read_ahead_sec` starts no further units. Ten thousand inputs therefore need no more memory than a hundred, and inputs
that wait for a model to load do not delay the inputs of other models. While audio of interactive requests is held, the
background holds no more than a batch, so that the cores work on interactive requests.
"""

from __future__ import annotations

import contextlib
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
from worker.types import SAMPLE_RATE, Clip, Source

log = logging.getLogger(__name__)

FETCHERS = 4  # threads for each decoder: a slow address blocks its thread, and should not keep files from the decoder
BACKGROUND_SEC = 5.0  # while interactive requests wait, a turn of the background comes this much later
CLOSE_SEC = 5.0  # how long `close` waits for threads that resolve a name or connect

_CLOSING = "the worker is shutting down"
_NOT_READ = "the request was canceled before this input was read"


class Queue(NamedTuple):
    """Units that share a read-ahead."""

    model: str
    """The id of the model."""
    background: bool


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A clip and the time it took. Its receiver must `release` the clip when the audio is no longer needed."""

    clip: Clip
    fetch_sec: float
    decode_sec: float


OnOutcome = Callable[[Decoded | AviaryError], None]


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One source to open and decode."""

    source: Source
    on_outcome: OnOutcome
    """Called exactly once, on an ingest thread."""
    cancelled: Callable[[], bool]
    """Whether the request was canceled."""


@dataclass(slots=True, order=True)
class _Turns:
    """The units of one request."""

    due: float
    """When the next turn is, on time.monotonic(); the earliest of all requests goes first."""
    units: Iterator[Unit] = field(compare=False)
    cancelled: Callable[[], bool] = field(compare=False)


class Ingest:
    """The threads that fetch and decode.

    on_idle: called when the last unit in progress, of the background or not of it, has its outcome.
    """

    def __init__(self, settings: Settings, *, on_idle: Callable[[], None] = lambda: None) -> None:
        self._fetcher, self._decoder = Fetcher(settings), Decoder(settings)
        self._read_ahead_sec, self._on_idle = settings.read_ahead_sec, on_idle
        self._background_sec = min(settings.read_ahead_sec, settings.batch_max_total_sec)
        self._turns: dict[Queue, list[_Turns]] = defaultdict(list)  # each list is a heap
        self._held: dict[Queue, int] = defaultdict(int)  # decoded samples in memory
        self._interactive = self._background = 0  # units in progress
        self._downloading = 0  # those of them that are downloaded
        self._decoders, self._decoding = settings.decode_workers, threading.Semaphore(settings.decode_workers)
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"ingest-{number}", daemon=True)
            for number in range(settings.decode_workers * FETCHERS)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, units: Iterator[Unit], queue: Queue, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Queue the units of one request. The iterator is advanced when the request's next turn comes."""
        with self._changed:
            if not self._closed:
                heapq.heappush(self._turns[queue], _Turns(_due(queue), units, cancelled))
                self._wake()
                return
        _cancel(units, _CLOSING)

    def drop_cancelled(self) -> None:
        """Fail the units of canceled requests that have not started, even those in a full queue or far from a turn."""
        dropped: list[_Turns] = []
        with self._changed:
            for queue, waiting in list(self._turns.items()):
                dropped += [turns for turns in waiting if turns.cancelled()]
                left = [turns for turns in waiting if not turns.cancelled()]
                heapq.heapify(left)
                if left:
                    self._turns[queue] = left
                else:
                    del self._turns[queue]
        for turns in dropped:
            _cancel(turns.units, _NOT_READ)

    def active(self, background: bool) -> int:
        """Return how many units, of the background or interactive, are being fetched and decoded."""
        return self._background if background else self._interactive

    def warm(self) -> None:
        """Start the decoding processes."""
        self._decoder.warm()

    def release(self, clip: Clip, queue: Queue) -> None:
        """Give back the seconds of a clip whose audio is no longer needed."""
        self._hold(queue, -len(clip.samples))

    @property
    def held_sec(self) -> float:
        """Seconds of decoded audio in memory."""
        return sum(self._held.copy().values()) / SAMPLE_RATE

    def close(self) -> None:
        """End the threads. The units in progress and those that wait fail with Cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + CLOSE_SEC
        for thread in self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))
        self._decoder.close()
        with self._changed:
            left, self._turns = [turns for waiting in self._turns.values() for turns in waiting], {}
        for turns in left:
            _cancel(turns.units, _CLOSING)

    def _run(self) -> None:
        done: Queue | None = None
        while not self._closed:
            done = self._step(done)

    def _step(self, done: Queue | None) -> Queue | None:
        """Free the place of the unit that is done, if any, and process the next one or wait for one.

        Return the queue of the unit that was processed. Nothing of the unit is held afterward: its source may be an
        array, and its thread may wait for hours.
        """
        with self._changed:
            if done is not None:
                self._count(done, -1)
            started = self._start()
        if done is not None and not self.active(done.background):
            self._on_idle()
        if started is None:
            self._wait()
            return None
        unit, queue = started
        try:
            self._process(unit, queue)
        except BaseException:  # a panic of a Rust library is no Exception; the thread must still free its place
            log.exception("the outcome of an input could not be delivered")
        return queue

    def _wait(self) -> None:
        with self._changed:
            while not self._closed and self._next_queue() is None:
                self._changed.wait()

    def _start(self) -> tuple[Unit, Queue] | None:
        """Take the unit whose turn it is, or return None if no unit may start."""
        while (queue := self._next_queue()) is not None:
            unit = self._take(queue)
            if unit is not None:
                self._count(queue, 1)
                self._wake()
                return unit, queue
        return None

    def _wake(self) -> None:
        """Wake one thread if a unit may start. That thread wakes the next, so that none wakes in vain."""
        if self._next_queue() is not None:
            self._changed.notify()

    def _count(self, queue: Queue, units: int) -> None:
        if queue.background:
            self._background += units
        else:
            self._interactive += units

    def _next_queue(self) -> Queue | None:
        """Return the queue whose turn it is, of those that may read ahead; None while all decoders are busy."""
        if self._interactive + self._background - self._downloading >= self._decoders:
            return None
        open_queues = [
            queue for queue in self._turns if self._held.get(queue, 0) < self._bound_sec(queue) * SAMPLE_RATE
        ]
        return min(open_queues, key=lambda queue: self._turns[queue][0].due, default=None)

    def _bound_sec(self, queue: Queue) -> float:
        """Return the decoded seconds that the queue may hold and still start a unit."""
        if queue.background and any(not holding.background for holding in self._held):
            return self._background_sec
        return self._read_ahead_sec

    def _take(self, queue: Queue) -> Unit | None:
        """Return the next unit of the request whose turn it is, or None if the request has no more."""
        waiting = self._turns[queue]
        unit = next(waiting[0].units, None)
        if unit is None:
            heapq.heappop(waiting)
        else:
            heapq.heapreplace(waiting, dataclasses.replace(waiting[0], due=_due(queue)))
        if not waiting:
            del self._turns[queue]
        return unit

    def _process(self, unit: Unit, queue: Queue) -> None:
        try:
            outcome: Decoded | AviaryError = self._decode(unit, queue)
        except AviaryError as error:
            outcome = error
        except BaseException as error:  # noqa: BLE001  every input gets an outcome
            outcome = report(error, during="the reading of this input")
        unit.on_outcome(outcome)

    def _decode(self, unit: Unit, queue: Queue) -> Decoded:
        def cancelled() -> bool:
            return self._closed or unit.cancelled()

        if cancelled():
            raise Cancelled(_NOT_READ)
        started = time.monotonic()
        with self._open(unit, cancelled) as file:
            fetched = time.monotonic()
            expected = round(expected_sec(file) * SAMPLE_RATE)
            with self._decoding:
                began = time.monotonic()
                self._hold(queue, expected)
                try:
                    clip = self._decoder.decode(file, cancelled=cancelled)
                except BaseException:
                    self._hold(queue, -expected)
                    raise
        self._hold(queue, len(clip.samples) - expected)
        return Decoded(clip, fetched - started, time.monotonic() - began)

    def _open(self, unit: Unit, cancelled: Callable[[], bool]) -> BinaryIO:
        is_download = unit.source.kind in ("url", "s3")
        with self._download() if is_download else contextlib.nullcontext():
            return self._fetcher.open(unit.source, cancelled=cancelled)

    @contextlib.contextmanager
    def _download(self) -> Iterator[None]:
        """Count a download: its thread waits for another machine, and another thread may use the decoder meanwhile."""
        self._add_downloads(1)
        try:
            yield
        finally:
            self._add_downloads(-1)

    def _add_downloads(self, count: int) -> None:
        with self._changed:
            self._downloading += count
            self._wake()

    def _hold(self, queue: Queue, samples: int) -> None:
        with self._changed:
            self._held[queue] += samples
            if not self._held[queue]:
                del self._held[queue]  # the names of models must not accumulate
            if samples < 0:
                self._wake()


def _cancel(units: Iterator[Unit], why: str) -> None:
    for unit in units:
        unit.on_outcome(Cancelled(why))


def _due(queue: Queue) -> float:
    delay_sec = BACKGROUND_SEC if queue.background else 0.0
    return time.monotonic() + delay_sec
