"""Greedy transducer decoding for a CPU: one call of the joint covers a window of frames, and blanks are free.

    encoded ── joint.project_encoder ──▶ frames ──┐
                                                  ├── joint, WINDOW frames of each row ──▶ labels ── walk ──▶ Tokens
    last token ── prediction network ─────────────┘

NeMo's decoder calls the joint once for each step over a blank. A GPU replays that step as a graph; a CPU pays for it in
full. Here one call covers the next WINDOW frames of every row, and the walk over the labels is plain Python. The
prediction network runs only after some row has found a token. The steps of a small model run in one thread.

The result is the same as NeMo's, durations included: the duration of a TDT token is that which the model's duration
head predicts at the token's frame; an RNNT token stays on its frame.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from worker.backends.common import threads
from worker.backends.nemo.keywords import Follower

WINDOW = 16
SHARED = 32_000_000  # multiplications in a call of the joint, some 1 ms of a core, from which on threads share it


class Tokens(NamedTuple):
    """The tokens of one row: their ids, the frame on which each was found, and the frames that each advanced by.

    `logprobs` are the natural logarithms of their probabilities among all labels, or empty if they are not wanted.
    """

    ids: list[int]
    starts: list[int]
    durations: list[int]
    logprobs: list[float]


def _is_shared(_decoder: Any, joint: Any, encoded: Any, *_: Any, **__: Any) -> bool:
    """Return whether a call of the joint is large enough for several threads."""
    weights = sum(parameter.numel() for parameter in joint.joint_net.parameters())
    return len(encoded) * WINDOW * int(weights) >= SHARED


@threads.in_one_thread(unless=_is_shared)
def decode(
    decoder: Any,
    joint: Any,
    encoded: Any,
    frames: Any,
    durations: list[int],
    max_symbols: int | None,
    *,
    logprobs: bool = False,
    keywords: Follower | None = None,
) -> list[Tokens]:
    """Return the tokens of each row.

    `encoded` has shape (rows, width, frames), and `frames`, of shape (rows,), is the length of each row. `durations`
    are those of the TDT head, empty for RNNT. After `max_symbols` tokens on one frame the walk advances by a frame;
    None sets no limit. `logprobs` is whether to compute the log probability of each token: of the tokens only, because
    the joint runs without its softmax. `keywords` are those of the rows, which gain nothing in these probabilities.
    """
    import torch

    projected = joint.project_encoder(encoded.transpose(1, 2))
    rows, longest, _ = projected.shape
    projected = torch.nn.functional.pad(projected, (0, 0, 0, WINDOW))
    every, window = torch.arange(rows)[:, None], torch.arange(WINDOW)
    lengths, blank = frames.tolist(), decoder.blank_idx
    labels = torch.full((rows, 1), blank)
    predicted, state, *_ = decoder.predict(labels, decoder.initialize_state(projected), add_sos=False, batch_size=rows)
    predicted = joint.project_prednet(predicted)
    found = [Tokens([], [], [], []) for _ in range(rows)]
    scores: list[tuple[list[int], Any]] = []  # the rows that found a token in the same call, and its log probabilities
    at = [0] * rows
    while any(here < length for here, length in zip(at, lengths, strict=True)):
        reached = torch.tensor(at).clamp(max=longest)[:, None] + window
        logits = joint.joint_after_projection(projected[every, reached], predicted).squeeze(2)
        split = logits.shape[-1] - len(durations)
        best = _labels(logits[..., :split], keywords).tolist()
        moves = logits[..., split:].argmax(dim=-1).tolist() if durations else None
        new: dict[int, int] = {}  # rows that find a token in this call → where in their window
        for row, tokens in enumerate(found):
            first = here = at[row]
            end = min(lengths[row], first + WINDOW)
            while here < end:
                label = best[row][here - first]
                move = durations[moves[row][here - first]] if moves else 0
                if label == blank:
                    here += max(move, 1)
                    continue
                tokens.ids.append(label)
                tokens.starts.append(here)
                tokens.durations.append(move)
                new[row] = here - first
                here += move or _push(tokens.starts, max_symbols)
                break
            at[row] = here
        if new:
            labels = torch.tensor([tokens.ids[-1:] or [blank] for tokens in found])
            if logprobs:
                scores.append(([*new], _logprobs(logits[[*new], [*new.values()], :split], labels[[*new]])))
            if keywords is not None:
                keywords.advance({row: found[row].ids[-1] for row in new})
            predicted_before, state_before = predicted, state
            predicted, state, *_ = decoder.predict(labels, state_before, add_sos=False, batch_size=rows)
            predicted = joint.project_prednet(predicted)
            if len(new) < rows:
                kept = torch.ones(rows, dtype=torch.bool)
                kept[[*new]] = False
                decoder.batch_replace_states_mask(src_states=state_before, dst_states=state, mask=kept)
                predicted = torch.where(kept[:, None, None], predicted_before, predicted)
    _distribute(scores, found)
    return found


def _distribute(scores: list[tuple[list[int], Any]], found: list[Tokens]) -> None:
    """Append the log probabilities of each call of the joint to the tokens of its rows."""
    for rows, values in scores:
        for row, value in zip(rows, values.tolist(), strict=True):
            found[row].logprobs.append(value)


def _labels(logits: Any, keywords: Follower | None) -> Any:
    """Return the label of each frame: the likeliest one or, if that is no blank, the likeliest with its row's keywords.

    `logits` has shape (rows, frames, labels), and the blank is the last label.
    """
    import torch

    best = logits.argmax(dim=-1)
    if keywords is not None:
        own, plain = logits[keywords.rows, :, :-1], best[keywords.rows]
        preferred = (own + keywords.gains[:, None]).argmax(dim=-1)
        best[keywords.rows] = torch.where(plain == logits.shape[-1] - 1, plain, preferred)
    return best


def _logprobs(logits: Any, labels: Any) -> Any:
    """Return the log probability of each row's label. `logits` has shape (rows, all labels), `labels` (rows, 1)."""
    return logits.gather(1, labels)[:, 0] - logits.logsumexp(dim=-1)


def _push(starts: list[int], max_symbols: int | None) -> int:
    """Return 1 if the last frame holds `max_symbols` tokens, so that the walk must leave it; else 0."""
    full = max_symbols is not None and len(starts) >= max_symbols and starts[-max_symbols] == starts[-1]
    return 1 if full else 0
