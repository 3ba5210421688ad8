"""What the measurements of a group share: the machine, noise as clips, and one batch of our backend or NeMo's.

    ours(backend, batches)    rtfx, encoder_rtfx, mel_rtfx, rest_rtfx, tokens_per_sec, added_gib
    nemo(model, clips)        rtfx, tokens_per_sec, added_gib of NeMo's own `transcribe` on the same arrays

RTFx is seconds of audio, without padding, for each second that the work takes, as the Open ASR Leaderboard counts it:
the clips are arrays in memory, sorted by length. Every measurement follows a run that is not counted. `added_gib` is
the most memory that the first batch, which has the longest clips, takes beside the weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu import meters
from benchmarks.gpu.report import Result, Values
from benchmarks.gpu.scale import Scale
from worker.types import SAMPLE_RATE, Batch, Clip, Options, Piece

Step = Callable[[], Iterator[Result]]


class Machine(NamedTuple):
    """Where a group runs."""

    device: str
    scale: Scale
    folder: Path
    """A folder for checkpoints and clips."""


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Return white noise as samples."""
    return np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE), dtype=np.float32) * np.float32(0.1)


def short_clips(scale: Scale) -> list[np.ndarray]:
    """Return the clips of the short form, the longest first. Their lengths are lognormal, within the scale's bounds."""
    shortest, median, longest = scale.short_sec
    lengths = np.random.default_rng(0).lognormal(np.log(median), 0.7, scale.short_clips).clip(shortest, longest)
    audio = noise(longest * 2)
    starts = np.random.default_rng(1).integers(0, round(longest * SAMPLE_RATE), scale.short_clips)
    return [
        audio[start : start + round(length * SAMPLE_RATE)]
        for start, length in zip(starts, sorted(lengths, reverse=True), strict=True)
    ]


def batches(clips: Sequence[np.ndarray], size: int, options: Options, *, long: bool = False) -> list[Batch]:
    """Return the clips in batches of `size`, in their order."""
    pieces = [Piece(Clip(samples), options) for samples in clips]
    return [Batch(tuple(pieces[i : i + size]), long=long) for i in range(0, len(pieces), size)]


def ours(backend: Any, work: Sequence[Batch], device: str, *, times: int = 1, **groups: tuple[Any, ...]) -> Values:
    """Return the rates of the backend on the batches: in all, for each of the `groups` of modules, and for the rest.

    The tokens are those of the text, without control tokens.
    """
    audio_sec = sum(piece.duration_sec for batch in work for piece in batch.pieces)

    def run() -> None:
        for batch in work:
            backend.infer(batch)

    tokens = sum(_tokens(output) for batch in work for output in backend.infer(_with_confidence(batch)))
    total = meters.seconds(run, device, times)
    with meters.module_seconds(device, **groups) as spent:
        whole = meters.seconds(run, device)
    apart = {**spent, "rest": whole - sum(spent.values())}
    return {
        "rtfx": audio_sec / total,
        **{f"{name}_rtfx": audio_sec / seconds for name, seconds in apart.items() if seconds},
        "tokens_per_sec": tokens / audio_sec,
        "added_gib": meters.added_gib(lambda: backend.infer(work[0]), device),
    }


def nemo(model: Any, clips: Sequence[np.ndarray], size: int, device: str, *, times: int = 1, **prompt: Any) -> Values:
    """Return the rate of NeMo's own `transcribe` on the clips."""
    audio_sec = sum(map(len, clips)) / SAMPLE_RATE

    def run(count: int | None = None) -> list[Any]:
        some = list(clips[:count])
        return model.transcribe(some, batch_size=size, return_hypotheses=True, verbose=False, **prompt)

    tokens = sum(len(output.y_sequence) for output in run())
    return {
        "rtfx": audio_sec / meters.seconds(run, device, times),
        "tokens_per_sec": tokens / audio_sec,
        "added_gib": meters.added_gib(lambda: run(size), device),
    }


def nemo_model(path: Path, device: str, dtype: Any) -> Any:
    """Return the model as users of NeMo load it, in `dtype`."""
    from nemo.collections.asr.models import ASRModel
    from nemo.utils import logging

    logging.setLevel(logging.ERROR)
    return ASRModel.restore_from(str(path), map_location=device).eval().to(dtype)


def nemo_groups(model: Any) -> dict[str, tuple[Any, ...]]:
    """Return the modules of a NeMo model whose seconds are reported. Aviary calls the subsampling on its own."""
    return {"mel": (model.preprocessor,), "encoder": (model.encoder, model.encoder.pre_encode)}


def grid(shapes: Sequence[tuple[float, tuple[int, ...]]]) -> Iterator[tuple[float, int]]:
    """Yield each length in seconds with each size of its batches."""
    return itertools.chain.from_iterable(((seconds, size) for size in sizes) for seconds, sizes in shapes)


def _tokens(output: Any) -> int:
    """Return how many tokens a text has. A backend that does not count them reports them with their confidence."""
    return output.tokens_generated if output.tokens_generated is not None else len(output.tokens)


def _with_confidence(batch: Batch) -> Batch:
    pieces = (replace(piece, options=replace(piece.options, confidence=True)) for piece in batch.pieces)
    return replace(batch, pieces=tuple(pieces))
