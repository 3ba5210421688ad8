"""Canary: batches by size and length, next to NeMo's own `transcribe`."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu import bench, checkpoints
from benchmarks.gpu.report import Result, attempt
from benchmarks.gpu.single import SingleModel
from worker.types import Options

PROMPT = {"source_lang": "en", "target_lang": "en", "pnc": "yes"}


class Canary(SingleModel):
    """The measurements of a model of the shape of canary-1b-v2."""

    make = staticmethod(checkpoints.canary)

    def checkpoint(self) -> Iterator[Result]:
        """Make the checkpoint and load it."""
        weights, started = self._checkpoint.weights, time.perf_counter()
        self._backend  # noqa: B018  loads the model
        yield Result(
            f"Canary: random weights, texts end at {self._scale.canary_positions} positions of the decoder",
            {"weights": weights, "loading_sec": time.perf_counter() - started},
        )

    def grid(self) -> Iterator[Result]:
        """Measure batches of equal clips by size and length. What is not the encoder or the mel is the decoder."""
        options = Options(str(self._checkpoint.path), language="en")
        groups = bench.nemo_groups(self._backend._model)
        for seconds, size in bench.grid(self._scale.canary_grid):
            clips = [bench.noise(seconds)] * size
            work = bench.batches(clips, size, options)
            what = f"Canary, {size} x {seconds:g} s"
            yield attempt(what, lambda work=work: bench.ours(self._backend, work, self._device, **groups))
            yield attempt(
                f"{what}, NeMo's transcribe",
                lambda clips=clips: bench.nemo(self._nemo, clips, len(clips), self._device, **PROMPT),
            )

    @functools.cached_property
    def _nemo(self) -> Any:
        return bench.nemo_model(self._checkpoint.path, self._device, next(self._backend._model.parameters()).dtype)
