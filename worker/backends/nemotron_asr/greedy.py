"""Greedy RNN-T decoding that can be resumed: one call of the joint covers a window of frames, and blanks are free.

    encoded frames ──────────────────┐
                                     ├── joint, WINDOW frames of each row ──▶ labels ── walk ──▶ Tokens
    Prediction of the last token ────┘                                                  └──▶ Prediction

A row is walked to its own end, and is left out of the calls from there on, so its tokens do not depend on the other
rows. `generate` of transformers is not used: in transformers 5.24 it keeps decoding rows beyond their end until the
longest row of the batch has ended, and it cannot be resumed for another batch of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from worker.backends.common import threads

WINDOW = 16
SHARED = 32_000_000  # multiplications in a call of the joint, some 1 ms of a core, from which on threads share it


@dataclass(slots=True)
class Tokens:
    """The tokens of one row: their ids, the frame of each, and their log probabilities if they are requested."""

    ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the prediction network makes of the tokens so far, of each row.

    `output` has shape (rows, width), `hidden` and `cell` (layers, rows, width).
    """

    output: Any
    hidden: Any
    cell: Any

    def rows(self, places: Any) -> Prediction:
        """Return the rows at these places."""
        return Prediction(self.output[places], self.hidden[:, places], self.cell[:, places])

    def replaced(self, places: Any, other: Prediction) -> Prediction:
        """Return a copy with `other` in the rows at these places."""
        output, hidden, cell = self.output.clone(), self.hidden.clone(), self.cell.clone()
        output[places], hidden[:, places], cell[:, places] = other.output, other.hidden, other.cell
        return Prediction(output, hidden, cell)


def join(predictions: list[Prediction]) -> Prediction:
    """Return one prediction with the rows of all."""
    import torch

    return Prediction(
        torch.cat([one.output for one in predictions]),
        torch.cat([one.hidden for one in predictions], dim=1),
        torch.cat([one.cell for one in predictions], dim=1),
    )


def start(model: Any, rows: int) -> Prediction:
    """Return the prediction before the first token, which follows a blank."""
    decoder = model.decoder
    weight = decoder.embedding.weight
    zeros = weight.new_zeros(decoder.lstm.num_layers, rows, decoder.lstm.hidden_size)
    return _predict(model, [model.config.blank_token_id] * rows, zeros, zeros)


def _is_shared(model: Any, encoded: Any, *_: Any, **__: Any) -> bool:
    """Return whether a call of the joint is large enough for several threads."""
    return len(encoded) * WINDOW * int(model.joint.head.weight.numel()) >= SHARED


@threads.in_one_thread(unless=_is_shared)
def decode(
    model: Any, encoded: Any, lengths: list[int], prediction: Prediction, *, logprobs: bool = False
) -> tuple[list[Tokens], Prediction]:
    """Return the tokens of each row, and the prediction to resume from.

    `encoded` has shape (rows, frames, width) and is projected for the joint; `lengths` are the frames of each row.
    After `max_symbols_per_step` tokens on one frame, the walk advances by a frame.
    """
    import torch

    blank, most = model.config.blank_token_id, model.max_symbols_per_step
    found = [Tokens() for _ in lengths]
    scores: list[tuple[list[int], Any]] = []  # the rows that found a token in the same call, and its log probability
    at = [0] * len(lengths)
    last = encoded.shape[1] - 1
    window = torch.arange(WINDOW, device=encoded.device)
    while active := [row for row, length in enumerate(lengths) if at[row] < length]:
        places = torch.tensor(active, device=encoded.device)
        frames = (torch.tensor([at[row] for row in active], device=encoded.device)[:, None] + window).clamp(max=last)
        logits = model.joint(
            encoder_hidden_states=encoded[places[:, None], frames],
            decoder_hidden_states=prediction.output[places][:, None],
        )
        best = logits.argmax(dim=-1).tolist()
        new: dict[int, tuple[int, int]] = {}  # rows that find a token: their place in the call and the window
        for place, row in enumerate(active):
            first, tokens = at[row], found[row]
            end = min(lengths[row], first + WINDOW)
            here = next((i for i in range(first, end) if best[place][i - first] != blank), end)
            at[row] = here
            if here < end:
                tokens.ids.append(best[place][here - first])
                tokens.starts.append(here)
                new[row] = place, here - first
                at[row] += len(tokens.starts) >= most and tokens.starts[-most] == here
        if new:
            if logprobs:
                chosen = logits[[place for place, _ in new.values()], [offset for _, offset in new.values()]].float()
                scores.append(([*new], chosen.amax(dim=-1) - chosen.logsumexp(dim=-1)))
            rows = torch.tensor([*new], device=encoded.device)
            after = _predict(
                model, [found[row].ids[-1] for row in new], prediction.hidden[:, rows], prediction.cell[:, rows]
            )
            prediction = prediction.replaced(rows, after)
    for rows_of_call, values in scores:
        for row, value in zip(rows_of_call, values.tolist(), strict=True):
            found[row].logprobs.append(value)
    return found, prediction


def _predict(model: Any, ids: list[int], hidden: Any, cell: Any) -> Prediction:
    """Run the prediction network over one token of each row."""
    import torch

    decoder = model.decoder
    embedded = decoder.embedding(torch.tensor(ids, device=decoder.embedding.weight.device)[:, None])
    output, (hidden, cell) = decoder.lstm(embedded, (hidden.contiguous(), cell.contiguous()))
    return Prediction(decoder.decoder_projector(output)[:, 0], hidden, cell)
