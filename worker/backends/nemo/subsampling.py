"""The convolutions at the start of a FastConformer encoder, computed in pieces so that hours of audio fit in memory.

    mel of the whole clip ── pieces with a frame of context ──▶ pre_encode ──▶ states ── joined ──▶ encoder's layers

NeMo convolves a clip as a whole. In bfloat16, this takes 3.3 MB of memory for each second of audio. Beyond 44 minutes,
NeMo takes another path, which holds the whole first convolution too. A state depends only on the frames around it, so
pieces have the same states.
"""

from __future__ import annotations

from typing import Any

PIECE_FRAMES = 60_000  # mel frames of 10 ms that are convolved at a time, over all rows: ten minutes, 2 GB in bfloat16
EXACT = ("dw_striding", "striding")  # convolutions of width 3 and stride 2, as in all published FastConformers


def encode(encoder: Any, mel: Any, lengths: Any) -> tuple[Any, Any]:
    """Return what a NeMo ConformerEncoder returns: states of shape (rows, width, frames), and the length of each row.

    `mel` has shape (rows, features, frames), and `lengths`, of shape (rows,), counts the valid frames of each row.
    """
    subsampling = getattr(encoder.pre_encode, "_subsampling", None)
    if subsampling not in EXACT or encoder.pre_encode.is_causal:
        encoded, frames = encoder(audio_signal=mel, length=lengths)
        return encoded, frames
    states, frames = subsample(encoder.pre_encode, mel.transpose(1, 2), lengths)
    encoded, frames = encoder(audio_signal=states, length=frames, bypass_pre_encode=True)
    return encoded, frames


def subsample(pre_encode: Any, mel: Any, lengths: Any, piece_frames: int = PIECE_FRAMES) -> tuple[Any, Any]:
    """Return the states of a NeMo ConvSubsampling, of shape (rows, frames, width), and the length of each row.

    `mel` has shape (rows, frames, features). With n layers, `factor` is 2ⁿ, and state i depends on the frames within
    `factor` - 1 of frame `factor` * i. So each piece starts `factor` frames early, and its first state, which lacks
    context, is dropped. A piece needs no context at its end, which lies `factor` frames after that of its last state.
    """
    import torch

    rows, count, _features = mel.shape
    factor = pre_encode.subsampling_factor
    step = max(1, piece_frames // (rows * factor)) * factor
    states = []
    for start in range(0, count, step):
        context = factor if start else 0
        first, end = start - context, min(start + step, count)
        piece, _frames = pre_encode(x=mel[:, first:end], lengths=(lengths - first).clamp(0, end - first))
        states.append(piece[:, context // factor :])
    return torch.cat(states, dim=1) if len(states) > 1 else states[0], (lengths + factor - 1) // factor
