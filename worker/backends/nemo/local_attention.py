"""Local attention for a FastConformer encoder, as a context manager that restores the encoder exactly.

NeMo's own `change_attention_model` rebuilds every attention layer. On an encoder without biases the new layers get
biases with random values, they are float32 and in training mode, and switching back keeps the local context. This
module builds the local layers once, around the encoder's own parameters (no copies, no new weights). Entering and
exiting the context only swaps references.

`longest_full_sec` returns from which length on a clip requires local attention.
"""

from __future__ import annotations

import math
import os
from types import TracebackType
from typing import Any

WINDOW = (128, 128)  # frames of 80 ms to each side: 10.24 s, as for the long-form results of the model cards

MOST_SEC = 1440.0  # the longest audio with full attention, even if more would fit: NVIDIA's figure for 80 GB
# At its peak, a layer with full attention holds this many matrices of (frames, frames) for each head: 37 GB for 1,440 s
# of a 0.6b model in bfloat16. Counted with fake tensors for NeMo 3.0.0; tests/test_nemo_memory.py counts again.
MATRICES = 7.3
DEVICE_SHARE = 0.85  # of the free memory of a GPU; the rest is for what grows with the frames, and for fragmentation
RAM_SHARE = 0.5  # of a computer's memory, in which the weights, the decoded audio and other programs are too


def longest_full_sec(encoder: Any, frame_sec: float) -> float:
    """Return the longest audio, in seconds, for which full attention fits into the memory that is free now.

    `encoder` is a NeMo ConformerEncoder on its device, and `frame_sec` is the length of one of its frames. The matrices
    take MATRICES * frames² * heads * bytes of a number, which is solved for the frames.
    """
    weight = next(encoder.parameters())
    bytes_of_square = MATRICES * encoder.layers[0].self_attn.h * weight.element_size()
    return min(MOST_SEC, math.sqrt(_bytes_for_attention(weight.device) / bytes_of_square) * frame_sec)


def _bytes_for_attention(device: Any) -> float:
    import torch

    if device.type != "cuda":
        return RAM_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free, _total = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return DEVICE_SHARE * float(free + cached)


class LocalAttention:
    """A context in which the encoder attends to `window` frames on each side.

    Not reentrant, and for one thread at a time.
    """

    def __init__(self, encoder: Any, window: tuple[int, int] = WINDOW) -> None:
        """Build the local layers for a NeMo ConformerEncoder with relative-position attention ("rel_pos")."""
        from nemo.collections.asr.parts.submodules.multi_head_attention import LocalAttRelPositionalEncoding

        self._encoder = encoder
        self._window = list(window)
        first = next(encoder.parameters())
        self._layers = [_local(layer.self_attn, self._window) for layer in encoder.layers]
        config = encoder._cfg
        position = LocalAttRelPositionalEncoding(
            att_context_size=self._window,
            d_model=config.d_model,
            dropout_rate=config.dropout,
            max_len=config.pos_emb_max_len,
            xscale=encoder.xscale,
            dropout_rate_emb=config.dropout_emb,
        )
        position.extend_pe(encoder.pos_emb_max_len, first.device, first.dtype)
        self._position = position.to(first.device).eval()
        self._max_length = encoder.pos_emb_max_len
        self._kept: tuple[Any, ...] = ()

    def __enter__(self) -> None:
        encoder = self._encoder
        self._kept = (
            encoder.pos_enc,
            encoder.self_attention_model,
            encoder.att_context_size,
            encoder.max_audio_length,
            [(layer.self_attn, layer.self_attention_model) for layer in encoder.layers],
        )
        encoder.pos_enc, encoder.self_attention_model = self._position, "rel_pos_local_attn"
        encoder.att_context_size, encoder.max_audio_length = self._window, self._max_length
        for layer, local in zip(encoder.layers, self._layers, strict=True):
            layer.self_attn, layer.self_attention_model = local, "rel_pos_local_attn"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        encoder = self._encoder
        self._max_length = encoder.max_audio_length
        encoder.pos_enc, encoder.self_attention_model, encoder.att_context_size, encoder.max_audio_length, layers = (
            self._kept
        )
        for layer, (attention, name) in zip(encoder.layers, layers, strict=True):
            layer.self_attn, layer.self_attention_model = attention, name


def _local(attention: Any, window: list[int]) -> Any:
    """Return a sliding-window layer that shares the parameters of a relative-position attention layer."""
    from nemo.collections.asr.parts.submodules.multi_head_attention import RelPositionMultiHeadAttentionLongformer

    twin = RelPositionMultiHeadAttentionLongformer(
        n_head=attention.h,
        n_feat=attention.h * attention.d_k,
        dropout_rate=0.0,
        max_cache_len=0,
        att_context_size=window,
        pos_bias_u=attention.pos_bias_u,
        pos_bias_v=attention.pos_bias_v,
    )
    for name in ("linear_q", "linear_k", "linear_v", "linear_out", "linear_pos"):
        setattr(twin, name, getattr(attention, name))
    return twin.eval()
