"""A long clip → windows that a model accepts, and the windows' transcripts → one transcript. Pure functions.

Each window ends where the clip is quietest, in a pause of the speech if the pauses are known, so that no word is cut.
The windows do not overlap, so their transcripts are merged by joining the texts and shifting the times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from worker.types import SAMPLE_RATE, Clip, Output, Span, Transcript

FRAME = SAMPLE_RATE // 50  # samples: 20 ms
PAUSE_FRAMES = 15  # loudness is averaged over 0.3 s, which is about a pause between words
WINDOW_SEC = 30.0  # the longest window of a model that accepts any length
SEARCH = 0.5  # the part of a window, at its end, in which it may end
# Unicode ranges of scripts without spaces between words: Thai and Lao; Burmese; Chinese and Japanese; full-width
# punctuation.
_NO_SPACES = (("\u0e00", "\u0eff"), ("\u1000", "\u109f"), ("\u3000", "\u9fff"), ("\uff01", "\uff60"))


def split(samples: np.ndarray, window_sec: float, speech: Sequence[tuple[float, float]] = ()) -> list[tuple[int, int]]:
    """Return windows of at most `window_sec` seconds that make up the whole clip, in order.

    Each window is (start, end) in samples. `samples` is float32 of shape (samples,), 16 kHz. `speech`: the spans, in
    seconds, that contain speech, if they are known. A window ends outside of them if it can.
    """
    longest = int(window_sec * SAMPLE_RATE)
    if len(samples) <= longest:
        return [(0, len(samples))]
    loudness = _loudness(samples)
    is_pause = _pauses(len(loudness), speech)
    windows, start = [], 0
    while len(samples) - start > longest:
        earliest, latest = (start + int(longest * (1 - SEARCH))) // FRAME, (start + longest) // FRAME
        frames = np.arange(earliest, latest)
        frames = frames[is_pause[frames]] if is_pause[frames].any() else frames
        quiet = frames[loudness[frames] <= loudness[frames].min() * 1.5 + 1e-9]
        end = int(quiet[-1]) * FRAME + FRAME // 2  # the last of equally quiet frames: fewer windows
        windows.append((start, end))
        start = end
    return [*windows, (start, len(samples))]


def cut(clip: Clip, start_sec: float, length_sec: float | None) -> Clip:
    """Return the part of a clip. It is shorter than `length_sec`, or empty, if the clip ends before."""
    start = round(start_sec * SAMPLE_RATE)
    end = None if length_sec is None else start + max(1, round(length_sec * SAMPLE_RATE))
    return replace(clip, samples=clip.samples[start:end])


def merge(parts: Sequence[tuple[float, Output]]) -> Transcript:
    """Return one transcript from those of the windows, each given with the window's start in seconds."""
    transcripts = [(start, output) for start, output in parts if isinstance(output, Transcript)]
    languages = Counter(part.language for _, part in transcripts if part.language and part.text)
    warnings = dict.fromkeys(part.warning for _, part in transcripts if part.warning)
    reasons = [part.finish_reason for _, part in transcripts]
    counts = [part.tokens_generated for _, part in transcripts if part.tokens_generated is not None]
    return Transcript(
        text=join([part.text for _, part in transcripts]),
        words=_shift(transcripts, "words"),
        segments=_shift(transcripts, "segments"),
        chars=_shift(transcripts, "chars"),
        tokens=tuple(token for _, part in transcripts for token in part.tokens),
        language=languages.most_common(1)[0][0] if languages else transcripts[0][1].language,
        tokens_generated=sum(counts) if counts else None,
        warning="; ".join(warnings) or None,
        finish_reason="length" if "length" in reasons else next(filter(None, reasons), None),
    )


def _loudness(samples: np.ndarray) -> np.ndarray:
    """Return the mean square around each frame of 20 ms, averaged over PAUSE_FRAMES frames."""
    count = len(samples) // FRAME
    frames = samples[: count * FRAME].reshape(count, FRAME)
    energy = np.einsum("ij,ij->i", frames, frames) / FRAME
    padded = np.pad(energy, PAUSE_FRAMES // 2, mode="edge")
    return np.convolve(padded, np.full(PAUSE_FRAMES, 1 / PAUSE_FRAMES), mode="valid")


def _pauses(frames: int, speech: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return whether each frame lies outside of the spans of speech."""
    is_pause = np.ones(frames, bool)
    for start_sec, end_sec in speech:
        is_pause[int(start_sec * SAMPLE_RATE / FRAME) : int(end_sec * SAMPLE_RATE / FRAME) + 1] = False
    return is_pause


def join(texts: Sequence[str]) -> str:
    """Join the texts with spaces, except between characters of scripts that have none."""
    joined = ""
    for text in filter(None, (text.strip() for text in texts)):
        needs_space = joined and not (_is_unspaced(joined[-1]) and _is_unspaced(text[0]))
        joined += f" {text}" if needs_space else text
    return joined


def _is_unspaced(char: str) -> bool:
    return any(low <= char <= high for low, high in _NO_SPACES)


def _shift(parts: Sequence[tuple[float, Transcript]], name: str) -> tuple[Span, ...]:
    """Return the spans of all windows, with times from the start of the clip."""
    return tuple(
        replace(span, start=start + span.start, end=start + span.end)
        for start, transcript in parts
        for span in getattr(transcript, name)
    )
