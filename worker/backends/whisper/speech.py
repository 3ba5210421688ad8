"""Samples of a window → the samples without long pauses, and times that map back.

    window   ──── speech ──────────── long pause ──────────── speech ────
    cut      ──── speech ──────────── speech ────

Whisper writes text into long silence and loses its place after it. The decoder therefore never gets a pause that is
much longer than twice `PAD_SEC`, and a window without speech has no text at all. Without the detector's weights, the
windows stay whole.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from worker.backends.common import vad
from worker.types import SAMPLE_RATE, Piece, Span

LONG_PAUSE_SEC = 2.0
PAD_SEC = 0.4  # of a long pause, kept beside the speech: quiet consonants that the detector leaves out
ROUNDING_SEC = 1e-6

AnySpan = TypeVar("AnySpan", bound=Span)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """What is left of a window: `samples`, and the start and end in seconds that each part has in the window."""

    samples: np.ndarray
    parts: tuple[tuple[float, float], ...]

    def restore(self, span: AnySpan) -> AnySpan:
        """Return the span with times in the window."""
        start, end = self._time(span.start, at_end=False), self._time(span.end, at_end=True)
        return dataclasses.replace(span, start=start, end=max(start, end))

    def restore_word(self, word: Span) -> Span:
        """Return the word with times in the window. A word on both sides of a cut is where more of it is."""
        before, best, longest = 0.0, (word.start, word.end), -1.0
        for start, end in self.parts:
            after = before + end - start
            inside = min(word.end, after) - max(word.start, before)
            if inside > longest:
                shift = start - before
                best, longest = (max(word.start, before) + shift, min(word.end, after) + shift), inside
            before = after
        return dataclasses.replace(word, start=best[0], end=max(best))

    def _time(self, time: float, *, at_end: bool) -> float:
        """Return the time in the window. A time at a cut is the end of a part for the end of a span, else a start."""
        before = 0.0
        for start, end in self.parts:
            after = before + end - start
            if time < after - ROUNDING_SEC or (at_end and time <= after + ROUNDING_SEC):
                return start + time - before
            before = after
        return self.parts[-1][1]


def cut_all(pieces: Sequence[Piece], detects: bool = True) -> list[Cut | None]:
    """Return what `cut` returns for each piece, or whole pieces if speech is not to be detected.

    The detector runs in one thread, so pieces share the cores.
    """
    if not detects:
        return [whole(piece.clip.samples) for piece in pieces]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(cores, len(pieces)) or 1) as threads:
        return list(threads.map(lambda piece: cut(piece.clip.samples, piece.speech), pieces))


def whole(samples: np.ndarray) -> Cut:
    """Return all of the window. `samples` has shape (samples,)."""
    return Cut(samples, ((0.0, len(samples) / SAMPLE_RATE),))


def cut(samples: np.ndarray, speech: Sequence[tuple[float, float]] | None = None) -> Cut | None:
    """Return the window without its long pauses, or None if it has no speech.

    `samples` has shape (samples,). `speech`: the spans, in seconds, that contain speech, if they are known.
    """
    if speech is None:
        if not vad.is_available():
            return whole(samples)
        speech = vad.speech(samples)
    return keep(samples, speech) if speech else None


def keep(samples: np.ndarray, speech: Sequence[tuple[float, float]]) -> Cut:
    """Return the window without the long pauses around `speech`, the spans in seconds that contain speech."""
    length = len(samples) / SAMPLE_RATE
    parts = [[0.0, 0.0]]
    for start, end in [*speech, (length, length)]:
        if start - parts[-1][1] > LONG_PAUSE_SEC:
            parts[-1][1] += PAD_SEC
            parts.append([start - PAD_SEC, start])
        parts[-1][1] = end
    if speech[0][0] > LONG_PAUSE_SEC:
        del parts[0]
    if length - speech[-1][1] > LONG_PAUSE_SEC:
        del parts[-1]
    if len(parts) == 1 and parts[0] == [0.0, length]:
        return whole(samples)
    # Whole samples, so that the times of the parts are those of the samples that are kept.
    places = [(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)) for start, end in parts]
    kept = np.concatenate([samples[start:end] for start, end in places])
    return Cut(kept, tuple((start / SAMPLE_RATE, end / SAMPLE_RATE) for start, end in places))
