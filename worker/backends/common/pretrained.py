"""A checkpoint's folder → an object of transformers, with none of the folder's code run.

    load(AutoProcessor, folder)         a configuration, a processor or a feature extractor
    load_model(SomeModel, folder, …)    a model, whose weights come from safetensors alone

This module alone calls `from_pretrained`. A checkpoint may carry Python files and name classes in them (`auto_map`).
transformers runs these if `trust_remote_code` is set, asks on the terminal if it is not, and takes pickled weights
where it finds no others; each of these is ruled out here. Nothing is downloaded either: `checkpoints` finds the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worker.backends.common import memory
from worker.errors import ModelUnavailable


def load(kind: Any, folder: Path, **options: Any) -> Any:
    """Return `kind.from_pretrained(folder)`. Raises ModelUnavailable if the checkpoint requires code of its own."""
    try:
        return kind.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ModelUnavailable(
            f"{folder} requires Python code of its own, which Aviary does not run. Use a checkpoint whose classes are "
            "part of transformers."
        ) from error


def load_model(kind: Any, folder: Path, *, device: Any, dtype: Any) -> Any:
    """Return a model with its weights on the device, for inference.

    If the weights have the number type already, the host's memory holds no copy of them: the tensors are the pages of
    the file until they move to the device. Raises ModelUnavailable as `load` does, OSError if there are no safetensors.
    """
    options = {"use_safetensors": True, "attn_implementation": "sdpa", "dtype": dtype}
    model = load(kind, folder, **options).to(device).eval()
    memory.release()
    return model
