"""Aviary: one worker for NVIDIA's speech and audio models.

    import worker
    with worker.load_model(model="parakeet") as bundle:
        print(bundle.transcribe("a.wav").text)

`Client`, `AsyncClient` (`worker.client`), `process_manifest` (`worker.manifest`) and `process_manifest_sync` talk to a
server or to a Runpod endpoint; the other functions run models in this process (`worker.entrypoints.python`).

Importing this package imports no other module of it. `__getattr__` imports the module of a public name when the name
is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.client import AsyncClient, Client
    from worker.entrypoints.answer import Answer
    from worker.entrypoints.functions import evaluate_folder, process_manifest_sync, transcribe_file, transcribe_files
    from worker.entrypoints.python import ModelBundle, load_model
    from worker.errors import AviaryError
    from worker.manifest import process_manifest
    from worker.types import Analysis, Caption, Diarization, Embedding, Failure, Reply, Span, SpeakerTurn, Transcript

# The one place of the version: pyproject.toml reads it from here, and tests/test_version.py compares the changelog.
__version__ = "0.1.0"

_HOMES = {
    "worker.entrypoints.answer": ("Answer",),
    "worker.entrypoints.python": ("ModelBundle", "load_model"),
    "worker.client": ("AsyncClient", "Client"),
    "worker.errors": ("AviaryError",),
    "worker.manifest": ("process_manifest",),
    "worker.entrypoints.functions": (
        "evaluate_folder",
        "process_manifest_sync",
        "transcribe_file",
        "transcribe_files",
    ),
    "worker.types": (
        "Analysis",
        "Caption",
        "Diarization",
        "Embedding",
        "Failure",
        "Reply",
        "Span",
        "SpeakerTurn",
        "Transcript",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Analysis",
    "Answer",
    "AsyncClient",
    "AviaryError",
    "Caption",
    "Client",
    "Diarization",
    "Embedding",
    "Failure",
    "ModelBundle",
    "Reply",
    "Span",
    "SpeakerTurn",
    "Transcript",
    "evaluate_folder",
    "load_model",
    "process_manifest",
    "process_manifest_sync",
    "transcribe_file",
    "transcribe_files",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
