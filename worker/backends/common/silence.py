"""Whether a clip holds anything to hear: of silence generative models invent words, and on very short clips some
fail."""

from __future__ import annotations

import numpy as np

SILENCE = 1e-4  # a peak below -80 dBFS
MIN_SAMPLES = 1_280  # one encoder frame, 80 ms


def is_silent(samples: np.ndarray) -> bool:
    """Whether the samples, float32 of shape (samples,), hold nothing to transcribe: too short, or no peak above -80
    dBFS."""
    return len(samples) < MIN_SAMPLES or float(np.abs(samples).max()) <= SILENCE
