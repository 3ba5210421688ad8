"""NVIDIA's Sortformer through NeMo: who speaks when, for up to four speakers who may overlap.

    clips ── mel ──┬── checkpoints for whole clips: at once ───────────────────────────┬──▶ probabilities ──▶ turns
                   └── checkpoints for streaming: in chunks, with a cache of speakers ─┘

The result is that of NeMo's `diarize()` for each clip alone, with NeMo's default thresholds. Given several clips,
`diarize()` scales all of them by the loudest one. Here each clip has its own scale, so nothing depends on other clips.

A streaming checkpoint has the sizes of its chunks in its configuration. It keeps frames of each speaker in a cache, so
a speaker has one name over hours. The model counts the speakers itself and accepts no number of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worker.backends.base import Backend
from worker.backends.common.silence import is_silent
from worker.backends.nemo import subsampling
from worker.backends.nemo.encoder import NemoModel, weight_bytes
from worker.backends.speakers import activity
from worker.catalog import Model
from worker.config import Settings
from worker.errors import Cancelled, ModelUnavailable
from worker.types import Batch, Diarization, Output, Piece


class Sortformer(Backend):
    """A Sortformer checkpoint, for whole clips or for streaming. It runs in float32, as its caches do."""

    overhead_sec = 30.0

    def __init__(self, model: Model, settings: Settings) -> None:
        self._row, self._settings = model, settings
        self._model: Any = None

    def weight_bytes(self) -> int:
        """Return the bytes of the .nemo file. Raises ModelUnavailable if there is none."""
        return weight_bytes(self._row.id, self._settings)

    def load(self) -> None:
        """Restore the checkpoint. Raises ModelUnavailable."""
        self._nemo = NemoModel(self._row.id, self._settings, ())
        self._torch, self._model, self._device = self._nemo.torch, self._nemo.model, self._nemo.device
        if not hasattr(self._model, "sortformer_modules"):
            raise ModelUnavailable(f"{self._row.id} is not a Sortformer. Use the model for the task transcribe.")
        self._model.async_streaming = False

    def infer(self, batch: Batch) -> list[Output]:
        """Return the turns of each clip. Raises Cancelled if all requests were canceled."""
        outputs: list[Output] = [Diarization(())] * len(batch.pieces)
        spoken = [i for i, piece in enumerate(batch.pieces) if not is_silent(piece.clip.samples)]
        if spoken:
            pieces = [batch.pieces[i] for i in spoken]
            with self._torch.inference_mode():
                probabilities = self._probabilities(pieces).float().cpu().numpy()
            for i, piece, values in zip(spoken, pieces, probabilities, strict=True):
                outputs[i] = Diarization(activity.turns(values, self._nemo.frame_sec, piece.duration_sec))
        return outputs

    def close(self) -> None:
        """Free the device's memory."""
        self._model = self._nemo.model = None
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def _probabilities(self, pieces: Sequence[Piece]) -> Any:
        """Return how probably each speaker talks in each frame, 0 after the end of a clip.

        The shape is (pieces, frames, speakers).
        """
        mel, lengths = self._mel(pieces)
        if self._model.streaming_mode:
            return self._stream(pieces, mel, lengths)
        states, frames = subsampling.encode(self._model.encoder, mel, lengths)
        states, project = states.transpose(1, 2), self._model.sortformer_modules.encoder_proj
        return self._model.forward_infer(states if project is None else project(states), frames)

    def _mel(self, pieces: Sequence[Piece]) -> tuple[Any, Any]:
        """Return the mel spectrograms, of shape (pieces, bands, frames), and the count of frames of each clip."""
        torch = self._torch
        lengths = [len(piece.clip.samples) for piece in pieces]
        signal = np.zeros((len(pieces), max(lengths)), np.float32)
        for row, piece in zip(signal, pieces, strict=True):
            samples = piece.clip.samples
            # NeMo scales the clips of whole-clip models by their highest sample, and those of streaming models not.
            scale = 1.0 if self._model.streaming_mode else 1.0 / (float(samples.max()) + self._model.eps)
            row[: len(samples)] = samples * np.float32(scale)
        mel, frames = self._model.preprocessor(
            input_signal=torch.from_numpy(signal).to(self._device), length=torch.tensor(lengths, device=self._device)
        )
        return mel[:, :, : int(frames.max())], frames

    def _stream(self, pieces: Sequence[Piece], mel: Any, lengths: Any) -> Any:
        """Run the chunks one after another, as NeMo does. Raises Cancelled."""
        modules, torch = self._model.sortformer_modules, self._torch
        state = modules.init_streaming_state(batch_size=len(pieces), device=self._device)
        none = torch.zeros((len(pieces), 0, modules.n_spk), device=self._device)
        found: list[Any] = []
        for _number, chunk, frames, left, right in modules.streaming_feat_loader(
            feat_seq=mel, feat_seq_length=lengths, feat_seq_offset=torch.zeros_like(lengths)
        ):
            if all(piece.cancelled() for piece in pieces):
                raise Cancelled("the request was canceled")
            state, values = self._model.forward_streaming_step(
                processed_signal=chunk,
                processed_signal_length=frames,
                streaming_state=state,
                total_preds=none,
                left_offset=left,
                right_offset=right,
            )
            found.append(values)
        return torch.cat(found, dim=1)
