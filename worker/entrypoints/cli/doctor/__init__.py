"""doctor: check whether this machine is set up, and advise what to do about each problem.

    run(arguments)    the command: prints one line for each finding; exit code 1 if there is a problem
    findings(...)     the findings, one by one
    machine.py        Python, packages, ffmpeg, device, disk and bucket
    weights.py        the model's libraries and weights, and the catalog's pinned hashes

The checks load no model and change no file that exists. The only requests that they send ask the hub for weights that
are not on this machine, and the bucket whether it is usable. The command works without torch, and if packages are
missing.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from worker.entrypoints.cli.doctor import machine, weights
from worker.entrypoints.cli.doctor.finding import Finding
from worker.errors import ConfigError, RequestError

__all__ = ["Finding", "findings", "run"]

_SETTINGS = "Correct the setting; docs/settings.md lists the allowed values"
_CHECKS = (
    ("ffmpeg", machine.ffmpeg),
    ("device", machine.device),
    ("disk", machine.disk),
    ("model", weights.check),
    ("hashes", weights.hashes),
    ("S3", machine.bucket),
)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings. Return 0, or 1 if at least one is a problem."""
    problems = 0
    for finding in findings(arguments.model, arguments.model_dir, arguments.device):
        print(f"{'ok' if finding.ok else 'problem':8} {finding.subject:9} {finding.state}", flush=True)
        if finding.advice:
            problems += 1
            print(f"{'':18} -> {finding.advice}", flush=True)
    print(f"\n{problems} problem{'s' if problems != 1 else ''} found" if problems else "\nNo problems found")
    return 1 if problems else 0


def findings(model: str | None = None, model_dir: Path | None = None, device: str | None = None) -> Iterator[Finding]:
    """Yield the finding of each check. If the settings are invalid, the checks that read them are left out.

    `model`, `model_dir` and `device` take precedence over the settings of these names.
    """
    yield machine.python()
    yield from _safely("packages", machine.packages)
    try:
        from worker.config import Settings

        settings = Settings.of(model=model, model_dir=model_dir, device=device)
    except Exception as error:  # noqa: BLE001  a missing package or an invalid value: both are findings
        advice = _SETTINGS if isinstance(error, ValueError) else "Install the missing package"
        yield Finding("settings", str(error), advice)
        return
    yield Finding("settings", "all values are allowed")
    for subject, check in _CHECKS:
        yield from _safely(subject, functools.partial(check, settings))


def _safely(subject: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check. An exception that it raises becomes a finding."""
    try:
        yield from check()
    except (ConfigError, RequestError) as error:
        yield Finding(subject, error.message, _SETTINGS)
    except Exception as error:  # noqa: BLE001  a check that fails is a finding too
        yield Finding(subject, f"{type(error).__name__}: {error}", "Install or repair the component that it names")
