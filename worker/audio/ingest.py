"""Fetch and decode, ahead of the device: a few threads, a bound on the decoded seconds held, and turns between requests.

A Unit is one source to be opened and decoded once, however many inputs name it. Requests take turns, unit by unit, so
that a job of ten thousand files does not hold up one of a single file. Decoded seconds are held from the moment decoding
begins (as the file's header or size foretells) until `release`; while `read_ahead_sec` are held, nothing new begins, so
ten thousand inputs need no more memory than a hundred.
"""
from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from worker.audio.decode import Decoder, expected_sec
from worker.audio.fetch import Fetcher
from worker.config import Settings
from worker.errors import AviaryError, Cancelled, InternalError
from worker.types import Clip, Source

log = logging.getLogger(__name__)


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


class Ingest:
    """`delivered` is called whenever a unit has been delivered."""

    def __init__(self, settings: Settings, *, delivered: Callable[[], None] = lambda: None) -> None:
        self._fetcher, self._decoder = Fetcher(settings), Decoder(settings)
        self._read_ahead_sec, self._delivered = settings.read_ahead_sec, delivered
        self._turns: deque[Iterator[Unit]] = deque()
        self._held_sec = 0.0
        self._busy = 0
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._live, name=f"ingest-{i}", daemon=True)
                         for i in range(settings.decode_workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, units: Iterator[Unit]) -> None:
        """Queues the units of one request; each is made only when its turn comes."""
        with self._changed:
            self._turns.append(units)
            self._changed.notify_all()

    def coming(self) -> int:
        """How many units are being fetched and decoded right now."""
        return self._busy

    def warm(self) -> None:
        self._decoder.warm()

    def release(self, clip: Clip) -> None:
        self._hold(-clip.duration_sec)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)
        self._decoder.close()
        self._fetcher.close()

    def _live(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._turns or self._held_sec >= self._read_ahead_sec):
                    self._changed.wait()
                if self._closed:
                    return
                units = self._turns.popleft()
                unit = next(units, None)
                if unit is None:
                    continue
                self._turns.append(units)
                self._busy += 1
            try:
                self._work(unit)
            except Exception:
                log.exception("a delivery failed")
            finally:
                with self._changed:
                    self._busy -= 1
                self._delivered()

    def _work(self, unit: Unit) -> None:
        try:
            outcome: Decoded | AviaryError = self._decode(unit)
        except AviaryError as error:
            outcome = error
        except Exception:
            name = uuid.uuid4().hex[:12]
            log.exception("error %s while reading an input", name)
            outcome = InternalError(f"a fault of the worker while reading this input (see the log, id {name})")
        unit.deliver(outcome)

    def _decode(self, unit: Unit) -> Decoded:
        if unit.cancelled():
            raise Cancelled("cancelled before it was read")
        started = time.monotonic()
        with self._fetcher.open(unit.source, cancelled=unit.cancelled) as file:
            fetched = time.monotonic()
            expected = expected_sec(file)
            self._hold(expected)
            try:
                clip = self._decoder.decode(file, cancelled=unit.cancelled)
            except BaseException:
                self._hold(-expected)
                raise
        self._hold(clip.duration_sec - expected)
        return Decoded(clip, fetched - started, time.monotonic() - fetched)

    def _hold(self, seconds: float) -> None:
        with self._changed:
            self._held_sec += seconds
            if seconds < 0:
                self._changed.notify_all()
