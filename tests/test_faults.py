"""What an exception of a running model means: the messages that CUDA, its libraries and torch write, row by row.

The texts of CUDA are those of cudaGetErrorString in CUDA 13.0.
"""

from __future__ import annotations

import sys
import types

import pytest

from worker.errors import AviaryError, DeviceLost, InternalError, ModelError, ModelUnavailable, OutOfMemory
from worker.faults import report, translate, translate_load


class AcceleratorError(RuntimeError):
    """As torch raises for an error of CUDA."""


MESSAGES = {
    OutOfMemory: (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB.",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":1090',
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate.",
    ),
    ModelUnavailable: (
        "CUDA error: no kernel image is available for execution on the device",
        "CUDA driver version is insufficient for CUDA runtime version",
        "CUDA error: the provided PTX was compiled with an unsupported toolchain.",
        "CUDA error: system has unsupported display driver / cuda driver combination",
        "CUDA error: forward compatibility was attempted on non supported HW",
    ),
    DeviceLost: (
        "CUDA error: an illegal memory access was encountered",
        "Triton Error [CUDA]: an illegal memory access was encountered",
        "CUDA error: the launch timed out and was terminated",
        "CUDA error: device-side assert triggered",
        "CUDA error: hardware stack error",
        "CUDA error: an illegal instruction was encountered",
        "CUDA error: misaligned address",
        "CUDA error: operation not supported on global/shared address space",
        "CUDA error: invalid program counter",
        "CUDA error: unspecified launch failure",
        "CUDA error: tensor memory not completely freed",
        "CUDA error: the MPS client has been terminated by the server",
        "CUDA error: an async error has occured in external entity outside of CUDA",
        "CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: uncorrectable NVLink error detected during the execution",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "CUDA error: no CUDA-capable device is detected",
        "CUDA error: context is destroyed",
        "CUDA error: unknown error",
        "CUDA driver error: unknown error",
        "CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env variable "
        "CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero.",
        "GPU is lost",
    ),
    ModelError: (
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k)`",
        "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`",
        "CUDA error: operation not permitted when stream is capturing",
        "CUDA error: operation failed due to a previous error during capture",
        "CUDA error: operation would make the legacy stream depend on a capturing blocking stream",
        "CUDA error: the graph update was not performed because it included changes which violated constraints",
        "CUDA error: invalid argument",
        "CUDA error: invalid configuration argument",
        "CUDA error: too many resources requested for launch",
        "CUDA driver error: device not ready",
        "input tensor must fit into 32-bit index math",
        "an unknown error",
    ),
}
ROWS = [(message, kind) for kind, messages in MESSAGES.items() for message in messages]
HINTS = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace may be incorrect."
)


@pytest.mark.parametrize(("message", "kind"), ROWS)
@pytest.mark.parametrize("raised", [RuntimeError, AcceleratorError])
def test_a_message_means(message, kind, raised):
    error = raised(message + HINTS)
    ours = translate(error)
    assert type(ours) is kind
    assert ours.__cause__ is error
    loading = translate_load(error, "parakeet")
    assert type(loading) is (DeviceLost if kind is DeviceLost else ModelUnavailable)
    anywhere = report(raised(message + HINTS))
    assert type(anywhere) is (InternalError if kind is ModelError else kind)


def test_our_own_errors_and_memory_errors():
    ours = AviaryError("CUDA error: unknown error")
    assert translate(ours) is ours
    assert type(translate(MemoryError())) is OutOfMemory


def test_a_gpu_that_torch_has_no_code_for_is_named(monkeypatch):
    cuda = types.SimpleNamespace(
        is_available=lambda: True,
        get_device_name=lambda: "Tesla V100-SXM2-16GB",
        get_device_capability=lambda: (7, 0),
        get_arch_list=lambda: ["sm_75", "sm_80", "sm_120"],
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda, __version__="2.11.0+cu130"))
    error = AcceleratorError("CUDA error: no kernel image is available for execution on the device" + HINTS)
    for ours in (translate(error), translate_load(error, "parakeet")):
        assert ours.message == (
            "torch has no code for this GPU. The Tesla V100-SXM2-16GB is an sm_70; torch 2.11.0+cu130 requires one of "
            "sm_75, sm_80, sm_120. Use another GPU, or a torch that is built for this one."
        )


def test_the_loss_of_a_device_keeps_cuda_s_reason():
    ours = translate(AcceleratorError("CUDA error: misaligned address" + HINTS))
    assert ours.message == (
        "the device failed and the worker restarts; send the request again (CUDA error: misaligned address)"
    )


def test_a_driver_that_is_too_old_is_named_without_the_hints_for_developers():
    ours = translate(AcceleratorError("CUDA driver version is insufficient for CUDA runtime version" + HINTS))
    assert ours.message == (
        "the GPU's driver does not fit this torch (CUDA driver version is insufficient for CUDA runtime version). "
        "Update the driver."
    )
