"""Speech and embedded windows → turns. Pure functions.

    spans of speech ── windows of 1.5 s every 0.5 s ──▶ embeddings ── clusters ──▶ scores of each 50 ms ──▶ turns

A moment belongs to the speaker whom the windows around it resemble most. Speakers are numbered in the order in which
they first talk.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from worker.backends.speakers.clusters import USUAL, centers, cluster, normalized
from worker.types import SpeakerTurn

WINDOW_SEC, SHIFT_SEC = 1.5, 0.5
STEP_SEC = 0.05
PAUSE_SEC = 0.5  # shorter pauses of a speaker belong to the turn
SHORTEST_SEC = 0.3  # shorter turns in the middle of speech belong to the speaker before
FEW = 10  # pairs of windows, which show too little
BLOCK = 1200  # moments that are compared with windows at a time: a minute, so long speech takes no more memory
Times = tuple[float, float]


def windows(speech: Sequence[Times], length_sec: float) -> list[float]:
    """Return where the windows start, in seconds. Windows reach over the ends of a span that is shorter than they are.

    All windows have WINDOW_SEC, or the whole length of a recording that is shorter.
    """
    latest = max(0.0, length_sec - WINDOW_SEC)
    starts: list[float] = []
    for start, end in speech:
        spare = end - start - WINDOW_SEC
        count = max(1, int(np.ceil(spare / SHIFT_SEC)) + 1)
        first, last = (start, end - WINDOW_SEC) if spare > 0 else ((start + end - WINDOW_SEC) / 2,) * 2
        starts += np.clip(np.linspace(first, last, count), 0.0, latest).tolist()
    return starts


def turns(
    speech: Sequence[Times],
    starts: Sequence[float],
    vectors: np.ndarray,
    count: int | None = None,
    at_most: int | None = None,
) -> tuple[SpeakerTurn, ...]:
    """Return who speaks when.

    starts, vectors: the windows and their embeddings. count, at_most: as in `cluster`.
    """
    if not speech:
        return ()
    units = normalized(vectors)
    labels = cluster(vectors, _similarity(speech, starts, units), count, at_most)
    scores = units @ centers(units, labels).T
    middles = np.asarray(starts) + WINDOW_SEC / 2
    found: list[tuple[float, float, int]] = []
    for start, end in speech:
        found += _of_span(start, end, middles, scores)
    return _named(_joined(found))


def _similarity(speech: Sequence[Times], starts: Sequence[float], units: np.ndarray) -> float:
    """Return how similar windows of one speaker are: as those that follow each other in one span of speech.

    Some of these pairs have two speakers, so the upper quartile stands for the others.
    """
    span = np.searchsorted([end for _start, end in speech], np.asarray(starts) + WINDOW_SEC / 2)
    following = np.searchsorted(starts, np.asarray(starts) + WINDOW_SEC - 1e-3)
    pairs = [(i, j) for i, j in enumerate(following) if j < len(starts) and span[i] == span[j]]
    if len(pairs) < FEW:
        return USUAL
    return float(np.percentile([units[i] @ units[j] for i, j in pairs], 75))


def _of_span(start: float, end: float, middles: np.ndarray, scores: np.ndarray) -> list[tuple[float, float, int]]:
    """Return the turns within a span of speech as (start, end, speaker)."""
    steps = max(1, round((end - start) / STEP_SEC))
    edges = np.linspace(start, end, steps + 1)
    moments = (edges[:-1] + edges[1:]) / 2
    speakers = np.concatenate(
        [_speakers(moments[first : first + BLOCK], middles, scores) for first in range(0, steps, BLOCK)]
    )
    changes = [0, *(np.flatnonzero(np.diff(speakers)) + 1).tolist(), steps]
    runs = [(float(edges[a]), float(edges[b]), int(speakers[a])) for a, b in itertools.pairwise(changes)]
    return _without_flicker(runs)


def _speakers(moments: np.ndarray, middles: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the speaker of each moment, by the windows around it."""
    first, last = np.searchsorted(middles, (moments[0] - WINDOW_SEC, moments[-1] + WINDOW_SEC))
    # Each window counts the more, the nearer its middle is.
    distances = np.abs(moments[:, None] - middles[None, first:last])
    weights = np.maximum(1.0 - distances / (WINDOW_SEC / 2), 1e-6)
    speakers: np.ndarray = (weights @ scores[first:last]).argmax(axis=1)
    return speakers


def _without_flicker(runs: list[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Return the turns of a span without those that are too short, whose time the turn before takes."""
    kept: list[tuple[float, float, int]] = []
    for start, end, speaker in runs:
        if kept and (end - start < SHORTEST_SEC or kept[-1][2] == speaker):
            kept[-1] = (kept[-1][0], end, kept[-1][2])
        elif kept and kept[-1][1] - kept[-1][0] < SHORTEST_SEC:
            kept[-1] = (kept[-1][0], end, speaker)
        else:
            kept.append((start, end, speaker))
    return kept


def _joined(turns: list[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Return the turns with those of one speaker joined over short pauses."""
    joined: list[tuple[float, float, int]] = []
    for start, end, speaker in turns:
        if joined and joined[-1][2] == speaker and start - joined[-1][1] < PAUSE_SEC:
            joined[-1] = (joined[-1][0], end, speaker)
        else:
            joined.append((start, end, speaker))
    return joined


def _named(turns: list[tuple[float, float, int]]) -> tuple[SpeakerTurn, ...]:
    """Return the turns with the speakers' names."""
    numbers: dict[int, int] = {}
    for _start, _end, speaker in turns:
        numbers.setdefault(speaker, len(numbers) + 1)
    return tuple(SpeakerTurn(start, end, f"Speaker {numbers[speaker]}") for start, end, speaker in turns)
