"""The models. `create` makes the backend that a catalog row names; its heavy libraries load only then."""

from __future__ import annotations

import importlib

from worker.backends.base import Backend
from worker.catalog import Model
from worker.config import Settings

_CLASSES = {
    "parakeet": ("worker.backends.parakeet", "Parakeet"),
    "canary": ("worker.backends.canary", "Canary"),
    "flamingo": ("worker.backends.flamingo", "Flamingo"),
    "whisper": ("worker.backends.whisper", "Whisper"),
    "higgs": ("worker.backends.higgs", "Higgs"),
    "pocketsphinx": ("worker.backends.pocketsphinx", "Pocketsphinx"),
    "dry_run": ("worker.backends.dry_run", "DryRun"),
}


def create(model: Model, settings: Settings) -> Backend:
    """The backend for a model, not yet loaded; the dry run for every model when SKIP_MODEL_LOAD is set."""
    module, name = _CLASSES["dry_run" if settings.skip_model_load else model.backend]
    backend: Backend = getattr(importlib.import_module(module), name)(model, settings)
    return backend
