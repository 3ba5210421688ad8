"""The command: `python -m tools.fuzz --seconds 60 --seed 0`, or `--target forms --case 17` to repeat one case."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.fuzz.session import Fault, Session, opened
from tools.fuzz.targets import TARGETS, generator
from worker import logs
from worker.config import Settings

HANG_SEC = 120.0
MOST_FAULTS = 20


@dataclass
class Report:
    """What a run did: the cases of each target, the longest case in seconds, and what was found."""

    cases: Counter[str] = field(default_factory=Counter)
    slowest_sec: float = 0.0
    faults: list[str] = field(default_factory=list)


async def fuzz(seconds: float, seed: int, targets: Sequence[str] = tuple(TARGETS), first: int = 0) -> Report:
    """Run the cases of the targets from `first` on, until the time is over. Every target runs one case at least.

    The targets get equal time. A slow machine runs fewer cases, but the same ones.
    """
    report = Report()
    spent = dict.fromkeys(targets, 0.0)
    try:
        async with opened() as session:
            for target in targets:
                await _run(session, target, seed, first, report)
            session.remember()
            while sum(spent.values()) < seconds and len(report.faults) < MOST_FAULTS:
                target = min(spent, key=spent.__getitem__)
                started = time.monotonic()
                await _run(session, target, seed, first + report.cases[target], report)
                spent[target] += time.monotonic() - started
    except Fault as fault:
        report.faults.append(f"at the end of the run: {fault}")
    return report


async def _run(session: Session, target: str, seed: int, number: int, report: Report) -> None:
    """Run one case and note what it shows."""
    started = time.monotonic()
    try:
        await asyncio.wait_for(TARGETS[target](session, generator(seed, target, number)), HANG_SEC)
        session.check()
    except asyncio.TimeoutError:
        _note(report, target, seed, number, f"no response after {HANG_SEC:g} s")
    except Exception as error:  # noqa: BLE001  an exception that reaches the caller is what the fuzzer looks for
        _note(report, target, seed, number, f"{type(error).__name__}: {error}")
    report.cases[target] += 1
    report.slowest_sec = max(report.slowest_sec, time.monotonic() - started)


def _note(report: Report, target: str, seed: int, number: int, what: str) -> None:
    report.faults.append(f"--seed {seed} --target {target} --case {number}: {what}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the arguments say, print the report, and return 1 if something was found."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description="Feed damaged input to Aviary.")
    parser.add_argument("--seconds", type=float, default=60, help="how long to run; default: 60")
    parser.add_argument("--seed", type=int, default=0, help="the seed of all cases; default: 0")
    parser.add_argument("--target", choices=TARGETS, help="run this target only")
    parser.add_argument("--case", type=int, help="run this case only")
    given = parser.parse_args(arguments)
    logs.configure(Settings(log_level="ERROR"))
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it reports every form that is not well-formed
    targets = [given.target] if given.target else list(TARGETS)
    seconds = given.seconds if given.case is None else 0
    report = asyncio.run(fuzz(seconds, given.seed, targets, given.case or 0))
    print("\n".join(report.faults))
    cases = ", ".join(f"{count} of {target}" for target, count in report.cases.items())
    print(f"cases: {cases}; slowest: {report.slowest_sec:.1f} s; faults: {len(report.faults)}")
    return bool(report.faults)


if __name__ == "__main__":
    sys.exit(main())
