"""The dry run (SKIP_MODEL_LOAD=1): outputs of the right shape for every task, without a model.

Everything around the model is real. Texts start with `[dry-run]`, times lie within the clip, and an output depends on
its own piece only.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from worker.backends.base import Backend
from worker.backends.common.timestamps import chars
from worker.catalog import Model
from worker.config import Settings
from worker.types import (
    Analysis,
    Batch,
    Caption,
    Diarization,
    Embedding,
    Live,
    Output,
    Piece,
    Reply,
    Span,
    SpeakerTurn,
    Token,
    Transcript,
)

FRAME_RATE = 25.0
WIDTH = 1280
PROBABILITY = 0.5  # of every word
SPEAKERS = 2


class DryRun(Backend):
    """A stand-in for every model: supports every task and loads nothing."""

    overhead_sec = 100.0

    def __init__(self, model: Model, settings: Settings) -> None:
        self._model = model

    def load(self) -> None:
        """Load nothing."""

    def infer(self, batch: Batch) -> list[Output]:
        """Return an output for each piece, of the type that its task requires."""
        return [self._output(piece) if piece.live is None else _live(piece, piece.live) for piece in batch.pieces]

    def close(self) -> None:
        """Free nothing."""

    def _output(self, piece: Piece) -> Output:
        options, seconds = piece.options, piece.duration_sec
        text = f"[dry-run] {options.task} of {seconds:.2f} s"
        if options.task == "caption":
            return Caption(text)
        if options.task == "chat":
            return Reply(text, "stop", prompt_tokens=0, completion_tokens=len(text.split()))
        if options.task == "embed":
            return _embedding(piece)
        if options.task == "analyze":
            return Analysis(Caption(text), _embedding(piece))
        if options.task == "diarize":
            return _diarization(piece)
        return _transcript(text, piece)


def _live(piece: Piece, live: Live) -> Transcript:
    """Return the text of a stream so far: a word for each piece, of its own length in seconds."""
    before = live.state if isinstance(live.state, str) else "[dry-run]"
    text = f"{before} {piece.duration_sec:.2f}"
    return replace(_transcript(text, piece), live_state=text)


def _transcript(text: str, piece: Piece) -> Transcript:
    """Return a transcript whose words share the clip's time evenly."""
    words = text.split()
    step = piece.duration_sec / len(words)
    probability = PROBABILITY if piece.options.confidence else None
    spans = tuple(Span(word, i * step, (i + 1) * step, probability) for i, word in enumerate(words))
    whole = Span(text, 0.0, piece.duration_sec, probability)
    tokens = tuple(Token(f" {word}", math.log(PROBABILITY)) for word in words if piece.options.confidence)
    language = piece.options.target_language or piece.options.language
    return Transcript(text, spans, (whole,), chars(spans), language, tokens=tokens)


def _diarization(piece: Piece) -> Diarization:
    """Return a turn of each of the speakers, two by default, who share the clip's time evenly."""
    options = piece.options
    speakers = options.num_speakers or min(SPEAKERS, options.max_speakers or SPEAKERS)
    step = piece.duration_sec / speakers
    turns = (SpeakerTurn(i * step, (i + 1) * step, f"Speaker {i + 1}") for i in range(speakers))
    return Diarization(tuple(turns))


def _embedding(piece: Piece) -> Embedding:
    """Return zeros, in the shape of Audio Flamingo's embeddings."""
    frames = max(1, round(piece.duration_sec * FRAME_RATE))
    values = np.zeros((frames, WIDTH), np.float32)
    if piece.options.pooling == "mean":
        return Embedding(values.mean(axis=0), FRAME_RATE, "mean")
    return Embedding(values, FRAME_RATE, "none")
