"""Aviary: one worker for NVIDIA's speech and audio models.

    import worker
    with worker.load_model(model="parakeet") as bundle:
        print(bundle.transcribe("a.wav").output.text)

Importing this loads nothing; a name's module is imported when it is first asked for. The rest is in `worker.api`.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.api import Answer, ModelBundle, evaluate_folder, load_model, transcribe_file, transcribe_files
    from worker.errors import AviaryError
    from worker.types import Analysis, Caption, Embedding, Failure, Reply, Span, Transcript

_HOMES = {
    "worker.api": ("Answer", "ModelBundle", "evaluate_folder", "load_model", "transcribe_file", "transcribe_files"),
    "worker.errors": ("AviaryError",),
    "worker.types": ("Analysis", "Caption", "Embedding", "Failure", "Reply", "Span", "Transcript"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["Analysis", "Answer", "AviaryError", "Caption", "Embedding", "Failure", "ModelBundle", "Reply", "Span", "Transcript",
           "evaluate_folder", "load_model", "transcribe_file", "transcribe_files"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
