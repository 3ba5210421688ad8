"""Forced alignment against a search over all paths, and across the blocks that save memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from worker.backends.common import ctc_alignment

BLANK = 3


def brute_force(logprobs: np.ndarray, tokens: list[int]) -> float:
    """The score of the best path among all sequences of classes that collapse to the tokens."""
    best = -np.inf
    for path in itertools.product(range(logprobs.shape[1]), repeat=len(logprobs)):
        if [label for label, _ in itertools.groupby(path) if label != BLANK] == tokens:
            best = max(best, sum(logprobs[frame, label] for frame, label in enumerate(path)))
    return best


def score_with_starts(logprobs: np.ndarray, tokens: list[int], starts: list[int]) -> float:
    """The best score of a path on which each token starts at its frame, lasts for some frames, and blanks follow."""
    total = sum(logprobs[: starts[0], BLANK])
    for index, (token, start) in enumerate(zip(tokens, starts, strict=True)):
        end = starts[index + 1] if index + 1 < len(tokens) else len(logprobs)
        repeated = index + 1 < len(tokens) and tokens[index + 1] == token
        total += max(
            sum(logprobs[start:stop, token]) + sum(logprobs[stop:end, BLANK])
            for stop in range(start + 1, end + 1 - repeated)
        )
    return total


def log_softmax(values: np.ndarray) -> np.ndarray:
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("tokens", [[0], [0, 1], [1, 1], [0, 1, 0], [2, 2, 1]])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [2, 3, 256])
def test_the_best_of_all_paths(tokens, seed, block, monkeypatch):
    monkeypatch.setattr(ctc_alignment, "BLOCK", block)
    logprobs = log_softmax(np.random.default_rng(seed).normal(size=(6, 4)) * 3).astype(np.float32)
    starts = ctc_alignment.starts(logprobs, tokens, BLANK)
    assert starts == sorted(set(starts))
    assert score_with_starts(logprobs, tokens, starts) == pytest.approx(brute_force(logprobs, tokens), abs=1e-4)


@pytest.mark.parametrize(
    ("frames", "tokens", "fits"),
    [(1, [0], True), (2, [0, 1], True), (2, [0, 0], False), (3, [0, 0], True), (1, [0, 1], False), (4, [], True)],
)
def test_tokens_that_do_not_fit_have_no_alignment(frames, tokens, fits):
    logprobs = np.log(np.full((frames, 4), 0.25, np.float32))
    starts = ctc_alignment.starts(logprobs, tokens, BLANK)
    assert (starts is not None) == fits
    assert not fits or len(starts) == len(tokens)


def test_a_long_clip_is_aligned_across_blocks():
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 3, 900).tolist()
    places = np.cumsum(generator.integers(2, 6, len(tokens)))
    logprobs = np.full((places[-1] + 9, 4), -6, np.float32)
    logprobs[:, BLANK] = -0.1
    logprobs[places, tokens], logprobs[places, BLANK] = -0.1, -6
    assert ctc_alignment.starts(logprobs, tokens, BLANK) == places.tolist()
