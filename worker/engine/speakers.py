"""A clip with `diarize` → its transcript with speakers.

    clip ──┬── ClipRun, with the times of words ──▶ transcript ──┬── assign ──▶ transcript with speakers
           └── one piece for DIARIZER, the whole clip ──▶ turns ──┘

Both are queued at once, so they run at the same time if there is a device for each. The diarizer takes the whole clip,
even if the transcriber takes windows, so that a speaker has one name from the beginning to the end.

A diarizer that fails costs no transcript: the speakers are then None, and the transcript's warning says why.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from concurrent.futures import Future

from worker import catalog
from worker.config import Settings
from worker.engine import clip_run
from worker.engine.clip_run import Submit
from worker.engine.piece_queue import PieceResult
from worker.engine.request_state import RequestState
from worker.engine.speaker_words import assign
from worker.errors import AviaryError
from worker.futures import into, settle, when_all
from worker.types import Clip, Diarization, Item, Options, Output, Piece, Transcript

Turns = Diarization | AviaryError


def transcriber_options(options: Options) -> Options:
    """Return the options of the transcript without speakers: with the times of the words, which speakers require."""
    return dataclasses.replace(options, diarize=False, num_speakers=None, max_speakers=None, timestamps=True)


def diarizer_options(options: Options, settings: Settings) -> Options:
    """Return the options of the diarizer. Raises ModelNotFound if DIARIZER is no model."""
    return Options(
        catalog.find(settings.diarizer, settings.places).id,
        task="diarize",
        num_speakers=options.num_speakers,
        max_speakers=options.max_speakers,
    )


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
    """Queue the pieces of a clip and the piece of its diarizer. `output` is set when all are done.

    The arguments are those of `clip_run.start`. Raises TooLong.
    """
    transcript: Future[Output] = Future()
    turns: Future[Turns] = Future()
    clip_run.start(
        transcript,
        state,
        clip,
        transcriber_options(options),
        items,
        settings=settings,
        submit=submit,
        reports_text=reports_text,
    )
    piece = Piece(
        clip,
        diarizer_options(options, settings),
        time.monotonic(),
        state.request.background,
        lambda: state.cancelled() or _failed(transcript),
        turn=state.turn,
    )
    submit(piece, functools.partial(_end, state, turns))
    # The audio is released when `output` is set, so even a failure waits for the diarizer.
    when_all((transcript, turns), functools.partial(_finish, output, transcript, turns))


def _failed(transcript: Future[Output]) -> bool:
    """Whether no speakers are needed, because there is no transcript."""
    return transcript.done() and transcript.exception() is not None


def _end(state: RequestState, turns: Future[Turns], outcome: PieceResult | AviaryError) -> None:
    """Record the outcome of the diarizer."""
    if isinstance(outcome, AviaryError):
        settle(turns, outcome)
        return
    state.add_seconds(queue_sec=outcome.queue_sec, model_sec=outcome.model_sec)
    assert isinstance(outcome.output, Diarization)
    settle(turns, outcome.output)


def _finish(output: Future[Output], transcript: Future[Output], turns: Future[Turns]) -> None:
    """Set the output when transcript and turns are done."""

    def add_speakers(text: Output) -> None:
        assert isinstance(text, Transcript)
        settle(output, _with_speakers(text, turns.result()))

    transcript.add_done_callback(into(output, add_speakers))


def _with_speakers(transcript: Transcript, turns: Turns) -> Transcript:
    """Return the transcript with speakers, or with a warning that says why there are none."""
    if isinstance(turns, Diarization):
        return assign(transcript, turns.turns)
    warning = f"The speakers are not known: {turns.message}"
    return dataclasses.replace(transcript, warning="; ".join(filter(None, (transcript.warning, warning))))
