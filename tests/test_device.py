"""Which device the settings select, and what happens if that is the CPU of a machine with a GPU."""

from __future__ import annotations

import importlib.util
import logging
import sys
import types

import pytest

from worker.backends.common import device
from worker.config import Settings
from worker.errors import DeviceLost, ModelUnavailable

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
pytestmark = [pytest.mark.slow, needs_torch]

OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by downloading "
    "and installing a new version."
)


@pytest.fixture
def cpu_machine(monkeypatch, tmp_path):
    """A machine without a GPU: no nodes, no driver; returns the folder of its nodes."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.setattr(device, "DEV", tmp_path)
    monkeypatch.setattr(device.shutil, "which", lambda _name: None)
    device._warn_of_cpu.cache_clear()
    return tmp_path


@pytest.fixture
def gpu_machine(cpu_machine, monkeypatch):
    """A machine with a GPU whose driver is too old for torch."""
    import torch

    def init() -> None:
        raise RuntimeError(f"{OLD_DRIVER}\nA second line.")

    monkeypatch.setattr(torch.cuda, "init", init)
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        (cpu_machine / name).touch()


def test_a_machine_without_a_gpu_runs_on_the_cpu_without_a_word(cpu_machine, caplog):
    assert device.unusable_gpu(Settings()) is None
    assert device.device_of(Settings()).type == "cpu"
    device.check_device(Settings())
    assert caplog.text == ""


def test_a_gpu_that_torch_cannot_use_is_reported_once_with_the_driver_s_reason(gpu_machine, caplog):
    assert device.gpu_nodes() == 1
    with caplog.at_level(logging.WARNING):
        assert [device.device_of(Settings()).type for _ in range(3)] == ["cpu"] * 3
    (record,) = caplog.records
    assert OLD_DRIVER in record.message
    assert ".." not in record.message
    assert "A second line" not in record.message
    assert "Set DEVICE=cpu" in record.message


def test_a_check_of_such_a_device_fails(gpu_machine):
    with pytest.raises(ModelUnavailable, match=r"found version 12040.*driver of the 580 series.*set DEVICE=cpu"):
        device.check_device(Settings())


def test_a_gpu_that_is_named_fails_with_the_same_reason(gpu_machine):
    with pytest.raises(ModelUnavailable, match=r"DEVICE=cuda, but torch sees no CUDA device: .*found version 12040"):
        device.device_of(Settings(device="cuda"))


@pytest.mark.parametrize(
    ("message", "kind", "says"),
    [
        ("CUDA error: no kernel image is available for execution on the device", ModelUnavailable, "has no code for"),
        ("CUDA error: uncorrectable ECC error encountered", DeviceLost, "uncorrectable ECC error"),
        ("CUDA error: invalid argument", RuntimeError, "invalid argument"),
    ],
)
def test_a_gpu_that_fails_its_first_computation_is_checked_with_the_reason(
    cpu_machine, monkeypatch, message, kind, says
):
    import torch

    def zeros(*_args: object, **_options: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(kind, match=says):
        device.check_device(Settings())


@pytest.mark.parametrize("chosen", ["cpu", "cpu,cpu"])
def test_the_cpu_may_be_chosen_on_such_a_machine(gpu_machine, caplog, chosen):
    assert device.unusable_gpu(Settings(device=chosen)) is None
    device.check_device(Settings(device="cpu"))
    assert caplog.text == ""


def test_a_torch_that_is_not_built_for_cuda_is_named(cpu_machine):
    import torch

    (cpu_machine / "nvidia1").touch()
    if torch.version.cuda is None:
        assert device.unusable_gpu(Settings()) == (
            f"torch {torch.__version__} cannot use this machine's GPU: Torch not compiled with CUDA enabled"
        )


@pytest.mark.parametrize("sign", ["RUNPOD_GPU_COUNT", "nvidia-smi"])
def test_runpod_and_the_driver_s_program_report_a_gpu_too(cpu_machine, monkeypatch, sign):
    if sign == "nvidia-smi":
        monkeypatch.setattr(device.shutil, "which", lambda name: f"/usr/bin/{name}" if name == sign else None)
    else:
        monkeypatch.setenv(sign, "0")
        assert device.unusable_gpu(Settings()) is None
        monkeypatch.setenv(sign, "1")
    assert device.unusable_gpu(Settings())


def test_a_cpu_needs_the_compiler_that_inductor_finds():
    import torch
    from torch._inductor import config

    with config.patch("cpp.cxx", (None, sys.executable)):  # any program with --version
        device.check_compiler(torch.device("cpu"))
    with config.patch("cpp.cxx", (None, "/nonexistent/g++")), pytest.raises(ModelUnavailable) as caught:
        device.check_compiler(torch.device("cpu"))
    assert caught.value.message == "COMPILE=1 requires a C++ compiler. Install g++, or set COMPILE=0."


@pytest.mark.parametrize(
    ("cc", "on_path", "headers", "fits"),
    [
        (None, "gcc", True, True),
        (None, "clang", True, True),
        ("/opt/bin/cc", None, True, True),
        (None, None, True, False),
        (None, "gcc", False, False),
    ],
)
def test_a_gpu_needs_the_compiler_and_the_headers_that_triton_finds(monkeypatch, tmp_path, cc, on_path, headers, fits):
    import torch

    build = types.SimpleNamespace(cc=cc)
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(knobs=types.SimpleNamespace(build=build)))
    monkeypatch.setattr(device.shutil, "which", lambda name: f"/usr/bin/{name}" if name == on_path else None)
    monkeypatch.setattr(device.sysconfig, "get_path", lambda _name: str(tmp_path))
    if headers:
        (tmp_path / "Python.h").touch()
    if fits:
        device.check_compiler(torch.device("cuda"))
    else:
        with pytest.raises(ModelUnavailable, match="Install gcc and python3-dev"):
            device.check_compiler(torch.device("cuda"))
