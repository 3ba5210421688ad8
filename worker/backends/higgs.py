"""Higgs-Audio understanding, for scoring: features from its audio tower, transcripts from a Whisper model.

    pieces ── audio tower ──▶ embedding           (task embed)
           ── the row's `transcriber` ──▶ text    (every other task)

No public checkpoint named `bosonai/higgs-audio-v2-understanding-3B` could be found, so this backend has never run on
one. It does what scoring requires: it loads only the tensors `audio_tower.*`, which in Higgs's published encoder are
those of an AudioFlamingo3Encoder. The row's `processor` makes the mel features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from worker import catalog
from worker.backends import create
from worker.backends.base import Backend
from worker.backends.common import audio_tower, checkpoints, pretrained
from worker.backends.common.device import device_of, dtype_of, libraries
from worker.catalog import Model
from worker.config import Settings
from worker.errors import ModelUnavailable
from worker.types import SAMPLE_RATE, Batch, Embedding, Output, Piece

HEAD_WIDTH = 64  # that of every Whisper encoder; the default for a checkpoint without a configuration


class Higgs(Backend):
    """The audio tower of a Higgs-Audio checkpoint and a transcriber: embeds and transcribes audio."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self._row, self._settings = model, settings
        self._transcriber = create(catalog.find(model.transcriber or "", settings.places), settings)

    def weight_bytes(self) -> int:
        """Return the bytes of the audio tower and the transcriber. Raises ModelUnavailable."""
        return audio_tower.tower_bytes(self._folder()) + self._transcriber.weight_bytes()

    def load(self) -> None:
        """Load the audio tower and the transcriber. Raises ModelUnavailable."""
        folder = self._folder()
        self._torch, transformers = libraries(self._row.id)
        self._device = device_of(self._settings)
        self._dtype = dtype_of(self._settings, self._device)
        self._features = pretrained.load(
            transformers.AutoFeatureExtractor,
            checkpoints.checkpoint(self._row.processor or "", self._settings, part=None),
        )
        config = _config(transformers, folder)
        if self._features.feature_size != config.num_mel_bins:
            raise ModelUnavailable(
                f"{self._row.id} requires {config.num_mel_bins} mel bands, but its processor "
                f"{self._row.processor} makes {self._features.feature_size}"
            )
        self._tower = audio_tower.load_tower(folder, config, self._dtype, self._device)
        self._transcriber.load()
        self.overhead_sec, self.least_sec = self._transcriber.overhead_sec, self._transcriber.least_sec
        self._frame_rate = SAMPLE_RATE / self._features.hop_length / 4

    def infer(self, batch: Batch) -> list[Output]:
        """Embed the pieces, or pass any other task to the transcriber."""
        if batch.options.task != "embed":
            return self._transcriber.infer(batch)
        with self._torch.inference_mode():
            rows = audio_tower.states(self._tower, self._features, [piece.clip.samples for piece in batch.pieces])
        return [self._embedding(piece, states) for piece, states in zip(batch.pieces, rows, strict=True)]

    def close(self) -> None:
        """Free the device's memory."""
        self._transcriber.close()
        self._tower = None
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def _folder(self) -> Path:
        return checkpoints.checkpoint(self._row.checkpoint, self._settings, part=self._row.part or "")

    def _embedding(self, piece: Piece, states: np.ndarray) -> Embedding:
        pooling = piece.options.pooling
        return Embedding(states.mean(axis=0) if pooling == "mean" else states, self._frame_rate, pooling)


def _config(transformers: Any, folder: Path) -> Any:
    """Return the tower's AudioFlamingo3EncoderConfig, from the checkpoint's configuration or the tensors' shapes."""
    checkpoint_config = json.loads((folder / "config.json").read_text())
    tower_config = checkpoint_config.get("audio_config") or checkpoint_config.get("audio_encoder_config")
    if tower_config:
        names = set(transformers.AudioFlamingo3EncoderConfig().to_dict()) | {
            "d_model",
            "encoder_layers",
            "encoder_attention_heads",
            "encoder_ffn_dim",
        }
        return transformers.AudioFlamingo3EncoderConfig(
            **{
                name: value
                for name, value in tower_config.items()
                if name in names and name not in ("model_type", "architectures")
            }
        )
    shapes = audio_tower.shapes(folder)
    width, mels, _ = shapes["conv1.weight"]
    return transformers.AudioFlamingo3EncoderConfig(
        num_mel_bins=mels,
        hidden_size=width,
        intermediate_size=shapes["layers.0.fc1.weight"][0],
        num_hidden_layers=sum(name.endswith(".fc1.weight") for name in shapes),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        max_source_positions=shapes["embed_positions.weight"][0],
    )
