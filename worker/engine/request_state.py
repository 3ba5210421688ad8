"""The state of a request that runs: the outcomes of its inputs, collected in any order, and the text they generate.

    piece outcomes ──▶ WindowCollector ── output of the clip ──▶ RequestState ── Response ──▶ future
                                                                 ProgressMeter ──▶ on_progress
    generated text ──▶ TextStream ──▶ on_text

Thread-safe: outcomes arrive on the threads of ingest and of the devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from worker.engine import chunking
from worker.engine.piece_queue import PieceResult
from worker.engine.progress import ProgressMeter
from worker.errors import AviaryError
from worker.futures import fail, settle
from worker.types import (
    Analysis,
    Clip,
    Diarization,
    Embedding,
    Failure,
    Item,
    OnProgress,
    OnResult,
    OnText,
    Output,
    Request,
    Response,
    Result,
    Span,
    SpeakerTurn,
    Timing,
    Transcript,
    Turn,
    View,
)

log = logging.getLogger(__name__)

_numbers = itertools.count()  # of requests

T = TypeVar("T")
Timed = TypeVar("Timed", Span, SpeakerTurn)
Parts = list[tuple[float, Output]]  # where each window starts, in seconds, and its output


def new_turn(owner: str | None) -> Turn:
    """Return what the pieces of a new request of the owner have in common for the scheduler."""
    return Turn(owner, next(_numbers))


class RequestState:
    """The outcomes and the seconds of a request. `future` is set once every input has its outcome.

    `turn` is what its pieces have in common for the scheduler. `meter` counts what is done.

    on_result: called with each outcome, before the future is set. Its exceptions are logged.
    on_text: called with an input's index and each new part of its generated text. Its exceptions are logged.
    on_progress: as in ProgressMeter.
    closed: whether the engine is closed.
    """

    def __init__(
        self,
        request: Request,
        on_result: OnResult | None,
        on_text: OnText | None,
        on_progress: OnProgress | None = None,
        closed: Callable[[], bool] = lambda: False,
    ) -> None:
        self.future: Future[Response] = Future()
        self.meter = ProgressMeter(request.size, on_progress)
        self.request, self._on_result, self._on_text, self._closed = request, on_result, on_text, closed
        self.turn = new_turn(request.owner)
        self._started = time.monotonic()
        self._outcomes: dict[int, Result | Failure] = {}  # by index
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._made: dict[Hashable, Future[Any]] = {}  # of `once`
        self._making = threading.Lock()
        for failure in request.rejected:
            self._add(failure)
        if not request.size:
            self._set_future()

    def cancelled(self) -> bool:
        """Whether the work must stop, even on the device: the request was canceled, or the engine is closed."""
        return self.future.cancelled() or self._closed()

    def add_seconds(self, **seconds: float) -> None:
        """Add to the seconds that the request spent in stages, by the names of the fields of Timing."""
        with self._lock:
            for stage, value in seconds.items():
                self._seconds[stage] = self._seconds.get(stage, 0.0) + value

    def once(self, key: Hashable, make: Callable[[], Future[T]]) -> Future[T]:
        """Return the future that `make` returns the first time that the request calls this with the key."""
        with self._making:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]

    def text_stream(self, items: Sequence[Item]) -> TextStream | None:
        """Return what passes on the generated text of these inputs, or None if there is no listener."""
        return None if self._on_text is None else TextStream(self._on_text, items)

    def finish(self, items: Iterable[Item], clip: Clip, output: Future[Output], channels: int = 1) -> None:
        """Give these inputs, which share the audio and the options, the output or the error of a future that is done.

        clip: the audio, or the first of its channels, if there are several `channels`.
        """
        error = output.exception()
        if isinstance(error, AviaryError):
            self.fail(items, error)
            return
        for item in items:
            result = output.result()
            self._add(
                Result(
                    item,
                    round(clip.duration_sec, 3),
                    visible(result, item.view),
                    _warning(item, clip, result),
                    channels,
                )
            )

    def fail(self, items: Iterable[Item], error: AviaryError) -> None:
        """Give these inputs the error."""
        for item in items:
            self._add(Failure(item.index, error, item.id))

    def _add(self, outcome: Result | Failure) -> None:
        if self._on_result is not None and not self.future.cancelled():
            try:
                self._on_result(outcome)
            except Exception:
                log.exception("on_result failed")
        self.meter.end(outcome.index, _text(outcome))
        with self._lock:
            self._outcomes[outcome.index] = outcome
            is_complete = len(self._outcomes) == self.request.size
        if is_complete:
            self._set_future()

    def _set_future(self) -> None:
        timing = Timing(**self._seconds, total_sec=time.monotonic() - self._started)
        results = tuple(self._outcomes[index] for index in range(self.request.size))
        with contextlib.suppress(InvalidStateError):  # the request was canceled
            self.future.set_result(Response(self.request.model, results, timing))


def merge(parts: Parts) -> Output:
    """Return the output of the only window, or the merged transcripts of several."""
    return parts[0][1] if len(parts) == 1 else chunking.merge(parts)


class WindowCollector:
    """Merges the outcomes of a clip's windows into the future `output`.

    `output` is set when the last window is done: to the merged output, or to the error of the first window that failed.

    starts_sec: where each window starts in the clip.
    on_text: receives the text of the windows in order, each as soon as the windows before it are done.
    merge: makes the result of `output` from the starts and the outputs of the windows.
    """

    def __init__(
        self,
        state: RequestState,
        starts_sec: Sequence[float],
        output: Future[Any],
        on_text: Callable[[str], None] | None = None,
        merge: Callable[[Parts], Any] = merge,
    ) -> None:
        self._state, self._starts_sec, self._output, self._on_text = state, starts_sec, output, on_text
        self._merge = merge
        self._outcomes: list[Output | AviaryError | None] = [None] * len(starts_sec)
        self._missing = len(starts_sec)
        self._streamed = 0  # characters that `on_text` has received
        self._lock = threading.Lock()

    def add(self, number: int, outcome: PieceResult | AviaryError) -> None:
        """Record the outcome of a window, by its number."""
        if isinstance(outcome, PieceResult):
            self._state.add_seconds(queue_sec=outcome.queue_sec, model_sec=outcome.model_sec)
        with self._lock:
            self._outcomes[number] = outcome.output if isinstance(outcome, PieceResult) else outcome
            self._missing -= 1
            if self._on_text is not None:
                self._stream(self._on_text)
            if self._missing:
                return
        error = next((outcome for outcome in self._outcomes if isinstance(outcome, AviaryError)), None)
        if error is not None:
            fail(self._output, error)
        else:
            settle(self._output, self._merge(self._parts()))

    def _parts(self) -> Parts:
        """Return the start and the output of each window, up to the first that failed or is not done."""
        parts: Parts = []
        for start_sec, outcome in zip(self._starts_sec, self._outcomes, strict=True):
            if outcome is None or isinstance(outcome, AviaryError):
                break
            parts.append((start_sec, outcome))
        return parts

    def _stream(self, on_text: Callable[[str], None]) -> None:
        text = chunking.join([part.text for _, part in self._parts() if isinstance(part, Transcript)])
        if len(text) > self._streamed:
            on_text(text[self._streamed :])
            self._streamed = len(text)


class TextStream:
    """Passes on the generated text of inputs, each part once.

    The text of a batch that fails is generated again from its beginning. As many characters as the listener has
    received are then skipped.
    """

    def __init__(self, on_text: OnText, items: Sequence[Item]) -> None:
        self._on_text, self._items = on_text, items
        self._position = 0  # characters of the present generation
        self._passed_on = 0  # characters that the listener has received

    def write(self, text: str) -> None:
        """Pass on the part of the text that is new. Exceptions of the listener are logged."""
        new = text[max(0, self._passed_on - self._position) :]
        self._position += len(text)
        if not new:
            return
        self._passed_on = self._position
        for item in self._items:
            try:
                self._on_text(item.index, new)
            except Exception:
                log.exception("on_text failed")

    @property
    def has_written(self) -> bool:
        """Whether the listener has received text."""
        return self._passed_on > 0

    def restart(self) -> None:
        """Note that the text is generated from its beginning."""
        self._position = 0


def visible(output: Output, view: View) -> Output:
    """Return the output without the spans that the view leaves out, and with times in whole milliseconds.

    A request may have ten thousand results, which should not hold the times of every character.
    """
    if isinstance(output, Diarization):
        return Diarization(_rounded(output.turns))
    if not isinstance(output, Transcript):
        return output
    has_voices = any(span.speaker is not None or span.channel is not None for span in output.segments)
    is_timed = bool(view.timestamps) or view.format not in ("json", "text") or (view.format == "text" and has_voices)
    return dataclasses.replace(
        output,
        words=_rounded(output.words) if is_timed else (),
        segments=_rounded(output.segments) if is_timed else (),
        chars=_rounded(output.chars) if "char" in view.timestamps else (),
        tokens=output.tokens if view.confidence or view.include else (),
    )


def _rounded(spans: tuple[Timed, ...]) -> tuple[Timed, ...]:
    return tuple(dataclasses.replace(span, start=round(span.start, 3), end=round(span.end, 3)) for span in spans)


def _text(outcome: Result | Failure) -> str | None:
    """Return the transcript of an input, if it has one."""
    if isinstance(outcome, Result) and isinstance(outcome.output, Transcript):
        return outcome.output.text
    return None


def _warning(item: Item, clip: Clip, output: Output) -> str | None:
    """Return what may be wrong with the options, with the audio and with its text."""
    text = output.caption if isinstance(output, Analysis) else output
    of_text = None if isinstance(text, Embedding | Diarization) else text.warning
    return "; ".join(filter(None, (item.warning, clip.warning, of_text))) or None
