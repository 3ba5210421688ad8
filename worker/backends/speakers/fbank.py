"""Samples → log mel filter banks as Kaldi computes them, which speaker models are trained on.

    windows (n, samples) ── frames of 25 ms every 10 ms ──▶ power spectra ── 80 mel bands, log ──▶ (n, frames, 80)

The recipe is that of Kaldi's compute-fbank-feats (https://kaldi-asr.org/doc/feat.html) without dither. The mean of each
band over its window is subtracted, so the loudness of a window does not count.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from worker.types import SAMPLE_RATE

FRAME, SHIFT, FFT = 400, 160, 512  # samples
BANDS = 80
LOW_HZ, HIGH_HZ = 20.0, SAMPLE_RATE / 2
PREEMPHASIS = 0.97
POVEY = 0.85  # the exponent of Kaldi's window, a power of Hann's


def fbank(windows: Any) -> Any:
    """Return the features of windows of equal length, a float32 tensor of shape (n, samples) with samples >= FRAME."""
    import torch

    shape, banks = _constants(windows.device)
    frames = windows.unfold(1, FRAME, SHIFT)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    before = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)
    power = torch.fft.rfft((frames - PREEMPHASIS * before) * shape, FFT).abs().square()
    features = (power @ banks).clamp(min=torch.finfo(torch.float32).eps).log()
    return features - features.mean(dim=1, keepdim=True)


@functools.cache
def _constants(device: Any) -> tuple[Any, Any]:
    """Return the window of a frame, (FRAME,), and the triangles of the bands, (FFT / 2 + 1, BANDS)."""
    import torch

    shape = torch.hann_window(FRAME, periodic=False, dtype=torch.float64) ** POVEY
    edges = torch.linspace(_mel(LOW_HZ), _mel(HIGH_HZ), BANDS + 2, dtype=torch.float64)
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    bins = torch.arange(FFT // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / FFT
    mels = (1127.0 * (1.0 + bins / 700.0).log())[:, None]
    banks = torch.minimum((mels - low) / (center - low), (high - mels) / (high - center)).clamp(min=0.0)
    banks[-1] = 0.0  # Kaldi leaves out the bin at half of the sample rate
    return shape.float().to(device), banks.float().to(device)


def _mel(hertz: float) -> float:
    return 1127.0 * math.log(1.0 + hertz / 700.0)
