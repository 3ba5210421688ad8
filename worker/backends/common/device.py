"""Which device and number type the settings mean here, how much memory there is for weights, and the libraries
themselves.

torch and transformers are imported inside: this module is imported where there is neither.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from worker.config import Settings
from worker.errors import ModelUnavailable

GIB = 1024**3
FOR_WEIGHTS = 0.8  # the rest is for activations, caches and what else runs


def libraries(model: str) -> tuple[Any, Any]:
    """torch and transformers, the latter without its progress bars and advice. Raises ModelUnavailable if one is
    missing."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ModelUnavailable(f"{model} needs transformers and torch: {error}") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers


def device_of(settings: Settings) -> Any:
    """The torch.device. Raises ModelUnavailable when a CUDA device is asked for and there is none."""
    import torch

    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelUnavailable(f"DEVICE={settings.device}, but torch sees no CUDA device")
    return torch.device(settings.device)


def dtype_of(settings: Settings, device: Any) -> Any:
    """The torch.dtype of the weights."""
    import torch

    if settings.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return getattr(torch, settings.dtype)


def weights_budget(settings: Settings) -> float:
    """Bytes that the weights of all models may take: MODELS_MEMORY_GB, else most of the device's memory."""
    if settings.models_memory_gb is not None:
        return settings.models_memory_gb * GIB
    if importlib.util.find_spec("torch") is not None:  # some models run without torch, on the CPU
        import torch

        device = device_of(settings)
        if device.type == "cuda":
            return FOR_WEIGHTS * float(torch.cuda.get_device_properties(device).total_memory)
    return FOR_WEIGHTS * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
