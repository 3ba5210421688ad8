"""The cache-aware encoder over live audio: the next chunk of many streams in one call.

    new samples ──▶ features of whole chunks ──┐
                                               ├── encoder ──▶ frames ── greedy ──▶ tokens
    Stream (samples, caches, prediction) ──────┘       └──▶ Stream

A chunk consists of the frames that see each other: `lookahead + 1` of them. The frames of a chunk see the chunks before
it through caches of the attention and of the convolutions, so each frame is computed once. The frames are the same as
those of the whole audio with the same lookahead, the last ones too: at the end of a stream, the chunk that is not full
is padded and masked as transformers does it for a batch. All streams have caches of the same size, whose empty part is
masked, so a stream that starts shares its batch with one that has run for an hour. Only the very first chunks are
computed apart, because they are a bit shorter.

A `Stream` is a value: `advance` returns new ones. A batch that fails can therefore be run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from worker.backends.nemotron_asr import greedy
from worker.backends.nemotron_asr.greedy import Prediction, Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One stream so far."""

    prediction: Prediction
    """Of one row."""
    caches: dict[str, Any]
    """By layer, without the dimension of the batch. Empty before the first chunk."""
    samples: np.ndarray
    """The samples that later features still need."""
    offset: int
    """The place of the first of them in the audio."""
    features: int = 0
    """How many frames of features the encoder has taken."""
    frames: int = 0
    """How many frames the encoder has returned."""
    ids: tuple[int, ...] = ()
    """The tokens so far."""
    starts: tuple[int, ...] = ()
    """The frame of each token."""
    logprobs: tuple[float, ...] = ()
    """The log probability of each token, if requested."""


class StreamingEncoder:
    """The encoder of a model, with the chunks of one lookahead.

    model: a NemotronAsrStreamingForRNNT or a Nemotron3_5AsrForRNNT. extractor: its feature extractor.
    lookahead: how many frames of the future a frame sees at most.
    """

    def __init__(self, model: Any, extractor: Any, lookahead: int) -> None:
        self._model, self._extractor = model, extractor
        config = model.config.encoder_config
        self._left: int = config.sliding_window - 1  # frames of the attention's cache
        self._size: int = config.subsampling_factor * (lookahead + 1)  # features of a chunk
        self._first: int = 1 + config.subsampling_factor * lookahead  # features of the first chunk
        self._hop: int = extractor.hop_length  # samples from the middle of a frame of features to the next
        self._half: int = extractor.n_fft // 2  # samples of half a transform
        self._reach: int = extractor.win_length // 2  # samples after the middle of a frame that its features need

    def start(self) -> Stream:
        """Return a stream without audio."""
        before = np.zeros(self._half, np.float32)  # what the first frame reaches before the audio
        return Stream(greedy.start(self._model, 1), {}, before, -len(before))

    def advance(
        self,
        streams: Sequence[Stream],
        samples: Sequence[np.ndarray],
        ends: Sequence[bool],
        prompts: Any = None,
        *,
        logprobs: bool = False,
    ) -> list[Stream]:
        """Return the streams after more samples, as many chunks further as these fill.

        `ends` says which of the streams end, so that their last chunk need not be full. `prompts`, of shape (streams,),
        are the languages' numbers of a model that has them.
        """
        now = [
            replace(stream, samples=np.concatenate([stream.samples, more]))
            for stream, more in zip(streams, samples, strict=True)
        ]
        while True:
            counts = [self._ready(stream, end) for stream, end in zip(now, ends, strict=True)]
            ready = [i for i, count in enumerate(counts) if count]
            if not ready:
                return now
            first = [i for i in ready if not now[i].features]
            later = [i for i in ready if now[i].features]
            for rows in (first, later):
                if rows:
                    own = None if prompts is None else prompts[rows]
                    after = self._step([now[i] for i in rows], [counts[i] for i in rows], own, logprobs)
                    for i, stream in zip(rows, after, strict=True):
                        now[i] = stream

    def _ready(self, stream: Stream, end: bool) -> int:
        """Return the frames of features that the next chunk of the stream has, or 0 if it must wait for more audio."""
        if self._is_full(stream):
            return self._size_of(stream)
        if not end:
            return 0
        return max(0, (stream.offset + len(stream.samples)) // self._hop - stream.features)

    def _size_of(self, stream: Stream) -> int:
        """Return how many frames of features the next chunk of the stream takes."""
        return self._size if stream.features else self._first

    def _is_full(self, stream: Stream) -> bool:
        """Return whether the stream has all samples that the features of its next chunk need."""
        needed = (stream.features + self._size_of(stream) - 1) * self._hop + self._reach
        return stream.offset + len(stream.samples) >= needed

    def _step(self, streams: list[Stream], counts: list[int], prompts: Any, logprobs: bool) -> list[Stream]:
        """Run the next chunk of each stream. `counts` are the features of each; all are first chunks, or none is."""
        features = self._features(streams, counts)
        caches = _Caches([stream.caches for stream in streams], self._left)
        hidden, lengths = self._encode(features, streams, counts, caches)
        encoded = project(self._model, hidden, prompts)
        before = greedy.join([stream.prediction for stream in streams])
        found, after = greedy.decode(self._model, encoded, lengths, before, logprobs=logprobs)
        kept = caches.split()
        return [
            self._after(stream, count, length, tokens, after.rows([i]), kept[i])
            for i, (stream, count, length, tokens) in enumerate(zip(streams, counts, lengths, found, strict=True))
        ]

    def _after(
        self,
        stream: Stream,
        count: int,
        length: int,
        tokens: Tokens,
        prediction: Prediction,
        caches: dict[str, Any],
    ) -> Stream:
        features = stream.features + count
        begin = features * self._hop - self._half  # of the next frame of features
        return Stream(
            prediction,
            caches,
            stream.samples[begin - stream.offset :].copy(),
            begin,
            features,
            stream.frames + length,
            stream.ids + tuple(tokens.ids),
            stream.starts + tuple(stream.frames + at for at in tokens.starts),
            stream.logprobs + tuple(tokens.logprobs),
        )

    def _features(self, streams: list[Stream], counts: list[int]) -> Any:
        """Return the features of the chunks, of shape (rows, frames, bins). Short chunks are padded with zeros."""
        import torch

        size = self._size_of(streams[0])
        full = [i for i, stream in enumerate(streams) if self._is_full(stream)]
        short = [i for i, stream in enumerate(streams) if not self._is_full(stream)]
        rows: list[Any] = [None] * len(streams)
        for places, is_last in ((full, False), (short, True)):
            if places:
                found = self._extract([streams[i] for i in places], size, is_last)
                for i, values in zip(places, found, strict=True):
                    own = values[: counts[i]]
                    rows[i] = torch.nn.functional.pad(own, (0, 0, 0, size - len(own)))
        weight = self._model.encoder_projector.weight
        return torch.stack(rows).to(weight.device, weight.dtype)

    def _extract(self, streams: list[Stream], size: int, is_last: bool) -> Any:
        """Return the features at least up to the chunk's end.

        The samples begin half a transform before the middle of the next frame. The window is zero at the edges of the
        transform, so what follows the reach of a whole chunk does not matter.
        """
        length = self._half + (size - 1) * self._hop + self._reach
        edge = 0 if is_last else self._half - self._reach
        clips = [np.pad(stream.samples if is_last else stream.samples[:length], (0, edge)) for stream in streams]
        return self._extractor(
            clips,
            sampling_rate=self._extractor.sampling_rate,
            center=False,
            is_last_audio_chunk=is_last,
            return_tensors="pt",
        ).input_features

    def _encode(
        self, features: Any, streams: list[Stream], counts: list[int], caches: _Caches
    ) -> tuple[Any, list[int]]:
        """Return the frames of the chunks, of shape (rows, chunk, width), and how many of each row are valid."""
        import torch

        encoder = self._model.encoder
        hidden, lengths = self._subsample(features, streams, counts, caches)
        hidden = hidden * encoder.input_scale
        device = hidden.device
        positions = encoder.encode_positions(hidden, cached_frames=self._left)
        valid = torch.tensor([[min(stream.frames, self._left)] for stream in streams], device=device)
        own = torch.tensor(lengths, device=device)[:, None]
        past = torch.arange(self._left, device=device) >= self._left - valid
        mask = torch.cat([past, torch.arange(hidden.shape[1], device=device) < own], dim=1)[:, None, None]
        for layer in encoder.layers:
            hidden = layer(
                hidden,
                attention_mask=mask.expand(-1, 1, hidden.shape[1], -1),
                position_embeddings=positions,
                cache=caches.attention,
                padding_cache=caches.convolution,
            )
        return hidden, lengths

    def _subsample(
        self, features: Any, streams: list[Stream], counts: list[int], caches: _Caches
    ) -> tuple[Any, list[int]]:
        """Return the subsampled features, and how many frames of each row are valid after all stages.

        As in transformers, what a stage makes of padding is set to zero for the next stage.
        """
        import torch

        layers = self._model.encoder.subsampling
        before = [stream.features for stream in streams]
        total = [start + count for start, count in zip(before, counts, strict=True)]
        hidden = features[:, None]
        for stage in (layers.conv_in, *layers.layers):
            if stage is layers.conv_in:
                hidden = stage(hidden, padding_cache=caches.convolution)
            else:
                hidden = stage.pointwise_conv(stage.depthwise_conv(hidden, padding_cache=caches.convolution))
            before, total = [_halved(n) for n in before], [_halved(n) for n in total]
            lengths = [end - start for start, end in zip(before, total, strict=True)]
            times = torch.arange(hidden.shape[2], device=hidden.device)
            valid = times < torch.tensor(lengths, device=hidden.device)[:, None]
            hidden = layers.act_fn(hidden * valid[:, None, :, None])
        flat = hidden.transpose(1, 2).reshape(hidden.shape[0], hidden.shape[2], -1)
        return layers.linear(flat), lengths


def project(model: Any, hidden: Any, prompts: Any) -> Any:
    """Return the encoder's frames as the joint takes them, after the projection with the language if there is one."""
    import torch

    if prompts is not None:
        one_hot = torch.nn.functional.one_hot(prompts, num_classes=model.config.num_prompts).to(hidden.dtype)
        wide = one_hot[:, None].expand(-1, hidden.shape[1], -1)
        hidden = model.prompt_projector(torch.cat([hidden, wide], dim=-1))
    return model.encoder_projector(hidden)


def _halved(length: int) -> int:
    """Return how many frames a stage makes of so many, as the causal convolutions of transformers do."""
    return length // 2 + 1 if length else 0


class _Caches:
    """The caches of several streams as transformers' layers use them, and their new contents."""

    def __init__(self, rows: list[dict[str, Any]], left: int) -> None:
        import torch

        names = rows[0]
        before = {name: torch.stack([row[name] for row in rows]) for name in names}
        self._after: dict[str, Any] = {}
        self._rows = len(rows)
        self.attention = _Attention(before, self._after, left)
        self.convolution = _Convolution(before, self._after)

    def split(self) -> list[dict[str, Any]]:
        """Return the new contents of each row."""
        return [{name: values[row].clone() for name, values in self._after.items()} for row in range(self._rows)]


class _Attention:
    """The last keys and values of each layer, of shape (rows, heads, left, width); zeros before the first chunk."""

    def __init__(self, before: dict[str, Any], after: dict[str, Any], left: int) -> None:
        self._before, self._after, self._left = before, after, left

    def update(self, keys: Any, values: Any, layer: int, **_: Any) -> tuple[Any, Any]:
        """Return the cached and the new keys and values."""
        return self._extended(f"keys.{layer}", keys), self._extended(f"values.{layer}", values)

    def _extended(self, name: str, new: Any) -> Any:
        import torch

        rows, heads, _, width = new.shape
        before = self._before.get(name)
        both = torch.cat([new.new_zeros(rows, heads, self._left, width) if before is None else before, new], dim=2)
        self._after[name] = both[:, :, both.shape[2] - self._left :]
        return both


class _Convolution:
    """The last inputs of each causal convolution along the third dimension, time; zeros before the first chunk."""

    def __init__(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        self._before, self._after = before, after

    def update(self, hidden: Any, name: str, convolution: Any) -> Any:
        """Return the input of the convolution: the cached frames and the new ones."""
        import torch

        kept = convolution.left_pad
        before = self._before.get(name)
        if before is None:  # a strided convolution has more padding before its first input than it keeps
            shape = list(hidden.shape)
            shape[2] = getattr(convolution, "left_pad_init", kept)
            before = hidden.new_zeros(shape)
        both = torch.cat([before, hidden], dim=2)
        self._after[name] = both[:, :, both.shape[2] - kept :]
        return both
