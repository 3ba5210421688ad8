"""Fetch and decode, ahead of the device: a few threads, a bound on the decoded seconds held, and turns between
requests.

    turns ──▶ fetch ──▶ estimate ── room? ──▶ decode ── longer than estimated, and no room? ──┐
      ▲                               │ no                                                    │
      └──── with the file open ◀──────┴──────────── with room for MAX_AUDIO_SEC ◀─────────────┘

A Unit is one source, opened once, even if several inputs name it. Requests take turns, unit by unit, so that a request
of ten thousand files does not delay a request of one file. A turn of the background is due BACKGROUND_SEC later.

Each model has two queues: one for interactive requests and one for the background. `worker.audio.read_ahead` decides
which queues may decode more. Ten thousand inputs therefore need no more memory than a hundred. A unit for which there
is no room is put back, and has the next turn of its request.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from worker.audio.decode import Decoder, expected_sec
from worker.audio.fetch import Fetcher
from worker.audio.read_ahead import Holding, NoRoomError, Queue, ReadAhead
from worker.config import Settings
from worker.errors import AviaryError, Cancelled, TooLong
from worker.faults import report
from worker.types import SAMPLE_RATE, Clip, Source

log = logging.getLogger(__name__)

FETCHERS = 4  # threads for each decoder: a slow address blocks its thread, and should not keep files from the decoder
BACKGROUND_SEC = 5.0  # while interactive requests wait, a turn of the background comes this much later
CLOSE_SEC = 5.0  # how long `close` waits for threads that resolve a name or connect

_CLOSING = "the worker is shutting down"
_NOT_READ = "the request was canceled before this input was read"


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A source's audio and the time it took. Its receiver must `release` each clip when it is no longer needed."""

    clips: tuple[Clip, ...]
    """The mix of the channels, or each channel in order."""
    fetch_sec: float
    decode_sec: float

    @property
    def clip(self) -> Clip:
        """The first clip."""
        return self.clips[0]


OnOutcome = Callable[[Decoded | AviaryError], None]


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One source to open and decode."""

    source: Source
    on_outcome: OnOutcome
    """Called exactly once, on an ingest thread."""
    cancelled: Callable[[], bool]
    """Whether the request was canceled."""
    split: bool = False
    """Whether to decode each channel, instead of their mix."""


@dataclass(frozen=True, slots=True, eq=False)
class _OpenUnit:
    """A unit whose file is open, and the samples that the file is expected to have."""

    unit: Unit
    file: BinaryIO
    fetch_sec: float
    samples: int


@dataclass(slots=True, order=True)
class _Turns:
    """The units of one request."""

    due: float
    """When the next turn is, on time.monotonic(); the earliest of all requests goes first."""
    units: Iterator[Unit] = field(compare=False)
    cancelled: Callable[[], bool] = field(compare=False)
    put_back: list[_OpenUnit] = field(compare=False, default_factory=list)
    """Units that wait for room. They go before the other units."""

    @property
    def samples(self) -> int:
        """The samples for which the next unit requires room; 0 while they are unknown."""
        return self.put_back[0].samples if self.put_back else 0

    def take(self) -> Unit | _OpenUnit | None:
        """Return the next unit, or None if there is none."""
        return self.put_back.pop(0) if self.put_back else next(self.units, None)

    def cancel(self, why: str) -> None:
        """Fail all units with Cancelled."""
        while (unit := self.take()) is not None:
            _cancel(unit, why)


class Ingest:
    """The threads that fetch and decode.

    on_idle: called when the last unit in progress, of the background or not of it, has its outcome.
    """

    def __init__(self, settings: Settings, *, on_idle: Callable[[], None] = lambda: None) -> None:
        self._fetcher, self._decoder = Fetcher(settings), Decoder(settings)
        self._on_idle = on_idle
        self._read_ahead = ReadAhead(settings)
        self._longest = math.ceil(settings.max_audio_sec * SAMPLE_RATE)
        self._turns: dict[Queue, list[_Turns]] = defaultdict(list)  # each list is a heap
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
        turns = _Turns(_due(queue), units, cancelled)
        with self._changed:
            if not self._closed:
                heapq.heappush(self._turns[queue], turns)
                self._wake()
                return
        turns.cancel(_CLOSING)

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
            turns.cancel(_NOT_READ)

    def active(self, background: bool) -> int:
        """Return how many units, of the background or interactive, are being fetched and decoded."""
        return self._background if background else self._interactive

    def warm(self) -> None:
        """Start the decoding processes."""
        self._decoder.warm()

    def read(self, source: Source, longest_sec: float) -> Clip:
        """Return the audio of a short source, read on the caller's thread and outside of the bound on decoded seconds.

        Raises TooLong if the audio is longer than `longest_sec`, and what fetching and decoding raise.
        """
        longest = math.ceil(longest_sec * SAMPLE_RATE)

        def room(size: int) -> int:
            if size > 4 * longest:
                raise TooLong(f"the audio is longer than {longest_sec:g} s")
            return 4 * longest

        with self._fetcher.open(source, cancelled=lambda: self._closed) as file:
            clip = self._decoder.decode(file, cancelled=lambda: self._closed, room=room)
        room(4 * len(clip.samples))
        return clip

    def release(self, clip: Clip, queue: Queue) -> None:
        """Give back the seconds of a clip whose audio is no longer needed."""
        self._hold(queue, -len(clip.samples))

    @property
    def held_sec(self) -> float:
        """Seconds of decoded audio in memory."""
        return self._read_ahead.samples / SAMPLE_RATE

    def close(self, *, wait: bool = True) -> None:
        """End the threads, and `wait` for them. The units in progress and those that wait fail with Cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + (CLOSE_SEC if wait else 0.0)
        for thread in self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))
        self._decoder.close()
        with self._changed:
            left, self._turns = [turns for waiting in self._turns.values() for turns in waiting], {}
        for turns in left:
            turns.cancel(_CLOSING)

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
        unit, queue, turns = started
        try:
            self._process(unit, queue, turns)
        except BaseException:  # a panic of a Rust library is no Exception; the thread must still free its place
            log.exception("the outcome of an input could not be delivered")
        return queue

    def _wait(self) -> None:
        with self._changed:
            while not self._closed and self._next_queue() is None:
                self._changed.wait()

    def _start(self) -> tuple[Unit | _OpenUnit, Queue, _Turns] | None:
        """Take the unit whose turn it is, with its queue and request, or return None if no unit may start."""
        while (queue := self._next_queue()) is not None:
            turns = self._turns[queue][0]
            unit = self._take(queue)
            if unit is not None:
                self._count(queue, 1)
                self._wake()
                return unit, queue, turns
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
        has_room = self._read_ahead.has_room
        open_queues = [queue for queue, waiting in self._turns.items() if has_room(queue, waiting[0].samples)]
        return min(open_queues, key=lambda queue: self._turns[queue][0].due, default=None)

    def _take(self, queue: Queue) -> Unit | _OpenUnit | None:
        """Return the next unit of the request whose turn it is, or None if the request has no more."""
        waiting = self._turns[queue]
        turns = heapq.heappop(waiting)
        unit = turns.take()
        if unit is not None:
            turns.due = _due(queue)
            heapq.heappush(waiting, turns)
        if not waiting:
            del self._turns[queue]
        return unit

    def _process(self, started: Unit | _OpenUnit, queue: Queue, turns: _Turns) -> None:
        unit = started.unit if isinstance(started, _OpenUnit) else started
        try:
            outcome: Decoded | AviaryError | None = self._read(started, queue, turns)
        except AviaryError as error:
            outcome = error
        except BaseException as error:  # noqa: BLE001  every input gets an outcome
            outcome = report(error, during="the reading of this input")
        if outcome is not None:
            unit.on_outcome(outcome)

    def _read(self, started: Unit | _OpenUnit, queue: Queue, turns: _Turns) -> Decoded | None:
        """Return the unit's audio, or None if the unit was put back because there is no room for the audio."""
        opened = started if isinstance(started, _OpenUnit) else self._fetch(started)
        with contextlib.ExitStack() as stack:
            stack.enter_context(opened.file)
            with self._decoding:
                if self._reserve(queue, opened.samples):
                    try:
                        return self._decode(opened, Holding(queue, opened.samples))
                    except NoRoomError:
                        opened = dataclasses.replace(opened, samples=self._longest)
            self._check(opened.unit)
            stack.pop_all()
        self._put_back(opened, queue, turns)
        return None

    def _fetch(self, unit: Unit) -> _OpenUnit:
        self._check(unit)
        started = time.monotonic()
        file = self._open(unit, lambda: self._is_cancelled(unit))
        try:
            expected = expected_sec(file, self._read_ahead.guess_max_sec, unit.split)
        except BaseException:
            file.close()
            raise
        samples = math.ceil(min(expected * SAMPLE_RATE, self._longest))
        return _OpenUnit(unit, file, time.monotonic() - started, samples)

    def _decode(self, opened: _OpenUnit, holding: Holding) -> Decoded:
        """Return the audio of a unit for which room is reserved. Raises NoRoomError if the audio takes more."""

        def room(size: int) -> int:
            with self._changed:
                return 4 * self._read_ahead.extend(holding, size // 4)

        began = time.monotonic()
        try:
            clips = self._decoder.decode_channels(
                opened.file, split=opened.unit.split, cancelled=lambda: self._is_cancelled(opened.unit), room=room
            )
        except BaseException:
            self._hold(holding.queue, -holding.samples)
            raise
        self._hold(holding.queue, sum(len(clip.samples) for clip in clips) - holding.samples)
        return Decoded(clips, opened.fetch_sec, time.monotonic() - began)

    def _is_cancelled(self, unit: Unit) -> bool:
        return self._closed or unit.cancelled()

    def _check(self, unit: Unit) -> None:
        """Raise Cancelled if the unit is not to be read."""
        if self._is_cancelled(unit):
            raise Cancelled(_NOT_READ)

    def _reserve(self, queue: Queue, samples: int) -> bool:
        """Hold the samples that a unit is expected to have, if there is room for them. Return whether there is."""
        with self._changed:
            has_room = self._read_ahead.has_room(queue, samples)
            if has_room:
                self._read_ahead.add(queue, samples)
            return has_room

    def _put_back(self, opened: _OpenUnit, queue: Queue, turns: _Turns) -> None:
        """Let the unit wait for room, and give it the next turn of its request."""
        with self._changed:
            if not self._closed:
                turns.put_back.append(opened)
                waiting = self._turns[queue]
                if not any(turns is other for other in waiting):
                    heapq.heappush(waiting, turns)
                self._wake()
                return
        _cancel(opened, _CLOSING)

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
            self._read_ahead.add(queue, samples)
            if samples < 0:
                self._wake()


def _cancel(unit: Unit | _OpenUnit, why: str) -> None:
    if isinstance(unit, _OpenUnit):
        unit.file.close()
        unit = unit.unit
    unit.on_outcome(Cancelled(why))


def _due(queue: Queue) -> float:
    delay_sec = BACKGROUND_SEC if queue.background else 0.0
    return time.monotonic() + delay_sec
