"""The engine: runs a Request to its Response. Every door ends here, and everything else is built on `submit`.

    submit(request) ── distinct sources ──▶ ingest ── clips ──▶ lane ── outputs ──▶ Response, in the request's order

`submit` returns at once; its Future never fails for one bad input, which becomes a Failure in its place. Cancelling the
future (before its result is set) drops what is not yet on the device and stops downloads and decoding.
"""
from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError

from worker import catalog
from worker.audio.ingest import Decoded, Ingest, Unit
from worker.backends import create
from worker.backends.base import Backend
from worker.batching import Limits
from worker.config import Settings
from worker.errors import AviaryError, DeviceLost
from worker.lane import Done, Lane
from worker.types import (
    Failure,
    Item,
    Options,
    Output,
    Piece,
    Request,
    Response,
    Result,
    Source,
    Timing,
    Transcript,
    View,
)

log = logging.getLogger(__name__)

OnResult = Callable[[Result | Failure], None]


class Engine:
    """One device and what feeds it. Thread-safe; `create_backend` is the seam through which a test puts its own model."""

    def __init__(self, settings: Settings, *, create_backend: Callable[[catalog.Model], Backend] | None = None) -> None:
        self.settings = settings
        self._order = itertools.count()
        self._ingest = Ingest(settings, delivered=self._nudge)
        self._lane = Lane(Limits.of(settings), create_backend or (lambda model: create(model, settings)),
                          wait_sec=settings.batch_wait_sec, coming=self._ingest.coming)

    def submit(self, request: Request, *, on_result: OnResult | None = None) -> Future[Response]:
        """Runs the request. `on_result` is called for each input as it is done, on a worker thread: be quick there."""
        run = _Run(request, on_result)
        groups: dict[Source, list[Item]] = {}
        for item in request.items:
            groups.setdefault(item.source, []).append(item)
        if groups:
            self._ingest.submit(self._unit(run, source, items) for source, items in groups.items())
        run.future.add_done_callback(lambda future: self._lane.nudge() if future.cancelled() else None)
        return run.future

    def _nudge(self) -> None:
        self._lane.nudge()

    def load(self, model: str) -> Future[None]:
        """Loads a model ahead of its first request, and starts the decoders."""
        self._ingest.warm()
        return self._lane.load(model)

    @property
    def lost(self) -> DeviceLost | None:
        """Why this process must be replaced, or None."""
        return self._lane.lost

    def close(self) -> None:
        """Ends the threads and the decoding processes. What is queued is answered as cancelled."""
        self._lane.close()
        self._ingest.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _unit(self, run: _Run, source: Source, items: list[Item]) -> Unit:
        def deliver(outcome: Decoded | AviaryError) -> None:
            if isinstance(outcome, AviaryError):
                for item in items:
                    run.done(Failure(item.index, outcome, item.id))
                return
            run.spent(fetch_sec=outcome.fetch_sec, decode_sec=outcome.decode_sec)
            kinds: dict[Options, list[Item]] = {}
            for item in items:
                kinds.setdefault(item.options, []).append(item)
            using = _Countdown(len(kinds), lambda: self._ingest.release(outcome.clip))
            for options, alike in kinds.items():
                piece = Piece(outcome.clip, options, next(self._order))
                self._lane.put(piece, self._collect(run, piece, alike, using), cancelled=run.future.cancelled)

        return Unit(source, deliver, run.future.cancelled)

    @staticmethod
    def _collect(run: _Run, piece: Piece, items: list[Item], using: _Countdown) -> Callable[[Done | AviaryError], None]:
        def deliver(outcome: Done | AviaryError) -> None:
            using.down()
            if isinstance(outcome, Done):
                run.spent(queue_sec=outcome.queue_sec, model_sec=outcome.model_sec)
            for item in items:
                run.done(Failure(item.index, outcome, item.id) if isinstance(outcome, AviaryError) else
                         Result(item, piece.duration_sec, _shown(outcome.output, item.view), piece.clip.warning))

        return deliver


def _shown(output: Output, view: View) -> Output:
    """The output without the spans that its view leaves out: ten thousand results should not hold every letter's time."""
    if not isinstance(output, Transcript):
        return output
    timed = bool(view.timestamps) or view.format not in ("json", "text")
    return dataclasses.replace(output, words=output.words if timed else (), segments=output.segments if timed else (),
                               chars=output.chars if "char" in view.timestamps else ())


class _Run:
    """A request under way: collects what is done, in any order, and sets the future when all is."""

    def __init__(self, request: Request, on_result: OnResult | None) -> None:
        self.future: Future[Response] = Future()
        self._request, self._on_result = request, on_result
        self._started = time.monotonic()
        self._slots: dict[int, Result | Failure] = {}
        self._spent: dict[str, float] = {}
        self._lock = threading.Lock()
        for failure in request.rejected:
            self.done(failure)

    def spent(self, **seconds: float) -> None:
        with self._lock:
            for stage, value in seconds.items():
                self._spent[stage] = self._spent.get(stage, 0.0) + value

    def done(self, outcome: Result | Failure) -> None:
        with self._lock:
            self._slots[outcome.index] = outcome
            finished = len(self._slots) == self._request.size
        if self._on_result is not None and not self.future.cancelled():
            try:
                self._on_result(outcome)
            except Exception:
                log.exception("on_result failed")
        if finished:
            timing = Timing(**self._spent, total_sec=time.monotonic() - self._started)
            results = tuple(self._slots[index] for index in range(self._request.size))
            with contextlib.suppress(InvalidStateError):     # cancelled in the meantime
                self.future.set_result(Response(self._request.model, results, timing))


class _Countdown:
    """Calls `then` at the last of `count` calls of `down`."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._count, self._then, self._lock = count, then, threading.Lock()

    def down(self) -> None:
        with self._lock:
            self._count -= 1
            last = self._count == 0
        if last:
            self._then()
