"""Forced alignment: the likeliest frames of a text's tokens, by the log probabilities of a CTC model.

    log probabilities, tokens ──▶ Viterbi over [blank, token, blank, token, …, blank] ──▶ first frame of each token

The search is exact. It keeps the scores of every BLOCK-th frame only, and computes the frames between two of these
again while it follows the best path back, because a table of all frames and states takes gigabytes for an hour of
speech. Algorithm: A. Graves et al., "Connectionist Temporal Classification", 2006, with a maximum instead of the sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

BLOCK = 256  # frames


def starts(logprobs: np.ndarray, tokens: Sequence[int], blank: int) -> list[int] | None:
    """Return the first frame of each token on the best path, or None if the tokens do not fit into the frames.

    `logprobs` has shape (frames, classes). `tokens` and `blank` are classes. Equal neighbors need a blank between them.
    """
    repeats = sum(token == following for token, following in itertools.pairwise(tokens))
    if len(logprobs) < len(tokens) + repeats or not tokens:
        return None if tokens else []
    states = np.full(2 * len(tokens) + 1, blank)
    states[1::2] = tokens
    skips = np.zeros(len(states), bool)  # whether a state may follow the one before the blank before it
    skips[3::2] = states[3::2] != states[1:-2:2]
    scores = np.full(len(states), -np.inf, np.float32)
    scores[:2] = logprobs[0, states[:2]]
    kept = [scores]
    for frame in range(1, len(logprobs)):
        scores = _step(scores, logprobs[frame, states], skips)[0]
        if frame % BLOCK == 0:
            kept.append(scores)
    state = len(states) - 2 if scores[-2] > scores[-1] else len(states) - 1
    first = [0] * len(tokens)
    for block in reversed(range(len(kept))):
        begin, end = block * BLOCK, min((block + 1) * BLOCK, len(logprobs) - 1)
        moves, low = _moves(kept[block], logprobs[begin + 1 : end + 1], states, skips, state)
        for frame in range(end, begin, -1):
            if state % 2:
                first[state // 2] = frame
            state -= int(moves[frame - begin - 1, state - low])
    if state % 2:
        first[state // 2] = 0
    return first


def _step(scores: np.ndarray, emissions: np.ndarray, skips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores after one more frame, and by how many states the best path to each state moved: 0, 1 or 2."""
    moves = np.zeros(len(scores), np.uint8)
    best = scores.copy()
    for move in (1, 2):
        before = scores[:-move]
        better = before > best[move:]
        if move == 2:
            better &= skips[2:]
        best[move:][better] = before[better]
        moves[move:][better] = move
    return best + emissions, moves


def _moves(
    scores: np.ndarray, logprobs: np.ndarray, states: np.ndarray, skips: np.ndarray, last: int
) -> tuple[np.ndarray, int]:
    """Return the moves of each frame after `scores` to the states that can lead to the state `last`, and the first of
    these states. A path moves by two states a frame at most."""
    low = max(0, last - 2 * len(logprobs))
    window = slice(low, last + 1)
    scores, moves = scores[window], np.zeros((len(logprobs), last + 1 - low), np.uint8)
    for frame, row in enumerate(logprobs):
        scores, moves[frame] = _step(scores, row[states[window]], skips[window])
    return moves, low
