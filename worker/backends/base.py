"""The interface of every backend: load once, then take batches and return as many outputs, in the same order.

    weight_bytes ──▶ load ──▶ warm ──▶ infer, infer, … ──▶ close

`weight_bytes` and `load` run on a thread of their own, so that other models keep running meanwhile. `warm`, `infer` and
`close` run on the runner's thread, one call at a time. A backend may therefore change the state of its model during a
batch, if it restores the state by the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from worker.types import Batch, Output


class Backend(ABC):
    """A model that can run. The constructor takes the catalog's row and the settings, and loads nothing."""

    overhead_sec: float = 100.0
    """The cost of starting a batch, as the seconds of audio that the model computes in that time; known once the model
    has loaded. Clips share a batch only while the padding is shorter than this. 0: pieces run one after another."""

    least_sec: float = 0.0
    """The model computes shorter clips as if they had this length, in seconds."""

    def weight_bytes(self) -> int:
        """Return the bytes of device memory that the weights need, from the sizes of their files. 0 if unknown.

        Raises: ModelUnavailable if the weights are not found.
        """
        return 0

    @abstractmethod
    def load(self) -> None:
        """Load the weights onto the device.

        Raises: ModelUnavailable, whose message says what to do, if a library or the weights are missing.
        """

    def warm(self) -> None:
        """Run what needs the device exclusively, once after `load`, such as capturing CUDA graphs."""
        return

    @abstractmethod
    def infer(self, batch: Batch) -> list[Output]:
        """Return one output for each of `batch.pieces`, in their order. An output never depends on the other pieces.

        If the catalog's row is `live`, the pieces may be pieces of live audio, each of another stream. The state in
        `Transcript.live_state` must be a value that no later call changes, because a batch may run again.

        Raises: any exception. The engine retries the pieces in smaller batches, to find the one at fault.
        """

    def close(self) -> None:
        """Release the memory of the device."""
        return
