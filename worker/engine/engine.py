"""The engine: runs a Request to its Response. Every entry point ends here, and everything else is built on `submit`.

    submit(request) ── distinct sources ──▶ ingest ── clips ──▶ scheduler ── batches ──▶ runners ── outputs ──▶ Response

The results of a Response are in the order of the request. `submit` returns at once. Its Future never fails because of
one bad input, which becomes a Failure in its place. Cancelling the Future before its result is set drops the inputs
that are not on a device yet, and stops downloads and decoding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeVar

from worker import catalog
from worker.audio.ingest import Decoded, Ingest, Unit
from worker.audio.read_ahead import Queue
from worker.backends import create
from worker.backends.base import Backend
from worker.backends.common import hub_cache
from worker.backends.common.device import batch_target_sec, weights_budget
from worker.config import Settings
from worker.engine import channels, clip_run, speakers
from worker.engine.batching import Limits
from worker.engine.chunking import cut
from worker.engine.loading import alone
from worker.engine.model_manager import ModelManager
from worker.engine.piece_queue import PieceResult
from worker.engine.placement import device_placements
from worker.engine.remote.device import Device
from worker.engine.request_state import RequestState, new_turn
from worker.engine.runner import OnBatch, Runner
from worker.engine.scheduler import Scheduler
from worker.errors import AviaryError, DeviceLost, EmptyAudio
from worker.faults import report
from worker.futures import any_of, fail, settle, when_all
from worker.types import (
    Clip,
    Item,
    Live,
    OnProgress,
    OnResult,
    OnText,
    Options,
    Output,
    Part,
    Piece,
    Request,
    Response,
    Source,
)

log = logging.getLogger(__name__)

CreateBackend = Callable[[catalog.Model], Backend]
OnResponse = Callable[[Request, Response], None]
T = TypeVar("T")
_STATES = ("ready", "loading", "failed")  # the best first
_NO_MODEL = ""  # names the queue of the audio that no model runs on


@dataclasses.dataclass(frozen=True, slots=True)
class Devices:
    """The number of devices."""

    count: int
    """All devices that the engine started with."""
    lost: int
    """Those that have failed since."""


class Engine:
    """The devices and the threads that feed them: one device in this process, or several in a process each.

    Thread-safe.

    create_backend: makes the models in place of the registry, for tests. All devices are then in this process.
    on_batch: called with each batch that ran, its seconds and the name of its device, on the thread of the device.
    on_response: called with each request that was completed and its response, on a worker thread.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        create_backend: CreateBackend | None = None,
        on_batch: OnBatch = lambda batch, seconds, device: None,
        on_response: OnResponse = lambda request, response: None,
    ) -> None:
        self.settings, self._on_batch, self._on_response = settings, on_batch, on_response
        self._devices = [] if create_backend else [Device(placement) for placement in device_placements(settings)]
        self._ingest = Ingest(settings, on_idle=self._wake)
        self._scheduler = Scheduler(wait_sec=settings.batch_wait_sec, incoming=self._ingest.active)
        self._loading = threading.Lock()
        self._has_weights = create_backend is None and not settings.skip_model_load
        self._alone = functools.partial(alone, settings) if self._has_weights else contextlib.nullcontext
        self._runners = self._make_runners(create_backend)
        for runner in self._runners:
            runner.start()

    def submit(
        self,
        request: Request,
        *,
        on_result: OnResult | None = None,
        on_text: OnText | None = None,
        on_progress: OnProgress | None = None,
    ) -> Future[Response]:
        """Run the request.

        `on_result` is called with the outcome of each input when it is done. `on_text` is called with an input's index
        and each new part of its text: as it is generated, or, for a long clip, as its windows are done. `on_progress`
        is called whenever an input is decoded, a window is done, or an input has its outcome. All are called on worker
        threads, which they must not block.
        """
        state = RequestState(request, on_result, on_text, on_progress, lambda: self._scheduler.closed)
        sources: dict[tuple[Source, bool], list[Item]] = {}
        for item in request.items:
            sources.setdefault((item.source, item.options.channels == "split"), []).append(item)
        if sources:
            queue = Queue(request.items[0].options.model, request.background)
            units = (self._unit(state, queue, source, items, split) for (source, split), items in sources.items())
            self._ingest.submit(units, queue, state.future.cancelled)
        state.future.add_done_callback(functools.partial(self._on_done, request))
        return state.future

    def examine(self, source: Source, examine: Callable[[Clip, Callable[[], bool]], T]) -> Future[T]:
        """Decode a source for a function that needs no device, and return a future of what the function returns.

        `examine` gets the clip, and a function that says whether to stop. It runs on an ingest thread, and counts as
        decoding: no more of them run at a time than there are decoders. The source waits for its turn among the inputs
        of all requests. Canceling the future drops the work.
        """
        future: Future[T] = Future()
        queue = Queue(_NO_MODEL, background=False)

        def stops() -> bool:
            return future.cancelled() or self._scheduler.closed

        def on_outcome(outcome: Decoded | AviaryError) -> None:
            if isinstance(outcome, AviaryError):
                fail(future, outcome)
                return
            try:
                settle(future, examine(outcome.clip, stops))
            except Exception as error:  # noqa: BLE001  the future gets every outcome
                fail(future, report(error))
            finally:
                self._ingest.release(outcome.clip, queue)

        self._ingest.submit(iter([Unit(source, on_outcome, stops)]), queue, future.cancelled)
        future.add_done_callback(self._on_examined)
        return future

    def advance(self, options: Options, clip: Clip, live: Live, owner: str | None = None) -> Future[Output]:
        """Run the next piece of a stream of live audio; its model must be `live`, and `is_local` true.

        The pieces of all streams share batches. The caller waits for each piece before it submits the next one.
        """
        output: Future[Output] = Future()

        def on_outcome(outcome: PieceResult | AviaryError) -> None:
            if isinstance(outcome, AviaryError):
                fail(output, outcome)
            else:
                settle(output, outcome.output)

        piece = Piece(clip, options, time.monotonic(), cancelled=output.cancelled, turn=new_turn(owner), live=live)
        self._scheduler.submit(piece, on_outcome)
        return output

    @property
    def is_local(self) -> bool:
        """Whether the models are in this process, so that the state of a stream need not move to another one."""
        return not self._devices

    def load(self, model: str) -> Future[None]:
        """Load a model ahead of its first request, and start the decoding processes.

        The future is done when every device has loaded the model, is lost or cannot load it. It fails, with
        ModelUnavailable or DeviceLost, if no device has loaded it.
        """
        self._ingest.warm()
        return any_of([runner.models.load(model) for runner in self._working or self._runners])

    @property
    def models(self) -> dict[str, str]:
        """The state of each model by its id: ready (on at least one device), loading or failed."""
        best: dict[str, str] = {}
        for runner in self._working or self._runners:
            for model, state in runner.models.states().items():
                best[model] = min(state, best.get(model, state), key=_STATES.index)
        return best

    @property
    def devices(self) -> Devices:
        """How many devices there are, and how many of them are lost."""
        return Devices(len(self._runners), len(self._runners) - len(self._working))

    @property
    def waiting(self) -> int:
        """The number of decoded pieces that wait for a device."""
        return len(self._scheduler)

    @property
    def held_sec(self) -> float:
        """Seconds of decoded audio in memory."""
        return self._ingest.held_sec

    @property
    def lost(self) -> DeviceLost | None:
        """Why this process must be replaced: its last device is lost. None while a device works."""
        return self._scheduler.lost

    def close(self, *, wait: bool = True) -> None:
        """End the threads and the processes. Inputs that are not done fail with Cancelled, even those on a device.

        `wait`: wait for the batch that runs, after which the models are closed, and for what is being read. Otherwise
        both end later.
        """
        self._scheduler.close()
        if wait:
            for runner in self._runners:
                runner.join()
        for device in self._devices:
            device.close()
        self._ingest.close(wait=wait)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.close(wait=kind is not KeyboardInterrupt)

    # Devices

    @property
    def _working(self) -> list[Runner]:
        return [runner for runner in self._runners if runner.lost is None]

    def _wake(self) -> None:
        self._scheduler.wake()

    def _make_runners(self, create_backend: CreateBackend | None) -> list[Runner]:
        if self._devices:
            return [self._remote(number, device) for number, device in enumerate(self._devices)]
        if create_backend is None:
            return [self._local(0, lambda row: create(row, self.settings))]
        return [self._local(number, create_backend) for number in range(len(self.settings.devices))]

    def _local(self, number: int, create_backend: CreateBackend) -> Runner:
        """Return the runner of a device in this process."""
        settings = self.settings.model_copy(update={"device": self.settings.devices[number]})
        return self._runner(number, self._manager(create_backend, settings), settings)

    def _remote(self, number: int, device: Device) -> Runner:
        """Return the runner of a device in a process of its own."""
        settings = device.placement.settings
        models = self._manager(device.create, settings)
        device.watch(models.lose)
        return self._runner(number, models, settings, device.close)

    def _manager(self, create_backend: CreateBackend, settings: Settings) -> ModelManager:
        return ModelManager(
            create_backend,
            find=lambda name: catalog.find(name, settings.places),
            changed=self._wake,
            budget=lambda: weights_budget(settings),
            idle_sec=settings.model_idle_sec,
            loading=self._loading,
            alone=self._alone,
            hold=self._hold,
        )

    def _hold(self, row: catalog.Model) -> contextlib.AbstractContextManager[None]:
        """Return the context in which no process removes the weights of a model."""
        return hub_cache.in_use(row, self.settings) if self._has_weights else contextlib.nullcontext()

    def _runner(
        self, number: int, models: ModelManager, settings: Settings, on_end: Callable[[], None] = lambda: None
    ) -> Runner:
        return Runner(
            self._scheduler,
            models,
            Limits.of(self.settings),
            target_sec=functools.partial(batch_target_sec, settings),
            name=str(number),
            on_batch=self._on_batch,
            on_end=on_end,
        )

    # Requests

    def _unit(self, state: RequestState, queue: Queue, source: Source, items: Sequence[Item], split: bool) -> Unit:
        """Return the source as ingest takes it. Ingest calls this when it is the source's turn."""

        def on_outcome(outcome: Decoded | AviaryError) -> None:
            if isinstance(outcome, AviaryError):
                state.fail(items, outcome)
            else:
                self._infer(state, queue, outcome, items)

        return Unit(source, on_outcome, state.future.cancelled, split)

    def _infer(self, state: RequestState, queue: Queue, decoded: Decoded, items: Iterable[Item]) -> None:
        """Run the audio, once for each segment and set of options, and release it when all of these are done."""
        state.add_seconds(fetch_sec=decoded.fetch_sec, decode_sec=decoded.decode_sec)
        groups: dict[tuple[Options, Part | None], list[Item]] = {}
        for item in items:
            groups.setdefault((item.options, item.segment), []).append(item)
        outputs: dict[tuple[Options, Part | None], Future[Output]] = {key: Future() for key in groups}
        when_all(outputs.values(), functools.partial(self._release, decoded, queue))
        for key, group in groups.items():
            output, (options, segment) = outputs[key], key
            clips = decoded.clips if segment is None else [cut(clip, *segment) for clip in decoded.clips]
            output.add_done_callback(functools.partial(state.finish, group, clips[0], channels=len(clips)))
            try:
                if not len(clips[0].samples):
                    state.meter.expect(group, 0.0)
                    raise EmptyAudio(f"the segment lies past the end of the audio, at {decoded.clip.duration_sec:g} s")
                self._run(state, channels.distinct(clips), options, group, output)
            except Exception as error:  # noqa: BLE001  every input gets an outcome
                fail(output, report(error))

    def _run(
        self,
        state: RequestState,
        clips: Mapping[int, Clip],
        options: Options,
        items: Sequence[Item],
        output: Future[Output],
    ) -> None:
        """Run the clips of the channels, or that of their mix. Raises TooLong if the mix is too long."""
        state.meter.expect(items, sum(clip.duration_sec for clip in clips.values()))

        def start(clip: Clip, output: Future[Output]) -> None:
            run = clip_run.start
            if speakers.is_needed(options):
                run = functools.partial(speakers.start, read=self._ingest.read)
            run(
                output,
                state,
                clip,
                options,
                items,
                settings=self.settings,
                submit=self._scheduler.submit,
                reports_text=len(clips) == 1,
            )

        if options.channels == "mix":
            start(clips[0], output)
            return
        parts: dict[int, Future[Output]] = {channel: Future() for channel in clips}
        when_all(parts.values(), functools.partial(channels.settle_merged, parts, output, clips[0].duration_sec))
        for channel, part in parts.items():
            try:
                start(clips[channel], part)
            except Exception as error:  # noqa: BLE001  the other channels have started
                fail(part, report(error))

    def _release(self, decoded: Decoded, queue: Queue) -> None:
        for clip in decoded.clips:
            self._ingest.release(clip, queue)

    def _on_done(self, request: Request, future: Future[Response]) -> None:
        if future.cancelled():
            self._ingest.drop_cancelled()
            self._scheduler.wake()
        else:
            self._on_response(request, future.result())

    def _on_examined(self, future: Future[T]) -> None:
        if future.cancelled():
            self._ingest.drop_cancelled()
