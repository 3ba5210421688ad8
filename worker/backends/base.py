"""What every backend is: load once, then batches in, as many outputs out, in the same order.

`load` runs on a thread of its own, so that other models go on meanwhile; everything else on the lane's thread, one
call at a time. So a backend may change its model's state while it runs a batch, if it restores it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from worker.types import Batch, Output


class Backend(ABC):
    """A model that can be run.

    `overhead_sec`: what a batch costs beyond its audio, told in seconds of audio (known once loaded): more padding
    than that is not worth sharing a batch for.
    """

    overhead_sec: float = 100.0

    def weight_bytes(self) -> int:
        """Bytes of device memory the weights will take, as far as their files tell before they are loaded."""
        return 0

    @abstractmethod
    def load(self) -> None:
        """Puts the weights on the device. Raises ModelUnavailable with what to do about it."""

    def warm(self) -> None:
        """After `load`, once, what needs the device to itself."""
        return

    @abstractmethod
    def infer(self, batch: Batch) -> list[Output]:
        """One output per piece, in the order of `batch.pieces`; it must not depend on a piece's neighbours."""

    def close(self) -> None:
        """Gives the device's memory back."""
        return
