"""The times of Whisper's tokens, from the frames that its decoder attended to while it wrote them.

    text ── decoder ──▶ attention of the alignment heads ── normalize, smooth, mean ──▶ cost ── cheapest path ──▶ starts

The decoder runs over the finished text once more, and only the attention of the alignment heads is kept. transformers'
own token times keep every attention map of the encoder, which takes gigabytes for a large model.

The method is that of OpenAI's Whisper (whisper/timing.py). The attention of each head to the valid frames is normalized
over the tokens, and smoothed by a median filter over the frames. The cheapest monotonic path (dynamic time warping)
through the mean of all heads gives each token's start. The attention that belongs to a token is that of the position
before it, at which the decoder predicts the token.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

SMOOTHED = 7  # frames, the width of the median filter
# A sorting network for the median of seven values: each pair (i, j) puts the lower value in place i, the higher in j.
_EXCHANGES = ((0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4))


def token_times(
    model: Any,
    states: Any,
    rows: Sequence[Sequence[int]],
    prefix: int,
    frames: Sequence[int],
    heads: Sequence[tuple[int, int]],
    frame_sec: float,
) -> list[list[tuple[float, float]]]:
    """Return the start and end in seconds of each text token of each row.

    `states` are the encoder's states, of shape (rows, frames, width), and `frames` counts the valid frames of each row.
    Each of `rows` holds the ids of the control tokens before the text (`prefix` of them), of the text, and of the end
    token. `heads` are the (layer, head) pairs whose attention follows the audio. `frame_sec` is the length of a frame.
    """
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows], device=states.device)
    with _record(model.model.decoder, heads) as maps:
        model.model.decoder(input_ids=ids, encoder_hidden_states=states, use_cache=False)
    attention = torch.stack([maps[head] for head in heads], dim=1).float()
    return [
        _times(attention[row, :, : len(tokens), : max(1, count)], prefix, frame_sec)
        for row, (tokens, count) in enumerate(zip(rows, frames, strict=True))
    ]


@contextlib.contextmanager
def _record(decoder: Any, heads: Sequence[tuple[int, int]]) -> Iterator[dict[tuple[int, int], Any]]:
    """Record the cross-attention of the heads: by layer and head, of shape (rows, tokens, frames)."""
    maps: dict[tuple[int, int], Any] = {}

    def keep(layer: int, weights: Any) -> None:
        maps.update({(layer, head): weights[:, head].clone() for at, head in heads if at == layer})

    undo = contextlib.ExitStack()
    with undo:
        for layer in sorted({layer for layer, _ in heads}):
            module = decoder.layers[layer].encoder_attn
            kept = module.config
            module.config = copy.copy(kept)
            module.config._attn_implementation = "eager"  # the only implementation that returns its weights
            undo.callback(setattr, module, "config", kept)
            undo.callback(
                module.register_forward_hook(
                    lambda _module, _inputs, output, layer=layer: keep(layer, output[1])
                ).remove
            )
        yield maps


def _times(attention: Any, prefix: int, frame_sec: float) -> list[tuple[float, float]]:
    """Return the start and end in seconds of each text token of one row.

    `attention` has shape (heads, tokens, frames).
    """
    valid = attention / attention.sum(dim=-1, keepdim=True).clamp(min=1e-9)
    spread, mean = valid.std(dim=-2, keepdim=True, unbiased=False), valid.mean(dim=-2, keepdim=True)
    smooth = smoothed((valid - mean) / spread.clamp(min=1e-9)).mean(dim=0)
    # Row i predicts token i + 1: the row before the text is that of the first token, the last is that of the end token.
    starts = path_starts(-smooth[prefix - 1 : -1].cpu().numpy())
    edges = [start * frame_sec for start in starts]
    return list(itertools.pairwise(edges))


def smoothed(values: Any) -> Any:
    """Return the medians of the `SMOOTHED` frames around each frame. `values` has shape (heads, tokens, frames)."""
    import torch

    edge, frames = SMOOTHED // 2, values.shape[-1]
    padded = torch.nn.functional.pad(values, (edge, edge), mode="reflect" if frames > edge else "replicate")
    places = [padded[..., at : at + frames] for at in range(SMOOTHED)]
    for low, high in _EXCHANGES:
        places[low], places[high] = (
            torch.minimum(places[low], places[high]),
            torch.maximum(places[low], places[high]),
        )
    return places[edge]


def path_starts(cost: np.ndarray) -> list[int]:
    """Return the frame at which the cheapest monotonic path through `cost` enters each token.

    `cost` has shape (tokens, frames).
    """
    tokens, frames = cost.shape
    total = np.empty((tokens, frames))
    total[0] = np.cumsum(cost[0])
    for row in range(1, tokens):
        above = np.minimum(total[row - 1], np.concatenate([[np.inf], total[row - 1][:-1]]))
        run = np.cumsum(cost[row])
        total[row] = run + np.minimum.accumulate(above - np.concatenate([[0.0], run[:-1]]))
    starts = [0] * tokens
    row, frame = tokens - 1, frames - 1
    while row > 0:
        before = total[row, frame - 1] if frame else np.inf
        slant = total[row - 1, frame - 1] if frame else np.inf
        if before < min(slant, total[row - 1, frame]):
            frame -= 1
            continue
        starts[row] = frame
        row -= 1
        if frame and slant <= total[row, frame]:
            frame -= 1
    return starts
