"""The engine: runs a Request to its Response. Every door ends here, and everything else is built on `submit`.

    submit(request) ── distinct sources ──▶ ingest ── clips ──▶ pool ──▶ lanes ── outputs ──▶ Response, in the
    request's order

`submit` returns at once; its Future never fails for one bad input, which becomes a Failure in its place. Cancelling the
future (before its result is set) drops what is not yet on the device and stops downloads and decoding.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from worker import catalog
from worker.audio.ingest import Decoded, Ingest, Queue, Unit
from worker.backends import create
from worker.backends.base import Backend
from worker.backends.common.device import weights_budget
from worker.config import Settings
from worker.engine import chunking
from worker.engine.batching import Limits
from worker.engine.model_manager import ModelManager
from worker.engine.placement import device_placements
from worker.engine.remote.device import Device
from worker.engine.request_state import Countdown, OnResult, OnText, RequestState, WindowCollector, visible
from worker.engine.runner import OnBatch, Runner
from worker.engine.scheduler import PieceResult, Scheduler
from worker.errors import AviaryError, DeviceLost, TooLong
from worker.faults import report
from worker.futures import any_of
from worker.types import SAMPLE_RATE, Clip, Failure, Item, Options, Output, Piece, Request, Response, Result, Source

log = logging.getLogger(__name__)

OnResponse = Callable[[Request, Response], None]
_STATES = ("ready", "loading", "failed")


@dataclasses.dataclass(frozen=True, slots=True)
class Devices:
    """How many there are, and how many of them are lost."""

    count: int
    lost: int


class Engine:
    """The devices and what feeds them: one in this process, or several, each in a process of its own. Thread-safe;
    `create_backend` is the seam through which a test puts its own models, which then are in this process, whatever
    there is.
    `on_batch` is told of each batch that was run, its seconds and its device's number, on the device's thread;
    `on_response` of each request that was answered, whoever sent it, on a worker thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        create_backend: Callable[[catalog.Model], Backend] | None = None,
        on_batch: OnBatch = lambda batch, seconds, device: None,
        on_response: OnResponse = lambda request, response: None,
    ) -> None:
        self.settings, self._on_response = settings, on_response
        self._devices = (
            [Device(placement) for placement in device_placements(settings)] if create_backend is None else []
        )
        self._ingest = Ingest(settings, idle=self._nudge)
        self._scheduler = Scheduler(wait_sec=settings.batch_wait_sec, coming=self._ingest.coming)
        loading = threading.Lock()

        def runner(number: int, device: Device | None) -> Runner:
            own = (
                device.placement.settings
                if device
                else settings.model_copy(update={"device": settings.devices[number]})
            )
            make = device.create if device else create_backend or (lambda model: create(model, settings))
            models = ModelManager(
                make,
                changed=self._nudge,
                budget=lambda: weights_budget(own),
                idle_sec=settings.model_idle_sec,
                loading=loading,
            )
            if device:
                device.watch(models.lose)
            return Runner(
                self._scheduler,
                models,
                Limits.of(settings),
                name=str(number),
                on_batch=on_batch,
                ended=device.close if device else lambda: None,
            )

        here = len(settings.devices) if create_backend else 1
        self._runners = [runner(number, device) for number, device in enumerate(self._devices or [None] * here)]
        for one in self._runners:
            one.start()

    def submit(
        self, request: Request, *, on_result: OnResult | None = None, on_text: OnText | None = None
    ) -> Future[Response]:
        """Runs the request. `on_result` is called for each input as it is done, `on_text` with an input's index and
        each
        bit of a text as it is generated, or of a long clip as its windows are done; both on a worker thread: be quick
        there."""
        run = RequestState(request, on_result, on_text)
        groups: dict[Source, list[Item]] = {}
        for item in request.items:
            groups.setdefault(item.source, []).append(item)
        if groups:
            queue = Queue(request.items[0].options.model, request.background)
            self._ingest.submit(
                (self._unit(run, queue, source, items) for source, items in groups.items()), queue, run.future.cancelled
            )
        run.future.add_done_callback(functools.partial(self._ended, request))
        return run.future

    def _ended(self, request: Request, future: Future[Response]) -> None:
        if future.cancelled():
            self._ingest.drop_cancelled()
            self._scheduler.nudge()
        else:
            self._on_response(request, future.result())

    def _nudge(self) -> None:
        self._scheduler.nudge()

    def load(self, model: str) -> Future[None]:
        """Loads a model ahead of its first request, and starts the decoders. The future is done when the model is
        ready on all devices, but for those that are lost or cannot load it, and fails when there is none but such."""
        self._ingest.warm()
        return any_of([runner.models.load(model) for runner in self._left or self._runners])

    @property
    def models(self) -> dict[str, str]:
        """The models that are there: ready (on any device), loading or failed."""
        found: dict[str, str] = {}
        for runner in self._left or self._runners:
            for model, state in runner.models.states().items():
                found[model] = min(state, found.get(model, state), key=_STATES.index)
        return found

    @property
    def devices(self) -> Devices:
        return Devices(len(self._runners), len(self._runners) - len(self._left))

    @property
    def _left(self) -> list[Runner]:
        return [runner for runner in self._runners if runner.lost is None]

    @property
    def waiting(self) -> int:
        """Pieces that are decoded and wait for a device."""
        return len(self._scheduler)

    @property
    def held_sec(self) -> float:
        """Seconds of decoded audio in memory."""
        return self._ingest.held_sec

    @property
    def lost(self) -> DeviceLost | None:
        """Why this process must be replaced, or None: the last of its devices is lost."""
        return self._scheduler.lost

    def close(self) -> None:
        """Ends the threads and the processes. What is queued is answered as cancelled."""
        self._scheduler.close()
        for runner in self._runners:
            runner.join()
        for device in self._devices:
            device.close()
        self._ingest.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _unit(self, run: RequestState, queue: Queue, source: Source, items: list[Item]) -> Unit:
        def deliver(outcome: Decoded | AviaryError) -> None:
            if isinstance(outcome, AviaryError):
                for item in items:
                    run.done(Failure(item.index, outcome, item.id))
                return
            run.spent(fetch_sec=outcome.fetch_sec, decode_sec=outcome.decode_sec)
            kinds: dict[Options, list[Item]] = {}
            for item in items:
                kinds.setdefault(item.options, []).append(item)
            using = Countdown(len(kinds), lambda: self._ingest.release(outcome.clip, queue))
            for options, alike in kinds.items():
                try:
                    self._put(run, outcome.clip, options, alike, using)
                except Exception as error:  # noqa: BLE001  a request is answered whatever happens
                    self._answer(run, outcome.clip, alike, using, report(error))

        return Unit(source, deliver, run.future.cancelled)

    def _put(self, run: RequestState, clip: Clip, options: Options, items: list[Item], using: Countdown) -> None:
        """Puts the clip on the lane, in windows where it is longer than the model hears at a time."""
        row = catalog.find(options.model)
        spans = [(0, len(clip.samples))]
        if options.task in ("transcribe", "translate"):
            spans = chunking.split(clip.samples, row.window_sec) if row.window_sec else spans
        elif row.max_sec and clip.duration_sec > row.max_sec and options.task != "embed":
            raise TooLong(
                f"{clip.duration_sec:.1f} s is longer than the {row.max_sec:g} s that {row.id} hears for one "
                f"{options.task}"
            )
        order = time.monotonic()
        teller = run.teller(items)
        parts = WindowCollector(
            len(spans), functools.partial(self._answer, run, clip, items, using), teller if len(spans) > 1 else None
        )
        for number, (start, end) in enumerate(spans):
            part = Clip(clip.samples[start:end]) if len(spans) > 1 else clip
            piece = Piece(part, options, order, run.request.background, run.future.cancelled)
            if teller is not None and len(spans) == 1:
                piece = dataclasses.replace(piece, on_text=teller, begins=teller.begins)
            self._scheduler.submit(piece, self._collect(run, parts, number, start))

    @staticmethod
    def _answer(
        run: RequestState, clip: Clip, items: list[Item], using: Countdown, outcome: Output | AviaryError
    ) -> None:
        using.down()
        for item in items:
            run.done(
                Failure(item.index, outcome, item.id)
                if isinstance(outcome, AviaryError)
                else Result(item, clip.duration_sec, visible(outcome, item.view), clip.warning)
            )

    @staticmethod
    def _collect(
        run: RequestState, parts: WindowCollector, number: int, start: int
    ) -> Callable[[PieceResult | AviaryError], None]:
        def deliver(outcome: PieceResult | AviaryError) -> None:
            if isinstance(outcome, PieceResult):
                run.spent(queue_sec=outcome.queue_sec, model_sec=outcome.model_sec)
                parts.done(number, (start / SAMPLE_RATE, outcome.output))
            else:
                parts.done(number, outcome)

        return deliver
