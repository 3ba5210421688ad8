"""The engine: runs a Request to its Response. Every door ends here, and everything else is built on `submit`.

    submit(request) ── distinct sources ──▶ ingest ── clips ──▶ pool ──▶ lanes ── outputs ──▶ Response, in the request's order

`submit` returns at once; its Future never fails for one bad input, which becomes a Failure in its place. Cancelling the
future (before its result is set) drops what is not yet on the device and stops downloads and decoding.
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError

from worker import catalog, windows
from worker.audio.ingest import Decoded, Ingest, Queue, Unit
from worker.backends import create
from worker.backends.base import Backend
from worker.backends.device import weights_budget
from worker.batching import Limits
from worker.config import Settings
from worker.devices.remote import Device
from worker.errors import AviaryError, DeviceLost, TooLong
from worker.futures import any_of
from worker.lane import Lane, OnBatch, known
from worker.pool import Done, Pool
from worker.residency import Residency
from worker.seats import devices
from worker.types import (
    SAMPLE_RATE,
    Clip,
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
OnText = Callable[[int, str], None]
OnResponse = Callable[[Request, Response], None]
_STATES = ("ready", "loading", "failed")


@dataclasses.dataclass(frozen=True, slots=True)
class Devices:
    """How many there are, and how many of them are lost."""

    count: int
    lost: int


class Engine:
    """The devices and what feeds them: one in this process, or several, each in a process of its own. Thread-safe;
    `create_backend` is the seam through which a test puts its own models, which then are in this process, whatever there is.
    `on_batch` is told of each batch that was run, its seconds and its device's number, on the device's thread; `on_response` of
    each request that was answered, whoever sent it, on a worker thread."""

    def __init__(self, settings: Settings, *, create_backend: Callable[[catalog.Model], Backend] | None = None,
                 on_batch: OnBatch = lambda batch, seconds, device: None,
                 on_response: OnResponse = lambda request, response: None) -> None:
        self.settings, self._on_response = settings, on_response
        self._devices = [Device(seat) for seat in devices(settings)] if create_backend is None else []
        self._ingest = Ingest(settings, idle=self._nudge)
        self._pool = Pool(wait_sec=settings.batch_wait_sec, coming=self._ingest.coming)
        loading = threading.Lock()

        def lane(number: int, device: Device | None) -> Lane:
            own = device.seat.settings if device else settings.model_copy(update={"device": settings.devices[number]})
            make = device.create if device else create_backend or (lambda model: create(model, settings))
            residency = Residency(make, changed=self._nudge, budget=lambda: weights_budget(own),
                                  idle_sec=settings.model_idle_sec, loading=loading)
            if device:
                device.watch(residency.lose)
            return Lane(self._pool, residency, Limits.of(settings), name=str(number), on_batch=on_batch,
                        ended=device.close if device else lambda: None)

        here = len(settings.devices) if create_backend else 1
        self._lanes = [lane(number, device) for number, device in enumerate(self._devices or [None] * here)]
        for one in self._lanes:
            one.start()

    def submit(self, request: Request, *, on_result: OnResult | None = None, on_text: OnText | None = None) -> Future[Response]:
        """Runs the request. `on_result` is called for each input as it is done, `on_text` with an input's index and each
        bit of a text as it is generated, or of a long clip as its windows are done; both on a worker thread: be quick
        there."""
        run = _Run(request, on_result, on_text)
        groups: dict[Source, list[Item]] = {}
        for item in request.items:
            groups.setdefault(item.source, []).append(item)
        if groups:
            queue = Queue(request.items[0].options.model, request.background)
            self._ingest.submit((self._unit(run, queue, source, items) for source, items in groups.items()), queue,
                                run.future.cancelled)
        run.future.add_done_callback(functools.partial(self._ended, request))
        return run.future

    def _ended(self, request: Request, future: Future[Response]) -> None:
        if future.cancelled():
            self._ingest.drop_cancelled()
            self._pool.nudge()
        else:
            self._on_response(request, future.result())

    def _nudge(self) -> None:
        self._pool.nudge()

    def load(self, model: str) -> Future[None]:
        """Loads a model ahead of its first request, and starts the decoders. The future is done when the model is ready on all
        devices, but for those that are lost or cannot load it, and fails when there is none but such."""
        self._ingest.warm()
        return any_of([lane.residency.load(model) for lane in self._left or self._lanes])

    @property
    def models(self) -> dict[str, str]:
        """The models that are there: ready (on any device), loading or failed."""
        found: dict[str, str] = {}
        for lane in self._left or self._lanes:
            for model, state in lane.residency.states().items():
                found[model] = min(state, found.get(model, state), key=_STATES.index)
        return found

    @property
    def devices(self) -> Devices:
        return Devices(len(self._lanes), len(self._lanes) - len(self._left))

    @property
    def _left(self) -> list[Lane]:
        return [lane for lane in self._lanes if lane.lost is None]

    @property
    def waiting(self) -> int:
        """Pieces that are decoded and wait for a device."""
        return len(self._pool)

    @property
    def held_sec(self) -> float:
        """Seconds of decoded audio in memory."""
        return self._ingest.held_sec

    @property
    def lost(self) -> DeviceLost | None:
        """Why this process must be replaced, or None: the last of its devices is lost."""
        return self._pool.lost

    def close(self) -> None:
        """Ends the threads and the processes. What is queued is answered as cancelled."""
        self._pool.close()
        for lane in self._lanes:
            lane.join()
        for device in self._devices:
            device.close()
        self._ingest.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _unit(self, run: _Run, queue: Queue, source: Source, items: list[Item]) -> Unit:
        def deliver(outcome: Decoded | AviaryError) -> None:
            if isinstance(outcome, AviaryError):
                for item in items:
                    run.done(Failure(item.index, outcome, item.id))
                return
            run.spent(fetch_sec=outcome.fetch_sec, decode_sec=outcome.decode_sec)
            kinds: dict[Options, list[Item]] = {}
            for item in items:
                kinds.setdefault(item.options, []).append(item)
            using = _Countdown(len(kinds), lambda: self._ingest.release(outcome.clip, queue))
            for options, alike in kinds.items():
                try:
                    self._put(run, outcome.clip, options, alike, using)
                except Exception as error:  # noqa: BLE001  a request is answered whatever happens
                    self._answer(run, outcome.clip, alike, using, known(error))

        return Unit(source, deliver, run.future.cancelled)

    def _put(self, run: _Run, clip: Clip, options: Options, items: list[Item], using: _Countdown) -> None:
        """Puts the clip on the lane, in windows where it is longer than the model hears at a time."""
        row = catalog.find(options.model)
        spans = [(0, len(clip.samples))]
        if options.task in ("transcribe", "translate"):
            spans = windows.cut(clip.samples, row.window_sec) if row.window_sec else spans
        elif row.max_sec and clip.duration_sec > row.max_sec and options.task != "embed":
            raise TooLong(f"{clip.duration_sec:.1f} s is longer than the {row.max_sec:g} s that {row.id} hears for one "
                          f"{options.task}")
        order = time.monotonic()
        teller = run.teller(items)
        parts = _Parts(len(spans), functools.partial(self._answer, run, clip, items, using), teller if len(spans) > 1 else None)
        for number, (start, end) in enumerate(spans):
            part = Clip(clip.samples[start:end]) if len(spans) > 1 else clip
            piece = Piece(part, options, order, run.request.background, run.future.cancelled,
                          teller if len(spans) == 1 else None)
            self._pool.put(piece, self._collect(run, parts, number, start))

    @staticmethod
    def _answer(run: _Run, clip: Clip, items: list[Item], using: _Countdown, outcome: Output | AviaryError) -> None:
        using.down()
        for item in items:
            run.done(Failure(item.index, outcome, item.id) if isinstance(outcome, AviaryError) else
                     Result(item, clip.duration_sec, _shown(outcome, item.view), clip.warning))

    @staticmethod
    def _collect(run: _Run, parts: _Parts, number: int, start: int) -> Callable[[Done | AviaryError], None]:
        def deliver(outcome: Done | AviaryError) -> None:
            if isinstance(outcome, Done):
                run.spent(queue_sec=outcome.queue_sec, model_sec=outcome.model_sec)
                parts.done(number, (start / SAMPLE_RATE, outcome.output))
            else:
                parts.done(number, outcome)

        return deliver


class _Parts:
    """What came of a clip's windows: delivered as one output when the last is in, or as the first window's error. `tell` is
    given the text of the windows in their order, each as soon as those before it are in."""

    def __init__(self, count: int, deliver: Callable[[Output | AviaryError], None], tell: Callable[[str], None] | None) -> None:
        self._outcomes: list[tuple[float, Output] | AviaryError | None] = [None] * count
        self._missing, self._deliver, self._tell = count, deliver, tell
        self._told, self._lock = "", threading.Lock()

    def done(self, number: int, outcome: tuple[float, Output] | AviaryError) -> None:
        with self._lock:
            self._outcomes[number] = outcome
            self._missing -= 1
            if self._tell is not None:
                self._tell_more(self._tell)
            if self._missing:
                return
        error = next((one for one in self._outcomes if isinstance(one, AviaryError)), None)
        parts = [one for one in self._outcomes if isinstance(one, tuple)]
        self._deliver(error or (parts[0][1] if len(parts) == 1 else windows.join(parts)))

    def _tell_more(self, tell: Callable[[str], None]) -> None:
        ready = list(itertools.takewhile(lambda one: isinstance(one, tuple), self._outcomes))
        text = windows.join([one for one in ready if isinstance(one, tuple)]).text if ready else ""
        if len(text) > len(self._told):
            tell(text[len(self._told):])
            self._told = text


def _shown(output: Output, view: View) -> Output:
    """The output without the spans that its view leaves out: ten thousand results should not hold every letter's time."""
    if not isinstance(output, Transcript):
        return output
    timed = bool(view.timestamps) or view.format not in ("json", "text")
    return dataclasses.replace(output, words=output.words if timed else (), segments=output.segments if timed else (),
                               chars=output.chars if "char" in view.timestamps else ())


class _Run:
    """A request under way: collects what is done, in any order, and sets the future when all is."""

    def __init__(self, request: Request, on_result: OnResult | None, on_text: OnText | None) -> None:
        self.future: Future[Response] = Future()
        self.request, self._on_result, self._on_text = request, on_result, on_text
        self._started = time.monotonic()
        self._slots: dict[int, Result | Failure] = {}
        self._spent: dict[str, float] = {}
        self._lock = threading.Lock()
        for failure in request.rejected:
            self.done(failure)
        if not request.size:
            self._finish()

    def spent(self, **seconds: float) -> None:
        with self._lock:
            for stage, value in seconds.items():
                self._spent[stage] = self._spent.get(stage, 0.0) + value

    def teller(self, items: list[Item]) -> Callable[[str], None] | None:
        """What passes on the text of these inputs as it is generated, if anybody listens."""
        on_text = self._on_text
        if on_text is None:
            return None

        def tell(text: str) -> None:
            try:
                for item in items:
                    on_text(item.index, text)
            except Exception:
                log.exception("on_text failed")

        return tell

    def done(self, outcome: Result | Failure) -> None:
        if self._on_result is not None and not self.future.cancelled():
            try:
                self._on_result(outcome)
            except Exception:
                log.exception("on_result failed")
        with self._lock:
            self._slots[outcome.index] = outcome
            finished = len(self._slots) == self.request.size
        if finished:
            self._finish()

    def _finish(self) -> None:
        timing = Timing(**self._spent, total_sec=time.monotonic() - self._started)
        results = tuple(self._slots[index] for index in range(self.request.size))
        with contextlib.suppress(InvalidStateError):     # cancelled in the meantime
            self.future.set_result(Response(self.request.model, results, timing))


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
