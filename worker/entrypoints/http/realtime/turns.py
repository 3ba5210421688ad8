"""Probabilities of speech → where a turn of the speaker starts, pauses and stops. Pure.

    probability of each frame ──▶ step ──▶ "start", "pause", "stop" or None

A turn starts with START_FRAMES frames at or above the threshold. It stops when `silence_ms` have passed since the
first frame well below the threshold, without a frame at or above it in between. A pause is a shorter silence.
"""

from __future__ import annotations

from typing import Literal

from worker.backends.common.vad import FRAME
from worker.types import SAMPLE_RATE

Mark = Literal["start", "pause", "stop"]

START_FRAMES = 2
PAUSE_MS = 200
BELOW = 0.15  # silence begins this far below the threshold, as in Silero's own code
FRAME_MS = 1000 * FRAME // SAMPLE_RATE


class TurnDetector:
    """The turns of one speaker."""

    def __init__(self, threshold: float, silence_ms: int) -> None:
        self._threshold, self._silence_ms = threshold, silence_ms
        self.reset()

    def reset(self) -> None:
        """End the turn, if one is open, without a mark."""
        self._is_open, self._loud, self._quiet = False, 0, 0

    def is_silence(self, probability: float) -> bool:
        """Return whether a frame of this probability has no speech for sure."""
        return probability < max(0.01, self._threshold - BELOW)

    def step(self, probability: float) -> Mark | None:
        """Return what the next frame marks. The frame is the last one of the silence, or of the start."""
        if probability >= self._threshold:
            self._loud, self._quiet = self._loud + 1, 0
            if self._is_open or self._loud < START_FRAMES:
                return None
            self._is_open = True
            return "start"
        self._loud = 0
        if not self._is_open or not (self._quiet or self.is_silence(probability)):
            return None
        self._quiet += 1
        silence_ms = self._quiet * FRAME_MS
        if silence_ms >= self._silence_ms:
            self.reset()
            return "stop"
        return "pause" if silence_ms - FRAME_MS < PAUSE_MS <= silence_ms else None
