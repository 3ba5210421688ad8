"""The parts that NeMo's models share: a checkpoint restored for inference, and clips → encoder states.

The mel spectrogram is computed in float32, the rest in the worker's dtype. The modules are called directly rather than
through NeMo's `transcribe()`, which reads files again, drops unreadable files, pads short arrays and leaves the model
in training mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worker import catalog
from worker.backends.common import checkpoints
from worker.backends.common.device import device_of, dtype_of
from worker.backends.nemo import importing, prepared, subsampling
from worker.backends.nemo.restore import restore
from worker.config import Settings
from worker.errors import ModelUnavailable
from worker.types import Piece


class NemoModel:
    """A checkpoint on the device, ready for inference.

    The attributes are `torch`, `model` (NeMo's ASRModel), `device`, `dtype`, and `frame_sec`, the seconds of audio in
    one encoder frame.
    """

    def __init__(self, name: str, settings: Settings, parts: Sequence[str]) -> None:
        """Restore the checkpoint `name`, and cast its modules `parts` to the worker's dtype.

        Raises ModelUnavailable if the checkpoint, NeMo or torch is missing.
        """
        importing.start()
        path = checkpoints.nemo_file(name, settings)
        if sha256 := catalog.find(name, settings.places).sha256:
            checkpoints.verify(path, sha256)
        try:
            importing.wait()
            import torch
        except ImportError as error:
            raise ModelUnavailable(f"{name} requires nemo_toolkit[asr] and torch: {error}") from error
        self.device = device_of(settings)
        self.dtype = dtype_of(settings, self.device)
        self.torch = torch
        self.model, self.aligner = restore(prepared.find(path, self.dtype), self.device, self.dtype, parts)
        featurizer = self.model.preprocessor.featurizer
        featurizer.dither, featurizer.pad_to = 0.0, 0
        self.frame_sec: float = featurizer.hop_length / featurizer.sample_rate * self.model.encoder.subsampling_factor

    def encode(self, pieces: Sequence[Piece]) -> tuple[Any, Any]:
        """Return the encoder's states, of shape (pieces, width, frames), and each piece's count of valid frames."""
        return encode(self.model, pieces, self.device, self.dtype)


def encode(model: Any, pieces: Sequence[Piece], device: Any, dtype: Any) -> tuple[Any, Any]:
    """Return the states of `model.encoder`, of shape (pieces, width, frames), and each piece's count of frames."""
    import torch

    lengths = [len(piece.clip.samples) for piece in pieces]
    signal = np.zeros((len(pieces), max(lengths)), np.float32)
    for row, piece in zip(signal, pieces, strict=True):
        row[: len(piece.clip.samples)] = piece.clip.samples
    mel, mel_length = model.preprocessor(
        input_signal=torch.from_numpy(signal).to(device), length=torch.tensor(lengths, device=device)
    )
    mel = mel.to(dtype)  # frees the float32 copy
    return subsampling.encode(model.encoder, mel, mel_length)


def weight_bytes(name: str, settings: Settings) -> int:
    """Return the bytes of the .nemo file, which approximate the bytes of its weights.

    If the file is not on this machine, it is downloaded, and NeMo is imported meanwhile. Raises ModelUnavailable if
    there is no such checkpoint.
    """
    importing.start()
    path: Path = checkpoints.nemo_file(name, settings)
    return path.stat().st_size
