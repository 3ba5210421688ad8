"""A group of measurements of one model, which is loaded without an engine: its checkpoint, then a grid of batches."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.gpu.bench import Machine, Step
from benchmarks.gpu.checkpoints import Checkpoint
from benchmarks.gpu.report import Result
from worker.backends import create
from worker.catalog import find
from worker.config import Settings


class SingleModel(ABC):
    """The measurements of one model. `make(folder, scale)` makes the checkpoint."""

    make: Callable[..., Checkpoint]

    def __init__(self, machine: Machine) -> None:
        self._device, self._scale, self._folder = machine

    @property
    def steps(self) -> tuple[Step, ...]:
        """The measurements, the most valuable first."""
        return (self.checkpoint, self.grid)

    @abstractmethod
    def checkpoint(self) -> Iterator[Result]:
        """Make the checkpoint and load it."""

    @abstractmethod
    def grid(self) -> Iterator[Result]:
        """Measure batches of equal clips."""

    def close(self) -> None:
        """Close the backend, if there is one."""
        if "_backend" in self.__dict__:
            self._backend.close()

    @functools.cached_property
    def _checkpoint(self) -> Checkpoint:
        return type(self).make(self._folder, self._scale)

    @functools.cached_property
    def _backend(self) -> Any:
        backend = create(find(str(self._checkpoint.path)), Settings(device=self._device))
        backend.load()
        return backend
