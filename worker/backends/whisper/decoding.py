"""The decoder's loop of Whisper: encoder states → the tokens of each window, with their probabilities.

    states ── temperature 0 ──▶ tokens ── loop or improbable? ──▶ temperatures 0.2 … 1.0 at once, for those windows
                                   └───── improbable, and no speech? ──▶ no text

The thresholds and temperatures are those of OpenAI's Whisper. A request that sets a temperature is decoded once, at
that temperature. Otherwise, a window is decoded again if its text compresses like a loop, or if its mean log
probability is low, and the lowest temperature whose text is neither wins. The temperatures share a batch, because one
more row costs little beside one more run. If all fail, the most probable text that is no loop is kept.

A text that repeats a few tokens again and again ends before the limit on new tokens, because it is rejected anyway.

Sampling is reproducible: each window has a random generator of its own, whose seed is the audio. A window therefore has
the same text in each batch.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from worker.backends.common import generation
from worker.backends.whisper import steps
from worker.backends.whisper.steps import Ids
from worker.types import FinishReason, Piece

HIGHER = (0.2, 0.4, 0.6, 0.8, 1.0)  # temperatures
MAX_COMPRESSION_RATIO = 2.4
MIN_AVG_LOGPROB = -1.0
NO_SPEECH_PROB = 0.6


@dataclasses.dataclass(frozen=True, slots=True)
class Windows:
    """Windows of audio to decode together, with the same prompt.

    `states` is the encoder's output, whose last hidden state has shape (windows, frames, width). `languages` are the
    codes of the spoken languages, None for a checkpoint without languages. `arguments` are others of `generate`.
    """

    states: Any
    pieces: Sequence[Piece]
    languages: Sequence[str] | None
    arguments: dict[str, Any]

    def select(self, rows: Sequence[int]) -> Windows:
        """Return the windows of `rows`, which stream no text: what they stream is decided before."""
        return dataclasses.replace(
            self,
            states=type(self.states)(last_hidden_state=self.states.last_hidden_state[list(rows)]),
            pieces=[dataclasses.replace(self.pieces[row], on_text=None) for row in rows],
            languages=None if self.languages is None else [self.languages[row] for row in rows],
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Decoded:
    """What the decoder wrote for one window.

    `tokens` are ids of text and of times, and `logprobs` the natural logarithms of their probabilities, before the
    temperature. `end_logprob` is that of the end token, None if the limit on new tokens ended the text.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    end_logprob: float | None
    text: str
    temperature: float
    no_speech_prob: float

    @property
    def finish_reason(self) -> FinishReason:
        """Return whether the model or the limit on new tokens ended the text."""
        return "length" if self.end_logprob is None else "stop"

    @property
    def avg_logprob(self) -> float:
        """Return the mean log probability of the tokens and the end token."""
        return (sum(self.logprobs) + (self.end_logprob or 0.0)) / (len(self.logprobs) + 1)

    @property
    def is_loop(self) -> bool:
        """Return whether the text repeats itself."""
        return compression_ratio(self.text) > MAX_COMPRESSION_RATIO

    @property
    def is_improbable(self) -> bool:
        """Return whether the tokens have a low mean log probability."""
        return self.avg_logprob < MIN_AVG_LOGPROB

    @property
    def is_silence(self) -> bool:
        """Return whether the window holds no speech."""
        return self.no_speech_prob > NO_SPEECH_PROB and self.is_improbable


def compression_ratio(text: str) -> float:
    """Return the bytes of the text in UTF-8, divided by the bytes after zlib's compression."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def decode(model: Any, ids: Ids, read: Callable[[list[int]], str], windows: Windows) -> list[Decoded]:
    """Return what the decoder writes for each window. `read` decodes ids into text."""
    options = windows.pieces[0].options
    watch = generation.Watch(windows.pieces, 0, lambda row: read(_written(row, ids)).strip())
    chosen = _attempt(model, ids, read, windows, watch, [options.temperature or 0.0] * len(windows.pieces))
    if options.temperature is None:
        pieces = windows.pieces
        rejected = [i for i, decoded in enumerate(chosen) if _is_rejected(decoded) and not pieces[i].cancelled()]
        size = max(1, len(pieces) // len(HIGHER))  # no more rows at once than before
        for at in range(0, len(rejected), size):
            rows = rejected[at : at + size]
            for row, tries in zip(rows, _again(model, ids, read, windows.select(rows)), strict=True):
                chosen[row] = _best([chosen[row], *tries])
    watch.finish(["" if decoded.is_silence else decoded.text for decoded in chosen])
    return chosen


def _again(model: Any, ids: Ids, read: Callable[[list[int]], str], windows: Windows) -> list[list[Decoded]]:
    """Return what the decoder writes for each window at each of the higher temperatures."""
    count = len(windows.pieces)
    every = windows.select([row for row in range(count) for _ in HIGHER])
    tries = _attempt(model, ids, read, every, generation.Watch(every.pieces, 0, read), [*HIGHER] * count)
    return [tries[at : at + len(HIGHER)] for at in range(0, len(tries), len(HIGHER))]


def _is_rejected(decoded: Decoded) -> bool:
    return (decoded.is_loop or decoded.is_improbable) and not decoded.is_silence


def _best(tries: Sequence[Decoded]) -> Decoded:
    """Return the first text that is not rejected, or the most probable one, by rising temperature.

    Probabilities differ in their last digits between batches, so these digits do not decide.
    """
    accepted = next((decoded for decoded in tries if not _is_rejected(decoded)), None)
    return accepted or max(tries, key=lambda decoded: (not decoded.is_loop, round(decoded.avg_logprob, 3)))


def _attempt(
    model: Any,
    ids: Ids,
    read: Callable[[list[int]], str],
    windows: Windows,
    watch: Any,
    temperatures: Sequence[float],
) -> list[Decoded]:
    """Return what the decoder writes for each window at its temperature. The temperatures are all 0, or none is."""
    # The request's own temperature is sampled by `generate`, together with top_p.
    is_own = windows.pieces[0].options.temperature is not None
    seeds = [
        zlib.crc32(piece.clip.samples.tobytes()) + round(10 * temperature)
        for piece, temperature in zip(windows.pieces, temperatures, strict=True)
    ]
    scores = steps.Scores(ids, () if is_own else temperatures, seeds)
    arguments = dict(windows.arguments)
    if windows.languages is not None:
        arguments["language"] = list(windows.languages)
    criteria = [watch] if is_own else [watch, steps.Loops(ids.first_time)]
    with scores.watch(model), steps.skip_ended(model, ids.end):
        out = model.generate(
            encoder_outputs=windows.states,
            logits_processor=[scores],
            stopping_criteria=criteria,
            force_unique_generate_call=True,
            **arguments,
        )
    logprobs = scores.logprobs(out).tolist()
    return [
        _decoded(row[-len(values) :], values, ids, read, temperature, no_speech_prob)
        for row, values, temperature, no_speech_prob in zip(
            out.tolist(), logprobs, temperatures, scores.no_speech_probs(), strict=True
        )
    ]


def _decoded(
    row: list[int],
    values: list[float],
    ids: Ids,
    read: Callable[[list[int]], str],
    temperature: float,
    no_speech_prob: float,
) -> Decoded:
    """Return one window's new ids, up to the end token, as what the decoder wrote."""
    end = row.index(ids.end) if ids.end in row else None
    kept = [
        (token, value)
        for token, value in zip(row[:end], values[:end], strict=True)
        if token < ids.end or token >= ids.first_time
    ]
    tokens = tuple(token for token, _ in kept)
    return Decoded(
        tokens,
        tuple(value for _, value in kept),
        None if end is None else values[end],
        read([token for token in tokens if token < ids.end]).strip(),
        temperature,
        no_speech_prob,
    )


def _written(row: list[int], ids: Ids) -> list[int]:
    """Return the text tokens of a row of `generate`: those after the start token, up to the end token."""
    after = itertools.takewhile(lambda token: token != ids.end, row[row.index(ids.start) + 1 :])
    return [token for token in after if token < ids.end]
