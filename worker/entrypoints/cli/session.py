"""The parts that commands over many inputs share: the inputs, stdout for results only, messages on stderr, the exit
code.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.config import Settings

INTERRUPTED = 130


def typed(given: argparse.Namespace) -> list[str]:
    """Return the inputs: the positional arguments, --path and --paths."""
    return [*given.inputs, *([given.path] if given.path else []), *given.paths]


def output(given: argparse.Namespace) -> str | None:
    """Return where results are written: a file, a folder, whose name ends with a slash, or None for stdout."""
    folder: str | None = getattr(given, "output_dir", None)
    file: str | None = given.output
    return file if folder is None else os.path.join(folder, "")


def options(given: argparse.Namespace) -> dict[str, Any]:
    """Return the request options that were typed."""
    from worker.protocol.options import OPTIONS

    return {name: value for name in OPTIONS if (value := getattr(given, name, None)) is not None}


def settings(given: argparse.Namespace, task: str) -> Settings:
    """Return the settings with the model that was typed, or the default model of the task."""
    from worker.config import Settings

    chosen = Settings.of(model=given.model, model_dir=given.model_dir, device=given.device)
    if task == "diarize" and not (given.model or given.model_dir):
        return chosen.model_copy(update={"model": chosen.diarizer})
    return chosen


def quiet_stdout() -> contextlib.AbstractContextManager[Any]:
    """Redirect prints to stderr while the context lasts, because libraries print.

    Results are written to stdout's own buffer, which the redirection does not change.
    """
    return contextlib.redirect_stdout(sys.stderr)


def bar_shown(given: argparse.Namespace) -> bool:
    """Return whether to show a progress bar: on a terminal, unless results are printed to it one by one."""
    lines = (
        "jsonl" in getattr(given, "format", ())
        and output(given) is None
        and sys.__stdout__ is not None
        and sys.__stdout__.isatty()
    )
    return sys.stderr.isatty() and not lines


def say(text: str) -> None:
    """Print a message to stderr."""
    print(f"aviary: {text}", file=sys.stderr)


class Tally:
    """The finished ones of `total` inputs, their warnings and their failures.

    bar_shown: whether a bar is shown, which prints the failures. Otherwise they are printed as they are added.
    """

    def __init__(self, total: int, *, bar_shown: bool = False) -> None:
        self._total, self._done, self._audio_sec, self._failed = total, 0, 0.0, 0
        self._bar_shown = bar_shown
        self._warnings: list[str] = []
        self.is_interrupted = False

    def add(self, result: dict[str, Any]) -> None:
        """Count the result of an input."""
        self._done += 1
        self._audio_sec += result.get("duration_sec", 0.0) * result.get("channels", 1)
        if warning := result.get("warning"):
            self._warnings.append(f"{result['file']}: {warning}")
        if error := result.get("error"):
            self._failed += 1
            if not self._bar_shown:
                say(f"{result['file']}: {error['code']}: {error['message']}")

    @contextlib.contextmanager
    def until_interrupted(self) -> Iterator[None]:
        """Make Ctrl-C end only the block, so that the command can write the finished results."""
        try:
            yield
        except KeyboardInterrupt:
            self.is_interrupted = True

    @property
    def usage(self) -> dict[str, Any]:
        """The counts of finished and failed inputs, and the seconds of audio."""
        return {"inputs": self._done, "failed": self._failed, "audio_sec": round(self._audio_sec, 3)}

    def report(self) -> int:
        """Print the warnings and the number of failures to stderr, and return the exit code."""
        for line in self._warnings:
            say(line)
        if self._failed:
            say(f"{self._failed} of {self._total} inputs failed")
        if self.is_interrupted:
            say(f"interrupted; the results of {self._done} of {self._total} inputs are written")
            return INTERRUPTED
        return 1 if self._failed else 0
