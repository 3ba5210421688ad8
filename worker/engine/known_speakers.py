"""Clips of known voices → their names in place of `Speaker 1`, `Speaker 2` …

    reference clips ── the diarizer, once a request ──▶ voices ──┐
    clip ── the diarizer ──▶ turns and voices ───────────────────┴── most similar, if similar enough ──▶ names

A voice is the mean embedding of what a speaker says. A speaker gets the name of the most similar reference, if the
cosine of the angle between their voices is at least SIMILAR. Two speakers may get one name: then they are one voice.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from worker.engine.clip_run import Submit
from worker.engine.piece_queue import PieceResult
from worker.engine.request_state import RequestState
from worker.errors import AviaryError, InputError
from worker.futures import settle
from worker.types import SAMPLE_RATE, Clip, Diarization, Options, Piece, Source

SIMILAR = 0.7
"""Of four synthetic voices, 2 to 10 s of a voice have a similarity of 0.84 to 0.97 to 30 s of the same voice, and of
0.47 to 0.66 to 30 s of another one."""
SHORTEST_SEC, LONGEST_SEC = 2.0, 10.0  # of a reference, as OpenAI documents them
TOLERANCE_SEC = 0.1  # a recorder or an encoder may add a frame or lose one
_FIELD = "known_speaker_references"

Found = Diarization | AviaryError
Read = Callable[[Source, float], Clip]
"""Returns the audio of a source of at most so many seconds. Raises InputError."""


def start(
    state: RequestState, options: Options, diarizer: str, *, read: Read, submit: Submit
) -> tuple[Future[Found], ...]:
    """Queue the references of a request that are not queued yet, and return what is found in each.

    Raises InputError if a reference cannot be read, or is too short or too long.
    """
    of_voice = Options(diarizer, task="diarize", num_speakers=1)

    def queue(reference: str, place: str) -> Future[Found]:
        found: Future[Found] = Future()
        piece = Piece(
            _clip(reference, place, read),
            of_voice,
            time.monotonic(),
            state.request.background,
            state.cancelled,
            turn=state.turn,
        )
        submit(piece, functools.partial(_end, found))
        return found

    return tuple(
        state.once((_FIELD, reference), functools.partial(queue, reference, f"{_FIELD}[{number}]"))
        for number, reference in enumerate(options.known_speaker_references)
    )


def named(found: Diarization, names: Sequence[str], references: Sequence[Found]) -> Found:
    """Return the turns with the names of the known speakers, or the error of a reference without a voice."""
    known: list[np.ndarray] = []
    for number, reference in enumerate(references):
        if isinstance(reference, AviaryError):
            return InputError(f"{_FIELD}[{number}]: {reference.message}", param=_FIELD)
        if not reference.voices:
            return InputError(
                f"{_FIELD}[{number}] contains no speech. Use a clip of the speaker's voice.", param=_FIELD
            )
        known.append(reference.voices[0].vector)
    name_of: dict[str, str] = {}
    for speaker, voice in found.voices:
        similar = [float(voice @ other) for other in known]
        best = int(np.argmax(similar))
        if similar[best] >= SIMILAR:
            name_of[speaker] = names[best]
    turns = tuple(dataclasses.replace(turn, speaker=name_of.get(turn.speaker, turn.speaker)) for turn in found.turns)
    return dataclasses.replace(found, turns=turns)


def _clip(reference: str, place: str, read: Read) -> Clip:
    try:
        clip = read(Source("data", reference), LONGEST_SEC + TOLERANCE_SEC)
    except InputError as error:
        raise InputError(f"{place}: {error.message}", param=_FIELD) from error
    if len(clip.samples) < (SHORTEST_SEC - TOLERANCE_SEC) * SAMPLE_RATE:
        raise InputError(
            f"{place} lasts {clip.duration_sec:.1f} s. Use a clip of {SHORTEST_SEC:g} to {LONGEST_SEC:g} s.",
            param=_FIELD,
        )
    return clip


def _end(found: Future[Found], outcome: PieceResult | AviaryError) -> None:
    if isinstance(outcome, AviaryError):
        settle(found, outcome)
        return
    assert isinstance(outcome.output, Diarization)
    settle(found, outcome.output)
