"""Audio Flamingo: captions by the size of the batch and the length of the clips, with a fixed number of tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.gpu import bench, checkpoints
from benchmarks.gpu.report import Result, attempt
from benchmarks.gpu.single import SingleModel
from worker.types import Options


class Flamingo(SingleModel):
    """The measurements of a model of the shape of audio-flamingo-3-hf."""

    make = staticmethod(checkpoints.flamingo)

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
