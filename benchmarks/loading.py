"""Loading a full-size Parakeet: the worker against NeMo's own `restore_from`, in alternating fresh processes.

The checkpoint has the shape of parakeet-tdt-0.6b-v3 (24 layers of width 1024, 8,192 tokens) and random weights. It
takes 2.5 GB of disk, and the comparison 6 GB of memory, so `python -m benchmarks` runs it by name only.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.measures import ROOT, Row

TIMES = 3
_OURS = """
from worker.backends import create
from worker.backends.nemo import importing
from worker.catalog import find
from worker.config import Settings
importing.wait()
backend = create(find(path), Settings(device="cpu"))
work = backend.load
"""
_THEIRS = """
from nemo.collections.asr.models import ASRModel
from nemo.utils import logging
logging.setLevel(logging.ERROR)
work = lambda: ASRModel.restore_from(path, map_location="cpu")
"""
_MEASURE = """
import re, time
from pathlib import Path
started = time.perf_counter()
kept = work()
took = time.perf_counter() - started
print("measured", took, re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


class _Load(NamedTuple):
    seconds: float
    peak_gib: float


def loading() -> list[Row]:
    """Compare the time and the peak memory of loading a full-size checkpoint, whose file is in the page cache."""
    from benchmarks.gpu import checkpoints, scale

    with tempfile.TemporaryDirectory() as folder:
        return compare(checkpoints.parakeet(Path(folder), scale.FULL, "cpu").path)


def compare(path: Path) -> list[Row]:
    """Return the rows for a .nemo file. The import of NeMo is not counted; its memory is."""
    with path.open("rb") as file:
        while file.read(1 << 24):  # into the page cache
            pass
    pairs = [(_load(path, _OURS), _load(path, _THEIRS)) for _ in range(TIMES)]
    ours, theirs = (_Load(*map(statistics.median, zip(*loads, strict=True))) for loads in zip(*pairs, strict=True))
    time, peak = ours.seconds / theirs.seconds, ours.peak_gib / theirs.peak_gib
    return [
        Row(
            "loading a full-size Parakeet on a CPU",
            f"{time:.2f} ({ours.seconds:.1f} s against {theirs.seconds:.1f} s)",
            "at most 0.65 of NeMo's restore_from",
            time <= 0.65,
        ),
        Row(
            "peak memory of that load",
            f"{peak:.2f} ({ours.peak_gib:.2f} GiB against {theirs.peak_gib:.2f} GiB)",
            "at most 0.6 of NeMo's",
            peak <= 0.6,
        ),
    ]


def _load(path: Path, prepare: str) -> _Load:
    code = f"path = {str(path)!r}\n{prepare}{_MEASURE}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("measured "))
    _, seconds, kib = line.split()
    return _Load(float(seconds), int(kib) / 2**20)
