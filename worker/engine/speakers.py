"""A clip with `diarize` → its transcript with speakers. A clip with known speakers → its turns with their names.

    clip ──┬── ClipRun, with the times of words ──▶ transcript ──┬── assign ──▶ transcript with speakers
           └── one piece for DIARIZER, the whole clip ──▶ turns ──┘
                          with the names of known speakers, if the request has references

Both are queued at once, so they run at the same time if there is a device for each. The diarizer takes the whole clip,
even if the transcriber takes windows, so that a speaker has one name from the beginning to the end.

A diarizer that fails costs no transcript: the speakers are then None, and the transcript's warning says why.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from worker import catalog
from worker.config import Settings
from worker.engine import clip_run, known_speakers
from worker.engine.clip_run import Submit
from worker.engine.known_speakers import Read
from worker.engine.piece_queue import PieceResult
from worker.engine.request_state import RequestState
from worker.engine.speaker_words import assign
from worker.errors import AviaryError, TooLong
from worker.futures import into, settle, when_all
from worker.types import Clip, Diarization, Item, Options, Output, Piece, Transcript

Turns = Diarization | AviaryError


def is_needed(options: Options) -> bool:
    """Return whether a request requires more than the transcript or the turns that one model returns."""
    return options.diarize or bool(options.known_speaker_names)


def transcriber_options(options: Options) -> Options:
    """Return the options of the transcript without speakers: with the times of the words, which speakers require."""
    return dataclasses.replace(_unnamed(options), diarize=False, num_speakers=None, max_speakers=None, timestamps=True)


def diarizer_options(options: Options, settings: Settings) -> Options:
    """Return the options of the diarizer. Raises ModelNotFound if DIARIZER is no model."""
    return Options(
        catalog.find(settings.diarizer, settings.places).id,
        task="diarize",
        num_speakers=options.num_speakers,
        max_speakers=options.max_speakers,
        known_speaker_names=options.known_speaker_names,
        known_speaker_references=options.known_speaker_references,
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
    read: Read,
) -> None:
    """Queue the pieces of a clip and the piece of its diarizer. `output` is set when all are done.

    `read` returns the audio of a reference. The other arguments are those of `clip_run.start`. Raises TooLong, and
    InputError for a reference.
    """
    of_turns = diarizer_options(options, settings) if options.diarize else options
    row = catalog.find(of_turns.model, settings.places)
    references = known_speakers.start(state, of_turns, of_turns.model, read=read, submit=submit)
    turns: Future[Turns] = Future()
    named: Future[Turns] = Future()
    when_all((turns, *references), functools.partial(_name, named, turns, of_turns, references))
    if not options.diarize:
        _diarize(turns, state, clip, of_turns, row, submit, state.cancelled)
        named.add_done_callback(into(output, functools.partial(_settle, output)))
        return
    transcript: Future[Output] = Future()
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
    # The audio is released when `output` is set, so even a failure waits for the diarizer.
    when_all((transcript, named), functools.partial(_finish, output, transcript, named))
    _diarize(turns, state, clip, of_turns, row, submit, lambda: state.cancelled() or _failed(transcript))


def _unnamed(options: Options) -> Options:
    return dataclasses.replace(options, known_speaker_names=(), known_speaker_references=())


def _diarize(
    turns: Future[Turns],
    state: RequestState,
    clip: Clip,
    options: Options,
    row: catalog.Model,
    submit: Submit,
    cancelled: Callable[[], bool],
) -> None:
    """Queue the whole clip for the diarizer, or set `turns` to the error if the clip is too long for it."""
    try:
        clip_run.check_length(clip, options.task, row)
    except TooLong as error:
        settle(turns, error)
        return
    piece = Piece(clip, _unnamed(options), time.monotonic(), state.request.background, cancelled, turn=state.turn)
    submit(piece, functools.partial(_end, state, turns))


def _name(named: Future[Turns], turns: Future[Turns], options: Options, references: Sequence[Future[Turns]]) -> None:
    """Set the turns with the names of the known speakers."""
    found = turns.result()
    if isinstance(found, Diarization) and references:
        found = known_speakers.named(found, options.known_speaker_names, [one.result() for one in references])
    settle(named, found)


def _settle(output: Future[Output], turns: Turns) -> None:
    if isinstance(turns, AviaryError):
        raise turns
    settle(output, turns)


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
