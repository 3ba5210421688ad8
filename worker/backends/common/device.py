"""The torch device, number type and memory budget that the settings select, and the libraries that run on them.

torch and transformers are imported inside the functions, because this module is also imported where neither is
installed.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from worker.config import Settings
from worker.errors import ModelUnavailable
from worker.faults import device_error

log = logging.getLogger(__name__)

DEV = Path("/dev")
DRIVER = "CUDA 13 requires a driver of the 580 series or later"
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


def gpu_nodes() -> int:
    """Return how many NVIDIA GPUs the system has nodes for; torch may see fewer."""
    return len(list(DEV.glob("nvidia[0-9]*")))


def unusable_gpu(settings: Settings) -> str | None:
    """Return why DEVICE=auto takes the CPU on a machine with an NVIDIA GPU, in torch's own words.

    None if torch sees a GPU, if DEVICE names another device, or if neither the system nor Runpod reports a GPU. The
    function imports torch.
    """
    reported = gpu_nodes() or settings.runpod_gpu_count or shutil.which("nvidia-smi")
    if settings.device != "auto" or not reported:
        return None
    import torch

    if torch.cuda.is_available():
        return None
    return f"torch {torch.__version__} cannot use this machine's GPU: {_reason()}"


def _reason() -> str:
    """Return why torch sees no CUDA device, in its own words."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch is not built for CUDA
        return str(error).partition("\n")[0].rstrip(".")
    return "No CUDA GPUs are available"


@functools.cache
def _warn_of_cpu(reason: str) -> None:
    """Warn, once in a process, that the models run on the CPU."""
    log.warning("%s. Models run on the CPU, which is many times slower. Set DEVICE=cpu if this is intended.", reason)


def check_device(settings: Settings) -> None:
    """Compute something on the device.

    Raises ModelUnavailable if DEVICE=auto would take the CPU beside a GPU, or if torch cannot use the device; another
    error of the tree, or torch's own exception, if the device fails.
    """
    import torch

    if reason := unusable_gpu(settings):
        raise ModelUnavailable(f"{reason}. Use another machine ({DRIVER}), or set DEVICE=cpu.")
    try:
        torch.zeros(8, device=device_of(settings)).sum().item()
    except RuntimeError as error:
        if ours := device_error(error):
            raise ours from error
        raise


def device_of(settings: Settings) -> Any:
    """Return the torch.device. Log a warning if it is the CPU although the machine has a GPU.

    Raises ModelUnavailable if DEVICE names a CUDA device and torch sees none.
    """
    import torch

    if settings.device == "auto":
        if reason := unusable_gpu(settings):
            _warn_of_cpu(reason)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelUnavailable(
            f"DEVICE={settings.device}, but torch sees no CUDA device: {_reason()}. Install torch for CUDA ({DRIVER}), "
            "or set DEVICE=auto."
        )
    return torch.device(settings.device)


def check_compiler(device: Any) -> None:
    """Raise ModelUnavailable if torch.compile finds no compiler for `device`, which it would report at the first batch.

    Triton compiles C for a GPU, and Inductor C++ for a CPU. Each is looked up as the two do it.
    """
    if device.type == "cuda":
        import triton

        compiler = triton.knobs.build.cc or shutil.which("gcc") or shutil.which("clang")
        found = compiler is not None and Path(sysconfig.get_path("include"), "Python.h").exists()
        missing = "a C compiler and the headers of Python. Install gcc and python3-dev"
    else:
        from torch._inductor import cpp_builder, exc

        missing = "a C++ compiler. Install g++"
        try:
            found = bool(cpp_builder.get_cpp_compiler())
        except exc.InvalidCxxCompiler:
            found = False
    if not found:
        raise ModelUnavailable(f"COMPILE=1 requires {missing}, or set COMPILE=0.")


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


def check_memory(model: str, parameters: int, settings: Settings) -> None:
    """Raise ModelUnavailable if the device has no room for the weights of a model with so many parameters."""
    import torch

    dtype = dtype_of(settings, device_of(settings))
    need, budget = parameters * torch.empty(0, dtype=dtype).element_size(), weights_budget(settings)
    if need > budget:
        raise ModelUnavailable(
            f"{model} needs {need / GIB:.1f} GiB of memory for its weights in {str(dtype).removeprefix('torch.')}; "
            f"{budget / GIB:.1f} GiB are allowed here. Use a device with more memory, or raise MODELS_MEMORY_GB if "
            "the device has it."
        )


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
