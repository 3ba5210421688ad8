"""NVIDIA's Nemotron-3-Diarization through transformers: who speaks when, for up to eight speakers who may overlap.

    clips ── chunks of 27 s with 3 s of look-ahead ── mel ──▶ model with a cache of speakers ──▶ probabilities ──▶ turns

The model keeps frames of each speaker in a cache, so a speaker has one name over hours, and each chunk takes the same
memory. The result is that of the model's own pass over a whole recording, in which the mel spectrogram of the recording
has to fit in memory. The clips of a batch take the same chunk at a time.

The model counts the speakers itself and accepts no number of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worker.backends.common import pretrained
from worker.backends.common.device import device_of, dtype_of, libraries
from worker.backends.common.folder_backend import FolderBackend
from worker.backends.common.silence import is_silent
from worker.backends.speakers import activity
from worker.errors import Cancelled, ModelUnavailable
from worker.types import SAMPLE_RATE, Batch, Diarization, Output, Piece

_CLASS = "Nemotron3DiarizationForAudioFrameClassification"


class Nemotron(FolderBackend):
    """A Nemotron-3-Diarization checkpoint."""

    overhead_sec = 30.0

    def load(self) -> None:
        """Load the checkpoint. Raises ModelUnavailable."""
        folder = self._folder()
        self._torch, transformers = libraries(self._row.id)
        if not hasattr(transformers, _CLASS):
            raise ModelUnavailable(f"{self._row.id} requires transformers 5.24. Run: pip install -U transformers")
        self._device = device_of(self._settings)
        self._dtype = dtype_of(self._settings, self._device)
        self._model = pretrained.load_model(
            getattr(transformers, _CLASS), folder, device=self._device, dtype=self._dtype
        )
        self._extractor = pretrained.load(transformers.AutoFeatureExtractor, folder)
        self._factor: int = self._model.config.audio_config.subsampling_factor
        self._padding: Any = None
        self._model.model.upsampler.register_forward_pre_hook(self._without_padding)

    def infer(self, batch: Batch) -> list[Output]:
        """Return the turns of each clip. Raises Cancelled if all requests were canceled."""
        outputs: list[Output] = [Diarization(())] * len(batch.pieces)
        spoken = [i for i, piece in enumerate(batch.pieces) if not is_silent(piece.clip.samples)]
        if spoken:
            pieces = [batch.pieces[i] for i in spoken]
            with self._torch.inference_mode():
                probabilities = self._probabilities(pieces)
            hop_sec = self._extractor.hop_length / SAMPLE_RATE
            for i, piece, values in zip(spoken, pieces, probabilities, strict=True):
                own = values[: self._frames(piece)]
                outputs[i] = Diarization(activity.turns(own, hop_sec, piece.duration_sec))
        return outputs

    def _frames(self, piece: Piece) -> int:
        """Return how many mel frames a clip has."""
        return len(piece.clip.samples) // int(self._extractor.hop_length)

    def _probabilities(self, pieces: Sequence[Piece]) -> np.ndarray:
        """Return how probably each speaker talks in each mel frame, of shape (pieces, frames, speakers)."""
        config, factor = self._model.config, self._factor
        cache = _cache_of(self._model)
        longest = -(-max(map(self._frames, pieces)) // factor)  # in frames of the encoder, like the following
        found: list[np.ndarray] = []
        for start in range(0, longest, config.chunk_length):
            if all(piece.cancelled() for piece in pieces):
                raise Cancelled("the request was canceled")
            end = min(start + config.chunk_length, longest)
            first, last = max(start - config.chunk_left_context, 0), min(end + config.chunk_right_context, longest)
            features, mask = self._features(pieces, first * factor, last * factor)
            self._padding = ~mask[:, ::factor, None]
            output = self._model(
                input_features=features,
                attention_mask=mask,
                speaker_cache=cache,
                num_lookback_frames=start - first,
                num_lookahead_frames=last - end,
            )
            found.append(output.logits.float().sigmoid().cpu().numpy())
        return np.concatenate(found, axis=1)

    def _features(self, pieces: Sequence[Piece], first: int, last: int) -> tuple[Any, Any]:
        """Return the mel frames from `first` up to `last` of each clip, and a mask of those that the clips have.

        They have the shapes (pieces, frames, bands) and (pieces, frames).
        """
        features = np.zeros((len(pieces), last - first, self._extractor.feature_size), np.float32)
        mask = np.zeros(features.shape[:2], bool)
        for row, valid, piece in zip(features, mask, pieces, strict=True):
            if (count := min(last, self._frames(piece)) - first) > 0:
                row[:count] = self._mel(piece, first, first + count)
                valid[:count] = True
        torch = self._torch
        return torch.from_numpy(features).to(self._device, self._dtype), torch.from_numpy(mask).to(self._device)

    def _mel(self, piece: Piece, first: int, last: int) -> np.ndarray:
        """Return the frames of a clip from `first` up to `last`, as the extractor computes them of the whole clip."""
        hop, half = self._extractor.hop_length, self._extractor.n_fft // 2
        samples, begin = piece.clip.samples, first * hop - half
        is_end = last == self._frames(piece)
        part = samples[max(0, begin) : None if is_end else (last - 1) * hop + half]
        inputs = self._extractor(
            [np.pad(part, (max(0, -begin), 0))],
            sampling_rate=SAMPLE_RATE,
            center=False,
            is_last_audio_chunk=is_end,
            return_tensors="pt",
        )
        mel: np.ndarray = inputs["input_features"][0, : last - first].numpy()
        return mel

    def _without_padding(self, _module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Set the states of the padding of a chunk to zero, before a convolution mixes them with their neighbors.

        Then the last frames of a clip are what they are without padding.
        """
        (states,) = inputs
        cached = states.shape[1] - self._padding.shape[1]
        chunk = states[:, cached:].masked_fill(self._padding, 0.0)
        return (self._torch.cat([states[:, :cached], chunk], dim=1),)


def _cache_of(model: Any) -> Any:
    """Return an empty cache of speakers, in the sizes for whole recordings."""
    from transformers.models.nemotron3_diarization import modeling_nemotron3_diarization as modeling

    return modeling.Nemotron3DiarizationSpeakerCache(
        model.config.streaming_config,
        fifo_length=model.config.fifo_length,
        speaker_cache_update_period=model.config.speaker_cache_update_period,
    )
