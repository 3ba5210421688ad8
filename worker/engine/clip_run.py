"""One clip with one set of options → pieces for the devices → one output.

    short clip ── one piece ──▶ output
    long clip ── windows, or whole ──▶ transcripts ──▶ speech without words ── its pieces ──▶ transcripts ──▶ output

A clip is long if it is longer than the model's window, or than chunking.WINDOW_SEC for a model that accepts any length.
A long clip that is too large for the device as a whole is transcribed in windows.
In a long clip, speech is detected on the caller's thread. Speech that the transcript has no words for is transcribed
again, alone and once. What is still without words is named in the transcript's warning.

With `condition_on_previous_text`, each window waits for the window before it, whose text is its prompt.

If the text has been streamed, nothing can be put into it any more: speech without words is then only named.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from worker import catalog
from worker.backends.common import vad
from worker.config import Settings
from worker.engine import chunking, gaps
from worker.engine.gaps import Times, Window
from worker.engine.piece_queue import OnOutcome, PieceResult
from worker.engine.request_state import Parts, RequestState, WindowCollector
from worker.errors import AviaryError, Cancelled, OutOfMemory, TooLong
from worker.faults import report
from worker.futures import into, settle
from worker.types import SAMPLE_RATE, Clip, Item, Options, Output, Piece, Task, Transcript

log = logging.getLogger(__name__)

GUESSED = 0.5  # the temperature above which OpenAI's Whisper does not continue a text
Samples = tuple[int, int]  # the start and the end of a window, in samples


Submit = Callable[[Piece, OnOutcome], None]
"""Queues a piece for the devices."""


def start(
    output: Future[Output],
    state: RequestState,
    clip: Clip,
    options: Options,
    items: Sequence[Item],
    *,
    settings: Settings,
    submit: Submit,
    reports_text: bool = True,
) -> None:
    """Queue the pieces of a clip. `output` is set when the last of them is done. Raises TooLong.

    The arguments are those of `ClipRun`.
    """
    run = ClipRun(state, clip, options, items, settings=settings, submit=submit, reports_text=reports_text)
    run.start(output)


def check_length(clip: Clip, task: Task, row: catalog.Model) -> None:
    """Raise TooLong if the model does not accept a clip of this length for the task."""
    if task not in ("transcribe", "translate", "embed") and row.max_sec and clip.duration_sec > row.max_sec:
        raise TooLong(
            f"{clip.duration_sec:.1f} s is longer than the {row.max_sec:g} s that {row.id} accepts for one {task}"
        )


class ClipRun:
    """The pieces of a clip for one set of options.

    items: the inputs of the request that have this clip and these options.
    submit: queues a piece for the devices.
    reports_text: whether the text may be passed on before the output is set. That of one of several channels may not.
    """

    def __init__(
        self,
        state: RequestState,
        clip: Clip,
        options: Options,
        items: Sequence[Item],
        *,
        settings: Settings,
        submit: Submit,
        reports_text: bool = True,
    ) -> None:
        self._state, self._clip, self._items, self._submit = state, clip, items, submit
        self._row = catalog.find(options.model, settings.places)
        self._conditions = options.condition_on_previous_text
        # Pieces of each kind share batches.
        self._options = dataclasses.replace(options, long_audio=None, condition_on_previous_text=False, channels="mix")
        self._reports_text = reports_text
        self._stream = state.text_stream(items) if reports_text else None
        self._order = time.monotonic()
        self._transcribes = options.task in ("transcribe", "translate")
        self._in_windows = bool(self._row.window_sec) or (options.long_audio or settings.long_audio) == "windows"
        self._window_sec = self._row.window_sec or chunking.WINDOW_SEC
        self._warning: str | None = None
        self._detects_speech = settings.detect_speech and self._row.timestamps and vad.is_available()
        self._speech: list[Times] | None = None  # the spans of speech, once they are searched

    def start(self, output: Future[Output]) -> None:
        """Queue the pieces. `output` is set when the last of them is done. Raises TooLong."""
        check_length(self._clip, self._options.task, self._row)
        if not self._transcribes or self._clip.duration_sec <= self._window_sec:
            collector = WindowCollector(self._state, [0.0], output)
            self._submit_whole(functools.partial(collector.add, 0))
        else:
            self._start_long(output)

    def _start_long(self, output: Future[Output]) -> None:
        if self._in_windows:
            self._search_speech()
            self._start_windows(output)
            return
        whole: Future[Parts] = Future()
        whole.add_done_callback(into(output, lambda _parts: None))  # a failure does not wait for the search for speech
        collector = WindowCollector(self._state, [0.0], whole, merge=list)
        self._submit_whole(functools.partial(self._end_whole, collector, whole))
        self._search_speech()  # while the device transcribes
        whole.add_done_callback(into(output, functools.partial(self._check_whole, output)))

    def _end_whole(self, collector: WindowCollector, whole: Future[Parts], outcome: PieceResult | AviaryError) -> None:
        """Record the outcome of the whole clip: no part if the clip is too large for the device."""
        if isinstance(outcome, OutOfMemory):
            settle(whole, [])
        else:
            collector.add(0, outcome)

    def _check_whole(self, output: Future[Output], parts: Parts) -> None:
        """Check the transcript of the whole clip, or transcribe the clip in windows if there is no transcript."""
        if parts:
            self._check_words(output, [(0, len(self._clip.samples))], parts)
            return
        log.warning(
            "out of memory with a clip of %.0f s as a whole, so it is transcribed in windows; "
            "set LONG_AUDIO=windows to avoid the failed attempt",
            self._clip.duration_sec,
        )
        if self._stream is not None:
            self._stream.restart()
        self._start_windows(output)

    def _start_windows(self, output: Future[Output]) -> None:
        windows = chunking.split(self._clip.samples, self._window_sec, self._speech or ())
        first: Future[Parts] = Future()
        first.add_done_callback(into(output, functools.partial(self._check_words, output, windows)))
        collector = WindowCollector(self._state, _starts(windows), first, self._text_listener(), list)
        if self._conditions:
            self._submit_next(windows, 0, "", collector)
        else:
            for number, window in enumerate(windows):
                self._submit(self._piece(window), functools.partial(self._end_window, collector, number, window))

    def _text_listener(self) -> Callable[[str], None] | None:
        """Return what receives the text of the windows in order, or None if there is no listener."""
        meter, stream = self._state.meter, self._stream
        if not (meter.is_watched and self._reports_text):
            return stream.write if stream else None

        def listen(text: str) -> None:
            meter.add_text(self._items, text)
            if stream:
                stream.write(text)

        return listen

    def _end_window(
        self, collector: WindowCollector, number: int, window: Samples, outcome: PieceResult | AviaryError
    ) -> None:
        """Record the outcome of a window."""
        start, end = window
        self._state.meter.advance(self._items, (end - start) / SAMPLE_RATE)
        collector.add(number, outcome)

    def _submit_whole(self, on_outcome: OnOutcome) -> None:
        piece = self._piece((0, len(self._clip.samples)))
        if self._stream is not None:
            piece = dataclasses.replace(piece, on_text=self._stream.write, begins=self._stream.restart)
        self._submit(piece, on_outcome)

    def _submit_next(self, windows: list[Samples], number: int, before: str, collector: WindowCollector) -> None:
        """Queue a window with the text before it as its prompt, and then the windows after it."""

        def on_outcome(outcome: PieceResult | AviaryError) -> None:
            self._end_window(collector, number, windows[number], outcome)
            if isinstance(outcome, AviaryError):
                for later in range(number + 1, len(windows)):
                    collector.add(later, outcome)
            elif number + 1 < len(windows):
                self._submit_next(windows, number + 1, _prompt(outcome.output), collector)

        piece = self._piece(windows[number])
        prompt = f"{self._options.prompt or ''} {before}".strip()
        self._submit(
            dataclasses.replace(piece, options=dataclasses.replace(self._options, prompt=prompt or None)), on_outcome
        )

    def _piece(self, window: Samples) -> Piece:
        start, end = window
        is_whole = end - start == len(self._clip.samples)
        clip = self._clip if is_whole else Clip(self._clip.samples[start:end])
        state = self._state
        return Piece(
            clip,
            self._options,
            self._order,
            state.request.background,
            state.cancelled,
            turn=state.turn,
            speech=None if self._speech is None else _within(self._speech, start / SAMPLE_RATE, end / SAMPLE_RATE),
        )

    def _search_speech(self) -> None:
        """Find the spans of speech, unless they are not to be detected. A failure becomes a warning."""
        if not self._detects_speech:
            return
        try:
            self._speech = vad.speech(self._clip.samples, self._state.cancelled)
        except Cancelled:
            return
        except Exception as error:  # noqa: BLE001  the transcript is worth more than its check
            reason = report(error, during="the search for speech").message
            self._warning = f"Speech that the transcript has no words for was not searched: {reason}"

    def _check_words(self, output: Future[Output], windows: list[Samples], parts: Parts) -> None:
        """Transcribe the speech without words again, or set the output if there is none."""
        transcripts = _windows(windows, parts)
        again = [
            (start + begin, start + end)
            for start, stop in _samples(gaps.find(transcripts, self._speech or ()))
            for begin, end in chunking.split(self._clip.samples[start:stop], self._window_sec)
        ]
        if not again or (self._stream and self._stream.has_written):
            settle(output, self._merge(transcripts, []))
            return
        second: Future[Parts] = Future()
        collector = WindowCollector(self._state, _starts(again), second, merge=list)
        second.add_done_callback(into(output, functools.partial(self._repair, output, transcripts, again)))
        for number, window in enumerate(again):
            self._submit(self._piece(window), functools.partial(_add, collector, number))

    def _repair(self, output: Future[Output], transcripts: list[Window], again: list[Samples], parts: Parts) -> None:
        settle(output, self._merge(transcripts, _windows(again, parts)))

    def _merge(self, transcripts: list[Window], repairs: list[Window]) -> Transcript:
        merged = gaps.merge(transcripts, repairs, self._speech or ())
        return dataclasses.replace(merged, warning="; ".join(filter(None, (merged.warning, self._warning))) or None)


def _add(collector: WindowCollector, number: int, outcome: PieceResult | AviaryError) -> None:
    """Record the outcome of a second transcription, which is empty if it failed. The runner reports the failure."""
    collector.add(number, PieceResult(Transcript(""), 0.0, 0.0) if isinstance(outcome, AviaryError) else outcome)


def _prompt(output: Output) -> str:
    """Return the text that the next window continues: none if the model was so unsure that it had to guess."""
    if not isinstance(output, Transcript):
        return ""
    return "" if (output.temperature or 0.0) > GUESSED else output.text


def _starts(windows: Sequence[Samples]) -> list[float]:
    return [start / SAMPLE_RATE for start, _end in windows]


def _windows(windows: Sequence[Samples], parts: Parts) -> list[Window]:
    """Return the windows of the transcripts."""
    return [
        Window(start / SAMPLE_RATE, end / SAMPLE_RATE, output)
        for (start, end), (_start_sec, output) in zip(windows, parts, strict=True)
        if isinstance(output, Transcript)
    ]


def _within(speech: Sequence[Times], start: float, end: float) -> tuple[Times, ...]:
    """Return the parts of the spans between two times, in seconds from the first of them."""
    return tuple(
        (max(0.0, first - start), min(last, end) - start) for first, last in speech if first < end and last > start
    )


def _samples(spans: Sequence[Times]) -> list[Samples]:
    return [(int(start * SAMPLE_RATE), int(end * SAMPLE_RATE)) for start, end in spans]
