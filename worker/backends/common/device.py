"""The torch device, number type and memory budget that the settings select, and the libraries that run on them.

torch and transformers are imported inside the functions, because this module is also imported where neither is
installed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

from worker.config import Settings
from worker.errors import ModelUnavailable

GIB = 1024**3
GPU_TARGET_SEC, CPU_TARGET_SEC = 1.0, 5.0  # of BATCH_TARGET_SEC
FOR_WEIGHTS = 0.8  # the rest is for activations, caches and other processes


def libraries(model: str) -> tuple[Any, Any]:
    """Return the modules torch and transformers, with transformers' progress bars and advice switched off.

    Raises ModelUnavailable, naming `model`, if either is missing.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ModelUnavailable(f"{model} requires transformers and torch: {error}") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers


def device_of(settings: Settings) -> Any:
    """Return the torch.device. Raises ModelUnavailable if DEVICE names a CUDA device and torch sees none."""
    import torch

    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelUnavailable(
            f"DEVICE={settings.device}, but torch sees no CUDA device. Install torch for CUDA, or set DEVICE=auto."
        )
    return torch.device(settings.device)


def dtype_of(settings: Settings, device: Any) -> Any:
    """Return the torch.dtype of the weights on `device`."""
    import torch

    if settings.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return getattr(torch, settings.dtype)


def batch_target_sec(settings: Settings) -> float:
    """Return how long a batch should run at most: BATCH_TARGET_SEC, by default longer on a CPU than on a GPU.

    Call it once a model is loaded: if torch has not been imported by then, the model runs on the CPU.
    """
    if settings.batch_target_sec is not None:
        return settings.batch_target_sec
    if settings.device == "auto":
        torch = sys.modules.get("torch")
        on_gpu = torch is not None and torch.cuda.is_available()
    else:
        on_gpu = settings.device.startswith("cuda")
    return GPU_TARGET_SEC if on_gpu else CPU_TARGET_SEC


def weights_budget(settings: Settings) -> float:
    """Return the bytes that the weights of all models may take: MODELS_MEMORY_GB, or most of the device's memory."""
    if settings.models_memory_gb is not None:
        return settings.models_memory_gb * GIB
    if importlib.util.find_spec("torch") is not None:  # some models run without torch, on the CPU
        import torch

        device = device_of(settings)
        if device.type == "cuda":
            return FOR_WEIGHTS * float(torch.cuda.get_device_properties(device).total_memory)
    return FOR_WEIGHTS * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
