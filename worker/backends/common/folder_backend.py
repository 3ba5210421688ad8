"""What the backends share whose model is one object of transformers, loaded whole from a checkpoint's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worker.backends.base import Backend
from worker.backends.common import checkpoints
from worker.catalog import Model
from worker.config import Settings


class FolderBackend(Backend):
    """A backend whose `load` sets `_torch`, `_device` and `_model`."""

    _torch: Any
    _device: Any

    def __init__(self, model: Model, settings: Settings) -> None:
        self._row, self._settings = model, settings
        self._model: Any = None

    def weight_bytes(self) -> int:
        """Return the bytes of the weight files. Raises ModelUnavailable if there are none."""
        return checkpoints.checkpoint_bytes(self._folder())

    def close(self) -> None:
        """Free the device's memory."""
        self._model = None
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def _folder(self) -> Path:
        return checkpoints.checkpoint(self._row.checkpoint, self._settings)
