"""Turns and embedded windows → the voice of each speaker. A pure function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worker.backends.speakers.clusters import normalized
from worker.backends.speakers.turns import WINDOW_SEC
from worker.types import SpeakerTurn, Voice


def voices(turns: Sequence[SpeakerTurn], starts: Sequence[float], vectors: np.ndarray) -> tuple[Voice, ...]:
    """Return the mean direction of the windows of each speaker, in the order of the speakers' first turns.

    A window belongs to the turn that its middle lies in. A speaker without a window has no voice.
    """
    middles, units = np.asarray(starts) + WINDOW_SEC / 2, normalized(vectors)
    found: list[Voice] = []
    for speaker in dict.fromkeys(turn.speaker for turn in turns):
        own = np.zeros(len(middles), bool)
        for turn in turns:
            if turn.speaker == speaker:
                own |= (turn.start <= middles) & (middles <= turn.end)
        if own.any():
            found.append(Voice(speaker, normalized(units[own].mean(axis=0, keepdims=True))[0]))
    return tuple(found)
