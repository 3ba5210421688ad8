"""Audio Flamingo: captions by the size of the batch and the length of the clips, with a fixed number of tokens."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu import bench, checkpoints
from benchmarks.gpu.bench import Machine, Step
from benchmarks.gpu.report import Result, attempt
from worker.backends import create
from worker.catalog import find
from worker.config import Settings
from worker.types import Options


class Flamingo:
    """The measurements of a model of the shape of audio-flamingo-3-hf."""

    def __init__(self, machine: Machine) -> None:
        self._device, self._scale, self._folder = machine

    @property
    def steps(self) -> tuple[Step, ...]:
        """The measurements, the most valuable first."""
        return (self.checkpoint, self.grid)

    def checkpoint(self) -> Iterator[Result]:
        """Load the checkpoint, and fill it with random weights."""
        weights, started = self._checkpoint.weights, time.perf_counter()
        model = self._backend._model
        took = time.perf_counter() - started
        checkpoints.randomize(model)
        yield Result(
            f"Audio Flamingo: random weights, captions of {self._scale.flamingo_tokens} tokens",
            {"weights": weights, "loading_sec": took},
        )

    def grid(self) -> Iterator[Result]:
        """Measure batches of equal clips. What is not the audio tower is mostly the language model."""
        options = Options(str(self._checkpoint.path), "caption", max_new_tokens=self._scale.flamingo_tokens)
        for seconds, size in bench.grid(self._scale.flamingo_grid):
            work = bench.batches([bench.noise(seconds)] * size, size, options)
            yield attempt(
                f"Audio Flamingo, {size} x {seconds:g} s",
                lambda work=work: bench.ours(self._backend, work, self._device, tower=(self._backend._tower,)),
            )

    def close(self) -> None:
        """Free nothing: the process ends."""

    @functools.cached_property
    def _checkpoint(self) -> checkpoints.Checkpoint:
        return checkpoints.flamingo(self._folder, self._scale)

    @functools.cached_property
    def _backend(self) -> Any:
        backend = create(find(str(self._checkpoint.path)), Settings(device=self._device))
        backend.load()
        return backend
