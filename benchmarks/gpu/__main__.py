"""Measure full-size models on a GPU: `python -m benchmarks.gpu --minutes 8 --out rows.jsonl`.

The table goes to stdout, and the same rows to FILE as lines of JSON, each as soon as it is measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import gpu
from benchmarks.gpu.report import HEADING, line
from benchmarks.gpu.scale import SCALES


def main() -> None:
    """Run the measurements that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"any of {', '.join(gpu.SHARES)}; by default, all")
    parser.add_argument("--minutes", type=float, default=8, help="start no measurement after this time (default: 8)")
    parser.add_argument("--device", default="cuda", help="the device of torch (default: cuda)")
    parser.add_argument("--scale", choices=SCALES, default="full", help="tiny: models and clips for a test on a CPU")
    parser.add_argument("--out", type=Path, help="file that the rows are appended to, as lines of JSON")
    arguments = parser.parse_args()
    if unknown := set(arguments.groups) - set(gpu.SHARES):
        parser.error(f"unknown groups: {', '.join(sorted(unknown))}; the groups are {', '.join(gpu.SHARES)}")
    groups = [name for name in gpu.SHARES if name in arguments.groups or not arguments.groups]
    print(HEADING, flush=True)
    for row in gpu.run(groups, arguments.device, arguments.scale, 60 * arguments.minutes, arguments.out):
        print(line(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
