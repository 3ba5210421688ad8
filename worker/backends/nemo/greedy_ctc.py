"""Greedy CTC decoding: the best label of each frame, repeated labels merged, blanks dropped.

    log probabilities ── best label a frame ──▶ runs of one label ── with keywords: the label of each run ──▶ Tokens

With keywords, the runs stay those of the model. The label of a run that is no blank is then the likeliest, with what
the keywords add, on the frame on which the model is surest of its own label. It is never the label of the run directly
before, which would be one token with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from worker.backends.nemo.greedy_transducer import Tokens
from worker.backends.nemo.keywords import Follower


def decode(scores: Any, frames: Any, *, logprobs: bool = False, keywords: Follower | None = None) -> list[Tokens]:
    """Return the tokens of each row; their durations are the frames for which a label repeats.

    `scores`, of shape (rows, frames, labels), are natural log probabilities, and the blank is the last label. `frames`,
    of shape (rows,), is the length of each row. As in NeMo, the probability of a token is that of its least likely
    frame.
    """
    highest, best = scores.max(dim=-1)
    blank = scores.shape[-1] - 1
    boosted = set(keywords.rows) if keywords is not None else set()
    rows = []
    for index, (row, values, length) in enumerate(
        zip(best.cpu().numpy(), highest.float().cpu().numpy(), frames.tolist(), strict=True)
    ):
        labels = row[:length]
        changes = np.flatnonzero(np.diff(labels, prepend=-1))
        lasts = np.diff(np.append(changes, length))
        chosen, lowest = labels[changes], values[:length]
        if keywords is not None and index in boosted and length:
            own = scores[index, :length].float().cpu().numpy()
            chosen = _preferred(own, chosen, changes, keywords, index)
            lowest = own[np.arange(length), np.repeat(chosen, lasts)]
        kept = chosen != blank
        lowest = np.minimum.reduceat(lowest, changes)[kept].tolist() if logprobs and kept.any() else []
        rows.append(Tokens(chosen[kept].tolist(), changes[kept].tolist(), lasts[kept].tolist(), lowest))
    return rows


def _preferred(
    scores: np.ndarray, plain: np.ndarray, changes: np.ndarray, keywords: Follower, index: int
) -> np.ndarray:
    """Return the label of each run of a row with keywords.

    `scores` has shape (frames, labels), `plain` the model's own label of each run, and `changes` their first frames.
    """
    blank = scores.shape[1] - 1
    chosen = plain.copy()
    ends = np.append(changes[1:], len(scores))
    before = blank
    for run, (start, end) in enumerate(zip(changes.tolist(), ends.tolist(), strict=True)):
        if chosen[run] != blank:
            peak = start + int(scores[start:end, chosen[run]].argmax())
            gained = scores[peak, :-1] + keywords.gains_of(index).cpu().numpy()
            if before != blank:
                gained[before] = -np.inf
            chosen[run] = gained.argmax()
            keywords.advance({index: int(chosen[run])})
        before = int(chosen[run])
    return chosen
