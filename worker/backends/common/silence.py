"""Detection of clips without anything to transcribe.

Generative models invent words for silence, and some models fail on very short clips.
"""

from __future__ import annotations

import numpy as np

SILENCE = 1e-4  # a peak below -80 dBFS
MIN_SAMPLES = 1_280  # one encoder frame, 80 ms


def is_silent(samples: np.ndarray) -> bool:
    """Return whether `samples` (float32 of shape (samples,)) hold nothing to transcribe.

    A clip is silent if it is shorter than `MIN_SAMPLES` or if its peak is not above `SILENCE`.
    """
    return len(samples) < MIN_SAMPLES or float(np.abs(samples).max()) <= SILENCE
