"""One group of measurements, in a process of its own.

    python -m benchmarks.gpu.group NAME DEVICE SCALE SECONDS FOLDER

It prints a line of JSON for each row, as soon as the row is measured. No row is started after SECONDS. Checkpoints and
clips go into FOLDER.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from benchmarks.gpu import report
from benchmarks.gpu.bench import Machine, Step
from benchmarks.gpu.canary import Canary
from benchmarks.gpu.flamingo import Flamingo
from benchmarks.gpu.parakeet import Parakeet
from benchmarks.gpu.report import Result
from benchmarks.gpu.scale import SCALES

GROUPS: dict[str, type[Any]] = {"parakeet": Parakeet, "canary": Canary, "flamingo": Flamingo}


def main() -> None:
    """Measure the group that the command line names."""
    name, device, scale, seconds, folder = sys.argv[1:]
    deadline = time.monotonic() + float(seconds)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the libraries print must not mix with the rows
    context = {"group": name, "scale": scale, **report.context(device)}
    group = GROUPS[name](Machine(device, SCALES[scale], Path(folder)))
    try:
        for step in group.steps:
            _measure(step, f"{name}: {step.__name__}", deadline, context, out)
    finally:
        group.close()


def _measure(step: Step, name: str, deadline: float, context: dict[str, Any], out: TextIO) -> None:
    """Print the rows of a step. After the deadline, print one row that says so in place of the rest."""
    rows, what = step(), name
    while True:
        if time.monotonic() > deadline:
            row: Result | None = report.not_run(what, "out of time")
        else:
            try:
                row = next(rows, None)
            except Exception as error:
                traceback.print_exc()
                row = report.failure(what, error)
        if row is None:
            return
        print(json.dumps({"step": step.__name__, **row._asdict(), **context}), file=out)
        if row.what == what:
            return
        what = f"{name}, further rows, if there are any"


if __name__ == "__main__":
    main()
