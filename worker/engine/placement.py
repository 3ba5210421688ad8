"""Where each of several processes runs: on a GPU of its own, or, on a machine without GPUs, on some of the cores.

    placements(settings)          of WORKERS server processes; with WORKERS=0 one a GPU, or one without GPUs
    device_placements(settings)   of the devices of one engine
    place(settings, count, …)     `count` placements on given GPUs or cores

GPUs are named by their UUIDs, which mean the same for every value of CUDA_VISIBLE_DEVICES. A single GPU goes without
a name: it may be a MIG slice, whose name is another (`MIG-…`), and CUDA shows a process no second slice. A process of
its own asks torch for the GPUs: the process that starts the others never holds a CUDA context, nor torch.
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

from worker.backends.common.device import FOR_WEIGHTS, GIB, gpu_nodes
from worker.config import Settings
from worker.errors import ConfigError

_LIST_GPUS = """
import torch
for i in range(torch.cuda.device_count()):
    card = torch.cuda.get_device_properties(i)
    print(f"GPU-{card.uuid}", card.total_memory)
"""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where and how a process runs."""

    name: str
    """The GPU or the cores, for people."""
    environment: dict[str, str]
    """Variables to add to the environment of the process."""
    cores: tuple[int, ...]
    """The CPU cores that the process is bound to. Empty: all cores."""
    settings: Settings
    """The settings of the process."""

    def with_settings(self, **changes: Any) -> Placement:
        """Return the placement with some settings changed."""
        return dataclasses.replace(self, settings=self.settings.model_copy(update=changes))


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees."""

    uuid: str
    """`GPU-` and the UUID, as CUDA_VISIBLE_DEVICES takes it."""
    bytes: int
    """Size of the memory."""
    is_only: bool = False
    """Whether torch sees no other GPU, so that a process needs no name for it."""


def placements(settings: Settings) -> list[Placement]:
    """Return the placements of the server processes, at least one. Raises ConfigError for a DEVICE that is missing."""
    gpus = _select_gpus(settings)
    return place(settings, settings.workers or len(gpus) or len(settings.devices), gpus, _cores())


def device_placements(settings: Settings) -> list[Placement]:
    """Return the placements of the devices of one engine; none for a single device, which needs no process of its own.

    The devices are those that DEVICE names; with `auto`, all GPUs. A single `cuda:N` gets a process in which it is the
    first GPU, because NeMo makes its streams on the current device of the thread, which is the first unless every
    thread sets it. Raises ConfigError for a device that is missing.
    """
    if settings.device == "auto":  # asking torch takes seconds, which a machine with one GPU can save
        gpus = _select_gpus(settings) if _nodes() > 1 else []
        return place(settings, len(gpus), gpus, _cores()) if len(gpus) > 1 else []
    if settings.device in ("cpu", "cuda", "cuda:0"):
        return []
    gpus = _select_gpus(settings)
    count = len(settings.devices)
    return place(settings, count, gpus, _cores()) if count > 1 or gpus else []


def place(settings: Settings, count: int, gpus: list[Gpu], cores: list[int]) -> list[Placement]:
    """Return `count` placements on these GPUs, in turn.

    Without GPUs the placements are on these cores, in blocks that do not overlap; if there are fewer cores than
    placements, each has all cores.
    """
    changes: dict[str, Any] = {"workers": 1}
    if "decode_workers" not in settings.model_fields_set:
        changes["decode_workers"] = max(2, min(8, len(cores) // count))
    if gpus:
        changes["device"] = "cuda"  # the only GPU that the process sees
        return _on_gpus(settings.model_copy(update=changes), count, gpus)
    changes["device"] = settings.devices[0]
    return _on_cores(settings.model_copy(update=changes), count, cores)


def _on_gpus(settings: Settings, count: int, gpus: list[Gpu]) -> list[Placement]:
    chosen = list(itertools.islice(itertools.cycle(gpus), count))
    return [
        Placement(
            gpu.uuid,
            {} if gpu.is_only else {"CUDA_VISIBLE_DEVICES": gpu.uuid},
            (),
            _share_memory(settings, gpu.bytes, chosen.count(gpu)),
        )
        for gpu in chosen
    ]


def _on_cores(settings: Settings, count: int, cores: list[int]) -> list[Placement]:
    settings = _share_memory(settings, _memory(), count)
    threads = {"OMP_NUM_THREADS": str(max(1, len(cores) // count))}
    return [
        Placement(f"cores {','.join(map(str, block))}", threads, block, settings) for block in _blocks(cores, count)
    ]


def _share_memory(settings: Settings, memory: int, sharers: int) -> Settings:
    """Return the settings of processes that share `memory` bytes: each may take its part of what one alone would."""
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


def _select_gpus(settings: Settings) -> list[Gpu]:
    """Return the GPUs that DEVICE names; with `auto`, all GPUs. Raises ConfigError for a GPU that is missing."""
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
    """Return how many GPUs the machine has at most; torch may see fewer. The one node of WSL stands for any number."""
    return gpu_nodes() or int(Path("/dev/dxg").exists())


def _gpus() -> list[Gpu]:
    """Return the GPUs that torch sees in a process of its own; none if torch is missing."""
    command = [sys.executable, "-c", _LIST_GPUS]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)  # noqa: S603  fixed code
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("GPU-")]
    return [Gpu(uuid, int(memory), is_only=len(rows) == 1) for uuid, memory in rows]
