"""The embedded engine: CMU pocketsphinx, whose English model is in its wheel. Real words on any CPU, no downloads.

It hears clear read English; it is for trying the worker and testing a pipeline, not for archives. It gives no punctuation.
Clips of a batch run one after another: it has no batches. Each gets a decoder in its first state, because the engine
adapts its noise tracking and its mean normalisation to what it heard before, and a text must not depend on that.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from worker.backends.base import Backend
from worker.backends.timing import chars, segments
from worker.catalog import Model
from worker.config import Settings
from worker.errors import ModelUnavailable
from worker.types import SAMPLE_RATE, Batch, Output, Piece, Span, Transcript

_FILLER = ("<", "[", "+")


class Pocketsphinx(Backend):
    overhead_sec = 0.0

    def __init__(self, model: Model, settings: Settings) -> None:
        self._decoder: Any = None
        self._fresh_cmn = ""

    def load(self) -> None:
        try:
            import pocketsphinx
        except ImportError as error:
            raise ModelUnavailable("pocketsphinx is not installed: pip install pocketsphinx") from error
        self._decoder = pocketsphinx.Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")
        self._fresh_cmn = self._decoder.get_cmn(False)

    def infer(self, batch: Batch) -> list[Output]:
        return [self._hear(piece) for piece in batch.pieces]

    def close(self) -> None:
        self._decoder = None

    def _hear(self, piece: Piece) -> Transcript:
        decoder = self._decoder
        pcm = (np.clip(piece.clip.samples, -1.0, 1.0) * 32767).astype("<i2").tobytes()
        decoder.reinit_feat()               # noise tracking, which set_cmn leaves as the clip before left it
        decoder.set_cmn(self._fresh_cmn)
        decoder.start_utt()
        decoder.process_raw(pcm, full_utt=True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        if hypothesis is None:
            return Transcript("", language="en")
        frame_sec = 1 / decoder.config["frate"]
        words = tuple(Span(_spelling(s.word), s.start_frame * frame_sec, min((s.end_frame + 1) * frame_sec, piece.duration_sec))
                      for s in decoder.seg() if not s.word.startswith(_FILLER))
        text = " ".join(word.text for word in words)
        return Transcript(text, words, segments(words), chars(words), "en")


def _spelling(word: str) -> str:
    """The word without the number of its pronunciation: 'the(2)' is 'the'."""
    return word.split("(", 1)[0]

