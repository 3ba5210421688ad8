"""Load a .nemo file in a process of its own: `python -m benchmarks.gpu.load ours|nemo FILE DEVICE`.

It prints one line of JSON: the seconds of the load, and by how much the peak memory of the process, and that of the
device, exceed what both took before. Libraries are imported, and the device is initialized, before.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu import meters
from benchmarks.gpu.report import Values
from worker import child


def load(who: str, path: Path, device: str) -> Values:
    """Return what one load takes, measured in a process of its own. Raises RuntimeError if the process fails."""
    command = child.command("benchmarks.gpu.load", who, str(path), device)
    process = child.start(command, cwd=child.ROOT, stdout=subprocess.PIPE)
    lines = process.communicate()[0].splitlines()
    if process.returncode or not lines:
        raise RuntimeError(f"the process that loads ended with exit code {process.returncode}")
    values: Values = json.loads(lines[-1])
    return values


def measure(who: str, path: str, device: str) -> Values:
    """Return what a load in this process takes."""
    import torch
    from nemo.collections.asr.models import ASRModel

    from worker.backends import create
    from worker.catalog import find
    from worker.config import Settings

    if device.startswith("cuda"):
        torch.zeros(1, device=device)
    backend = create(find(path), Settings(device=device))
    before, started = _resident_gib(), time.perf_counter()
    kept = backend.load() if who == "ours" else ASRModel.restore_from(path, map_location=device)
    meters.synchronize(device)
    took = time.perf_counter() - started
    del kept
    return {
        "sec": took,
        "host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 - before,
        "device_gib": torch.cuda.max_memory_allocated(device) / meters.GIB if device.startswith("cuda") else None,
    }


def _resident_gib() -> float:
    """Return the memory of this process now. Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / meters.GIB


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
