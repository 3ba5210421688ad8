"""A backend for the process of a device that does what its piece's prompt says; the process is told of it as
FACTORY."""

from __future__ import annotations

import os
import signal
import time

from worker.backends.base import Backend
from worker.errors import ModelUnavailable, OutOfMemory
from worker.types import Transcript

FACTORY = "scripted:create"
CLUE = "a clue for the log"


def create(model, settings):
    return Scripted()


class Scripted(Backend):
    overhead_sec = 5.0

    def weight_bytes(self) -> int:
        return 7

    def load(self) -> None:
        self.overhead_sec, self.least_sec = 6.0, 30.0
        if os.path.exists("gated"):
            raise ModelUnavailable("it is gated")
        if os.path.exists("broken"):
            raise OSError(CLUE)
        if os.path.exists("first"):  # whoever is second waits
            while os.path.exists("first"):
                time.sleep(0.02)
        elif os.path.exists("slow"):
            os.rename("slow", "first")

    def infer(self, batch):
        self.size = len(batch.pieces)
        return [getattr(self, f"_{(piece.options.prompt or 'sum').split()[0]}")(piece) for piece in batch.pieces]

    def _sum(self, piece):
        """After a moment, so that batches overlap."""
        time.sleep(0.02)
        return Transcript(f"{piece.clip.samples.sum(dtype='float64'):.3f}")

    def _pid(self, piece):
        return Transcript(str(os.getpid()))

    def _die(self, piece):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(9)  # it comes to another thread

    def _crash(self, piece):
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(9)

    def _lose(self, piece):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def _fail(self, piece):
        raise KeyError(CLUE)

    def _fill(self, piece):
        raise MemoryError

    def _crowd(self, piece):
        """Only two fit into memory together."""
        if self.size > 2:
            raise MemoryError
        return Transcript(str(self.size))

    def _ours(self, piece):
        raise OutOfMemory("too much of it") from RuntimeError(CLUE)

    def _print(self, piece):
        print("what a library prints", flush=True)
        os.write(1, b"what its native half prints\n")
        return Transcript("")

    def _write(self, piece):
        """Word by word until cancelled, at most so many."""
        said = []
        for number in range(int(piece.options.prompt.split()[1])):
            if piece.cancelled():
                break
            said.append(f"{number} ")
            if piece.on_text is not None:
                piece.on_text(said[-1])
            time.sleep(0.01)
        return Transcript("".join(said))
