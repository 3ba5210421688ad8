"""Greedy transducer decoding for a processor: the joint hears a window of frames at once, and blanks cost nothing.

NeMo's decoder calls the joint once for every step over a blank, which a GPU replays as a graph and a processor pays in
full. Here one call covers the next WINDOW frames of every row; the walk over them is plain Python; the prediction
network
runs only when some row has found a token. The answers are NeMo's own, durations included (a TDT token's duration is
what its head says where the token was found; an RNNT token stays on its frame).
"""

from __future__ import annotations

from typing import Any, NamedTuple

WINDOW = 16


class Tokens(NamedTuple):
    """The tokens of one row: ids, the frame each was found at, the frames the walk moved on by."""

    ids: list[int]
    starts: list[int]
    durations: list[int]


def decode(decoder: Any, joint: Any, encoded: Any, frames: Any, durations: list[int], most: int | None) -> list[Tokens]:
    """Tokens of each row. `encoded` is [rows, width, frames], `frames` the length of each row; `durations` are those of
    the TDT head, empty for RNNT; `most` is how many tokens one frame may hold before the walk is pushed on.
    """
    import torch

    heard = joint.project_encoder(encoded.transpose(1, 2))
    rows, longest, _ = heard.shape
    heard = torch.nn.functional.pad(heard, (0, 0, 0, WINDOW))
    every, window = torch.arange(rows)[:, None], torch.arange(WINDOW)
    lengths = frames.tolist()
    blank = decoder.blank_idx
    labels = torch.full((rows, 1), blank)
    said, state, *_ = decoder.predict(labels, decoder.initialize_state(heard), add_sos=False, batch_size=rows)
    said = joint.project_prednet(said)
    found = [Tokens([], [], []) for _ in range(rows)]
    at = [0] * rows
    while any(here < length for here, length in zip(at, lengths, strict=True)):
        reached = torch.tensor(at).clamp(max=longest)[:, None] + window
        logits = joint.joint_after_projection(heard[every, reached], said).squeeze(2)
        split = logits.shape[-1] - len(durations)
        best = logits[..., :split].argmax(dim=-1).tolist()
        moves = logits[..., split:].argmax(dim=-1).tolist() if durations else None
        new = []
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
                new.append(row)
                full = most is not None and len(tokens.starts) >= most and tokens.starts[-most] == here
                here += move or full
                break
            at[row] = here
        if new:
            said_before, state_before = said, state
            labels = torch.tensor([tokens.ids[-1:] or [blank] for tokens in found])
            said, state, *_ = decoder.predict(labels, state_before, add_sos=False, batch_size=rows)
            said = joint.project_prednet(said)
            if len(new) < rows:
                kept = torch.ones(rows, dtype=torch.bool)
                kept[new] = False
                decoder.batch_replace_states_mask(src_states=state_before, dst_states=state, mask=kept)
                said = torch.where(kept[:, None, None], said_before, said)
    return found
