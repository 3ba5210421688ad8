"""Where each of several processes runs: one GPU each, or, without GPUs, some of the cores each.

    seats(settings)     of WORKERS servers; with WORKERS=0 one a GPU, one where there is none
    devices(settings)   of the devices of one engine

GPUs are named by their UUIDs, which mean the same whatever CUDA_VISIBLE_DEVICES this process was started with. torch
is asked for them in a process of its own: the one that starts the others never holds a CUDA context, nor torch.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker.backends.common.device import FOR_WEIGHTS, GIB
from worker.config import Settings
from worker.errors import ConfigError

_ASK = """
import torch
for i in range(torch.cuda.device_count()):
    card = torch.cuda.get_device_properties(i)
    print(f"GPU-{card.uuid}", card.total_memory)
"""


@dataclasses.dataclass(frozen=True)
class Placement:
    """`name` for people; what the process's environment, CPU affinity (none: all cores) and settings are."""

    name: str
    environment: dict[str, str]
    cores: tuple[int, ...]
    settings: Settings

    def with_settings(self, **changes: Any) -> Placement:
        """The same with other settings."""
        return dataclasses.replace(self, settings=self.settings.model_copy(update=changes))


@dataclasses.dataclass(frozen=True)
class Gpu:
    uuid: str
    bytes: int


def placements(settings: Settings) -> list[Placement]:
    """The seats, at least one. Raises ConfigError for a DEVICE that is not there."""
    gpus, named = _wanted(settings), len(settings.devices)
    return place(settings, settings.workers or len(gpus) or named, gpus, _cores())


def device_placements(settings: Settings) -> list[Placement]:
    """The seats of the devices that DEVICE names, or finds; none where it is one, which needs no process of its own.
    Raises ConfigError for one that is not there."""
    several = len(settings.devices) > 1
    if settings.device == "auto":  # torch takes seconds to ask, which a machine with one GPU need not wait for
        several = not settings.skip_model_load and _nodes() > 1
    gpus = _wanted(settings) if several else []
    count = len(gpus) if settings.device == "auto" else len(settings.devices)
    return place(settings, count, gpus, _cores()) if count > 1 else []


def place(settings: Settings, count: int, gpus: list[Gpu], cores: list[int]) -> list[Placement]:
    """`count` seats on these GPUs, in turn; without any, on these cores, in blocks that do not overlap, or, where
    there are fewer cores than seats, on all of them."""
    own = settings.model_copy(update={"workers": 1})
    if "decode_workers" not in settings.model_fields_set:
        own = own.model_copy(update={"decode_workers": max(2, min(8, len(cores) // count))})
    if not gpus:
        own = own.model_copy(update={"device": own.devices[0]})
        own, threads = _sharing(own, _memory(), count), {"OMP_NUM_THREADS": str(max(1, len(cores) // count))}
        return [Placement(f"cores {','.join(map(str, block))}", threads, block, own) for block in _blocks(cores, count)]
    placed = list(itertools.islice(itertools.cycle(gpus), count))
    own = own.model_copy(update={"device": "cuda"})  # the only one that its process sees
    return [
        Placement(gpu.uuid, {"CUDA_VISIBLE_DEVICES": gpu.uuid}, (), _sharing(own, gpu.bytes, placed.count(gpu)))
        for gpu in placed
    ]


def _sharing(settings: Settings, memory: int, sharers: int) -> Settings:
    """Processes that share a memory divide what one of them alone would take."""
    if settings.models_memory_gb is not None:
        return settings
    return settings.model_copy(update={"models_memory_gb": FOR_WEIGHTS * memory / GIB / sharers})


def _blocks(cores: list[int], count: int) -> Iterator[tuple[int, ...]]:
    for number in range(count):
        start, end = number * len(cores) // count, (number + 1) * len(cores) // count
        yield tuple(cores[start:end] if count <= len(cores) else cores)


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _wanted(settings: Settings) -> list[Gpu]:
    """The GPUs to use, of those that there are."""
    if settings.devices[0] == "cpu" or settings.skip_model_load:
        return []
    gpus = _gpus() if _nodes() else []
    if settings.device == "auto":
        return gpus
    numbers = [int(name.partition(":")[2]) for name in settings.devices if ":" in name]
    if max(numbers, default=0) >= len(gpus):
        raise ConfigError(f"DEVICE={settings.device}, but torch sees {len(gpus)} CUDA devices")
    return [gpus[number] for number in numbers] or gpus


def _nodes() -> int:
    """How many GPUs there are at most: torch may see fewer. That of WSL stands for any number."""
    return len(list(Path("/dev").glob("nvidia[0-9]*"))) or int(Path("/dev/dxg").exists())


def _gpus() -> list[Gpu]:
    asked = subprocess.run([sys.executable, "-c", _ASK], check=False, capture_output=True, text=True, timeout=300)  # noqa: S603
    rows = [line.split() for line in asked.stdout.splitlines() if line.startswith("GPU-")]
    return [Gpu(uuid, int(memory)) for uuid, memory in rows]
