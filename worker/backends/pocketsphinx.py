"""The embedded engine: CMU pocketsphinx, whose English model is in its wheel. Real words on any CPU, no downloads.

It hears clear read English; it is for trying the worker and testing a pipeline, not for archives. It gives no
punctuation.
Clips of a batch run one after another, in a process of its own (pocketsphinx_process.py), which is begun anew if it
ends.
"""

from __future__ import annotations

import json
import struct
import subprocess
from typing import Any

import numpy as np

from worker import child
from worker.backends.base import Backend
from worker.backends.common.silence import is_silent
from worker.backends.common.timestamps import chars, segments
from worker.catalog import Model
from worker.config import Settings
from worker.errors import Cancelled, ModelError, ModelUnavailable
from worker.types import Batch, Output, Piece, Span, Transcript

_CHILD = "worker.backends.pocketsphinx_process"


class Pocketsphinx(Backend):
    overhead_sec = 0.0

    def __init__(self, model: Model, settings: Settings) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def load(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            child.command(_CHILD),
            cwd=child.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        answer = self._answer()
        if "ready" not in answer:
            self.close()
            raise ModelUnavailable(
                f"pocketsphinx does not start ({answer.get('error', 'no reason given')}): pip install pocketsphinx"
            )

    def infer(self, batch: Batch) -> list[Output]:
        return [self._hear(piece) for piece in batch.pieces]

    def close(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.communicate()

    def _hear(self, piece: Piece) -> Transcript:
        if piece.cancelled():
            raise Cancelled("cancelled")
        if is_silent(piece.clip.samples):
            return Transcript("", language="en")
        if self._process is None:
            self.load()
        assert self._process is not None
        assert self._process.stdin is not None
        pcm = (np.clip(piece.clip.samples, -1.0, 1.0) * 32767).astype("<i2").tobytes()
        try:
            self._process.stdin.write(struct.pack("<I", len(pcm)) + pcm)
            self._process.stdin.flush()
            heard = self._answer()
        except BrokenPipeError:
            heard = {}
        if "words" not in heard:
            self.close()
            raise ModelError("pocketsphinx crashed on this input")
        words = tuple(Span(word, start, min(end, piece.duration_sec)) for word, start, end in heard["words"])
        return Transcript(" ".join(word.text for word in words), words, segments(words), chars(words), "en")

    def _answer(self) -> dict[str, Any]:
        """The process's next line; empty when it has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {}
