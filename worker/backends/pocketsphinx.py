"""The embedded engine: CMU pocketsphinx, whose wheel contains an English model. Real words on any CPU, no downloads.

    Pocketsphinx ── PCM over stdin ──▶ pocketsphinx_process ── JSON over stdout ──▶ words with times

It transcribes clear read English, without punctuation. It is meant for trying the worker and testing a pipeline, not
for archives. The confidence of a word is its posterior probability in the engine's word lattice. The clips of a batch
run one after another in a child process. It is killed if the clip that it decodes is canceled, and restarted for the
next clip.
"""

from __future__ import annotations

import json
import math
import selectors
import struct
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np

from worker import child
from worker.backends.base import Backend
from worker.backends.common.silence import is_silent
from worker.backends.common.timestamps import chars, segments
from worker.catalog import Model
from worker.config import Settings
from worker.errors import Cancelled, ModelError, ModelUnavailable
from worker.types import Batch, Output, Piece, Span, Token, Transcript

LOOK_SEC = 0.1  # how often a running decode checks whether its clip was canceled
_CHILD = "worker.backends.pocketsphinx_process"


class Pocketsphinx(Backend):
    """The pocketsphinx engine in a child process: transcribes English, with times."""

    overhead_sec = 0.0

    def __init__(self, model: Model, settings: Settings) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def load(self) -> None:
        """Start the child process. Raises ModelUnavailable if pocketsphinx is not installed."""
        self._process = child.start(
            child.command(_CHILD),
            cwd=child.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        message = self._receive()
        if "ready" not in message:
            self.close()
            raise ModelUnavailable(
                f"pocketsphinx does not start ({message.get('error', 'it reported no reason')}). "
                "Run: pip install pocketsphinx"
            )

    def infer(self, batch: Batch) -> list[Output]:
        """Transcribe the pieces one after another. Raises Cancelled and ModelError."""
        return [self._transcribe(piece) for piece in batch.pieces]

    def close(self) -> None:
        """Kill the child process."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.communicate()

    def _transcribe(self, piece: Piece) -> Transcript:
        """Return the piece's transcript. Raises Cancelled, and ModelError if the process exits."""
        if piece.cancelled():
            raise Cancelled("the request was canceled")
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
            message = self._receive(piece.cancelled)
        except BrokenPipeError:
            message = {}
        if "words" not in message:
            self.close()
            raise ModelError("pocketsphinx crashed on this input")
        asked = piece.options.confidence
        words = tuple(
            Span(word, start, min(end, piece.duration_sec), posterior if asked else None)
            for word, start, end, posterior in message["words"]
        )
        tokens = tuple(
            Token(f" {word}", math.log(posterior)) for word, _start, _end, posterior in message["words"] if asked
        )
        text = " ".join(word.text for word in words)
        return Transcript(text, words, segments(words), chars(words), "en", tokens=tokens)

    def _receive(self, cancelled: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Return the process's next message, or an empty one if the process has exited.

        Raises Cancelled, after the process has been killed.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not selector.select(LOOK_SEC):
                if cancelled():
                    self.close()
                    raise Cancelled("the request was canceled")
        line = self._process.stdout.readline()
        return json.loads(line) if line else {}
