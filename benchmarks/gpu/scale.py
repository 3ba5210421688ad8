"""How large the models and the inputs are: FULL for a GPU, TINY for a test on a CPU."""

from __future__ import annotations

from typing import NamedTuple


class Scale(NamedTuple):
    """The shapes of the checkpoints, and the clips and batches that they are measured with."""

    name: str
    width: int
    """The width of NeMo's encoders and of Canary's decoder."""
    heads: int
    channels: int
    """The channels of the subsampling convolutions."""
    mels: int
    parakeet_layers: int
    parakeet_vocabulary: int
    prediction: tuple[int, int]
    """The layers and the width of Parakeet's prediction network."""
    canary_layers: tuple[int, int]
    """The layers of Canary's encoder and of its decoder."""
    canary_vocabulary: int
    canary_positions: int
    """The positions of Canary's decoder, prompt included. Random weights rarely end a text, so these end it."""
    short_clips: int
    """The clips of the short form."""
    short_sec: tuple[float, float, float]
    """The shortest, the median and the longest of them, in seconds."""
    short_batches: tuple[int, ...]
    long_sec: float
    """The length of the long form, in seconds."""
    jobs: int
    jobs_sec: float
    parakeet_grid: tuple[tuple[float, tuple[int, ...]], ...]
    """Lengths of clips in seconds, each with the sizes of its batches."""
    canary_grid: tuple[tuple[float, tuple[int, ...]], ...]
    flamingo_grid: tuple[tuple[float, tuple[int, ...]], ...]
    flamingo_tokens: int


FULL = Scale(
    name="full",
    width=1024,
    heads=8,
    channels=256,
    mels=128,
    parakeet_layers=24,
    parakeet_vocabulary=8192,
    prediction=(2, 640),
    canary_layers=(32, 8),
    canary_vocabulary=16_384,
    canary_positions=128,
    short_clips=2000,
    short_sec=(1.0, 6.0, 30.0),
    short_batches=(128, 16, 64),
    long_sec=3600,
    jobs=32,
    jobs_sec=5,
    parakeet_grid=((5, (1, 16, 128)), (30, (1, 16, 64)), (600, (1, 4)), (3600, (1,)), (3 * 3600, (1,))),
    canary_grid=((30, (1, 16, 64)), (5, (1, 64))),
    flamingo_grid=((30, (1, 8, 32)), (300, (1, 8))),
    flamingo_tokens=128,
)
TINY = Scale(
    name="tiny",
    width=32,
    heads=4,
    channels=16,
    mels=80,
    parakeet_layers=1,
    parakeet_vocabulary=64,
    prediction=(1, 16),
    canary_layers=(1, 1),
    canary_vocabulary=1024,
    canary_positions=24,
    short_clips=4,
    short_sec=(0.5, 1.0, 2.0),
    short_batches=(4, 2),
    long_sec=70,
    jobs=3,
    jobs_sec=1,
    parakeet_grid=((1, (1, 2)),),
    canary_grid=((1, (1, 2)),),
    flamingo_grid=((1, (1, 2)),),
    flamingo_tokens=4,
)
SCALES = {scale.name: scale for scale in (FULL, TINY)}
