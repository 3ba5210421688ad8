"""Meters for a device: seconds, the seconds of a model's modules, peak memory, and captures of CUDA graphs."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

GIB = 2**30


def synchronize(device: str) -> None:
    """Wait until the device has done its work."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: str, times: int = 1) -> float:
    """Return the median wall time of `times` calls of `work`, in seconds."""
    elapsed = []
    for _ in range(times):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        elapsed.append(time.perf_counter() - started)
    return statistics.median(elapsed)


def added_gib(work: Callable[[], Any], device: str) -> float | None:
    """Return the most GiB that tensors take on the device while `work` runs, above what they took. None on a CPU."""
    import torch

    if not device.startswith("cuda"):
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return (torch.cuda.max_memory_allocated(device) - before) / GIB


@contextlib.contextmanager
def module_seconds(device: str, **groups: tuple[Any, ...]) -> Iterator[dict[str, float]]:
    """Sum up the seconds that the modules of each group run, by its name.

    A call within a call of the same group counts once. The device is synchronized around every call.
    """
    spent = dict.fromkeys(groups, 0.0)
    hooks = []
    for name, modules in groups.items():
        started: list[float] = []

        def before(*_: Any, started: list[float] = started) -> None:
            synchronize(device)
            started.append(time.perf_counter())

        def after(*_: Any, name: str = name, started: list[float] = started) -> None:
            synchronize(device)
            took = time.perf_counter() - started.pop()
            if not started:
                spent[name] += took

        for module in modules:
            hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def captures() -> Iterator[Callable[[], int]]:
    """Count how often NeMo's TDT decoders capture a CUDA graph meanwhile. Yields a function that returns the count."""
    from nemo.collections.asr.parts.submodules.transducer_decoding import tdt_label_looping

    computer, count = tdt_label_looping.GreedyBatchedTDTLabelLoopingComputer, 0
    capture = computer._graph_reinitialize

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return capture(*args, **kwargs)

    computer._graph_reinitialize = counting
    try:
        yield lambda: count
    finally:
        computer._graph_reinitialize = capture
