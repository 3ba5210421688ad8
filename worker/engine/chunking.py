"""A long clip → windows that a model can hear, and their transcripts → one.

`cut` ends each window where it is quietest, so that no word is cut and nothing is heard twice: there is no overlap,
and so nothing to merge but texts and times. Pure functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from worker.types import SAMPLE_RATE, Output, Span, Transcript

FRAME = SAMPLE_RATE // 50  # 20 ms
PAUSE_FRAMES = 15  # a pause between words is looked for over 0.3 s
SEARCH = 0.5  # the part of a window, at its end, in which to cut
_NO_SPACES = (
    ("\u3000", "\u9fff"),
    ("\uff01", "\uff60"),
)  # of Chinese and Japanese; their wide ？ and ！ are the latter


def split(samples: np.ndarray, window_sec: float) -> list[tuple[int, int]]:
    """Windows of at most `window_sec`, as (start, end) in samples, that together are the whole clip in order."""
    longest = int(window_sec * SAMPLE_RATE)
    if len(samples) <= longest:
        return [(0, len(samples))]
    loudness = _loudness(samples)
    spans, start = [], 0
    while len(samples) - start > longest:
        earliest, latest = (start + int(longest * (1 - SEARCH))) // FRAME, (start + longest) // FRAME
        searched = loudness[earliest:latest]
        quiet = np.flatnonzero(searched <= searched.min() * 1.5 + 1e-9)
        end = (earliest + int(quiet[-1])) * FRAME + FRAME // 2  # of equally quiet places the last: fewer windows
        spans.append((start, end))
        start = end
    return [*spans, (start, len(samples))]


def merge(parts: Sequence[tuple[float, Output]]) -> Transcript:
    """One transcript of the windows' own, each given with its start in seconds."""
    transcripts = [(start, output) for start, output in parts if isinstance(output, Transcript)]
    languages = Counter(one.language for _, one in transcripts if one.language and one.text)
    counts = [one.tokens_generated for _, one in transcripts if one.tokens_generated is not None]
    return Transcript(
        text=_text([one.text for _, one in transcripts]),
        words=_moved(transcripts, "words"),
        segments=_moved(transcripts, "segments"),
        chars=_moved(transcripts, "chars"),
        language=languages.most_common(1)[0][0] if languages else transcripts[0][1].language,
        tokens_generated=sum(counts) if counts else None,
    )


def _loudness(samples: np.ndarray) -> np.ndarray:
    """Mean square around each frame of 20 ms, over PAUSE_FRAMES frames."""
    count = len(samples) // FRAME
    frames = samples[: count * FRAME].reshape(count, FRAME)
    energy = np.einsum("ij,ij->i", frames, frames) / FRAME
    padded = np.pad(energy, PAUSE_FRAMES // 2, mode="edge")
    return np.convolve(padded, np.full(PAUSE_FRAMES, 1 / PAUSE_FRAMES), mode="valid")


def _text(texts: Sequence[str]) -> str:
    joined = ""
    for text in filter(None, (text.strip() for text in texts)):
        unspaced = joined and all(
            any(low <= char <= high for low, high in _NO_SPACES) for char in (joined[-1], text[0])
        )
        joined += text if not joined or unspaced else f" {text}"
    return joined


def _moved(parts: Sequence[tuple[float, Transcript]], name: str) -> tuple[Span, ...]:
    return tuple(
        Span(span.text, start + span.start, start + span.end)
        for start, transcript in parts
        for span in getattr(transcript, name)
    )
