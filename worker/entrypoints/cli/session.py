"""What commands over many inputs share: what was typed, stdout kept for results, what is said on stderr, the exit
code."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

INTERRUPTED = 130


def typed(given: argparse.Namespace) -> list[str]:
    """The inputs, wherever they stood."""
    return [*given.inputs, *([given.path] if given.path else []), *given.paths]


def options(given: argparse.Namespace) -> dict[str, Any]:
    """Return the request options that were typed."""
    from worker.protocol.request import OPTIONS

    return {name: value for name in OPTIONS if (value := getattr(given, name, None)) is not None}


def quiet_stdout() -> contextlib.AbstractContextManager[Any]:
    """Libraries that print do so on stderr; results are written to stdout's own buffer."""
    return contextlib.redirect_stdout(sys.stderr)


def bar_shown(given: argparse.Namespace) -> bool:
    """On a terminal, unless results come to the same terminal one by one."""
    lines = (
        getattr(given, "format", None) == "jsonl"
        and given.output is None
        and sys.__stdout__ is not None
        and sys.__stdout__.isatty()
    )
    return sys.stderr.isatty() and not lines


def say(text: str) -> None:
    print(f"aviary: {text}", file=sys.stderr)


class Tally:
    """What has been done of `total` inputs, and what came of it."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._audio_sec = total, 0, 0.0
        self._warnings: list[str] = []
        self._failures: list[str] = []
        self._interrupted = False

    def add(self, result: dict[str, Any]) -> None:
        self._done += 1
        self._audio_sec += result.get("duration_sec", 0.0)
        if warning := result.get("warning"):
            self._warnings.append(f"{result['file']}: {warning}")
        if error := result.get("error"):
            self._failures.append(f"{result['file']}: {error['code']}: {error['message']}")

    @contextlib.contextmanager
    def until_interrupted(self) -> Iterator[None]:
        """Ctrl-C ends the block, not the command: what is done is still to be written."""
        try:
            yield
        except KeyboardInterrupt:
            self._interrupted = True

    @property
    def usage(self) -> dict[str, Any]:
        return {"inputs": self._done, "failed": len(self._failures), "audio_sec": round(self._audio_sec, 3)}

    def report(self) -> int:
        """Says on stderr what was damaged and what failed; returns the exit code."""
        for line in (*self._warnings, *self._failures):
            say(line)
        if self._failures:
            say(f"{len(self._failures)} of {self._total} inputs failed")
        if self._interrupted:
            say(f"interrupted: {self._done} of {self._total} inputs are done, and written")
            return INTERRUPTED
        return 1 if self._failures else 0
