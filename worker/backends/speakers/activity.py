"""How probably each speaker talks in each frame → turns. Pure functions.

    probabilities of frames ── above 0.5 ──▶ runs of frames ── times ──▶ turns, which overlap where speakers do

Speakers are numbered in the order in which they first talk.
"""

from __future__ import annotations

import numpy as np

from worker.types import SpeakerTurn

THRESHOLD = 0.5  # NeMo's and transformers' own


def turns(probabilities: np.ndarray, frame_sec: float, duration_sec: float) -> tuple[SpeakerTurn, ...]:
    """Return who speaks when, by start. No turn ends after the clip, which lasts `duration_sec`.

    `probabilities` has shape (frames, speakers), and a frame lasts `frame_sec`.
    """
    runs = sorted(
        (start * frame_sec, min(end * frame_sec, duration_sec), speaker)
        for speaker, column in enumerate((probabilities > THRESHOLD).T)
        for start, end in _runs(column)
        if start * frame_sec < duration_sec
    )
    numbers: dict[int, int] = {}
    for _start, _end, speaker in runs:
        numbers.setdefault(speaker, len(numbers) + 1)
    return tuple(
        SpeakerTurn(round(start, 3), round(end, 3), f"Speaker {numbers[speaker]}") for start, end, speaker in runs
    )


def _runs(active: np.ndarray) -> list[tuple[int, int]]:
    """Return the first frame of each run of active frames, and the frame after its last one."""
    edges = np.flatnonzero(np.diff(active.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
