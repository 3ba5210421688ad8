"""Measurements of full-size models with random weights on a CUDA device, within a budget of time.

    python -m benchmarks.gpu ── a process a group ──▶ rows, the most valuable first ──▶ table, and lines of JSON
                                  parakeet, canary, flamingo

A process a group: a fault of the device ends one group only, and a group that hangs is killed when its time is over.
What did not fit into the time is reported as not run. The rows report speed (RTFx), encoder and decoder apart, peak
memory and graph captures, next to NeMo's own `transcribe` and `restore_from` in the same run. Weights are random, so no
row says anything about accuracy; `checkpoints` says how the decoders are made to work as hard as on speech.

This benchmark has not run on a GPU yet. Its code runs on a CPU, at `--scale tiny`, in tests/test_gpu_benchmark.py.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu import report
from benchmarks.gpu.report import Result
from worker import child

if TYPE_CHECKING:
    from benchmarks.measures import Row

SHARES = {"parakeet": 0.6, "canary": 0.8, "flamingo": 1.0}  # the part of the time by which a group must be done
GRACE_SEC = 30.0  # for the row that runs when the time is over; then the process is killed


def run(groups: Sequence[str], device: str, scale: str, seconds: float, out: Path | None = None) -> Iterator[Result]:
    """Measure the groups one after another, and yield each row at once. Also append it to `out` as a line of JSON."""
    started = time.monotonic()
    for name in groups:
        share = 1.0 if name == groups[-1] else SHARES[name]
        left = started + seconds * share - time.monotonic()
        for record in _group(name, device, scale, left):
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            yield Result(*(record[field] for field in Result._fields))


def measure() -> list[Row]:
    """Measure all groups, or return one row that says that there is no CUDA device."""
    from benchmarks.measures import Row

    try:
        import torch
    except ImportError:
        torch = None
    if torch is None or not torch.cuda.is_available():
        return [Row("full-size models on a GPU", "not run: no CUDA device here", "reported", None)]
    rows = run(list(SHARES), "cuda", "full", 8 * 60)
    return [Row(row.what, report.measured(row), row.promised, row.kept) for row in rows]


def _group(name: str, device: str, scale: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of a group as records. If its process ends early, the last record says so."""
    with tempfile.TemporaryDirectory(prefix="aviary-bench-") as folder:
        command = child.command("benchmarks.gpu.group", name, device, scale, str(seconds), folder)
        process = child.start(command, cwd=child.ROOT, stdout=subprocess.PIPE)
        timer = threading.Timer(max(0.0, seconds) + GRACE_SEC, process.kill)
        timer.start()
        try:
            for line in process.stdout or ():
                yield json.loads(line)
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
    if code:
        reason = f"its process ended with exit code {code}"
        yield {"group": name, "step": None, **report.not_run(f"{name}: the rest", reason)._asdict()}
