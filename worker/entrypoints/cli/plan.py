"""What a command does with its inputs, said on stderr before it starts.

inputs ── expand ──▶ found ──┬──▶ skipped, because their results exist (--skip-existing)
                             └──▶ to do: their results may overwrite files
the rest of the folders ──▶ left out
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.entrypoints.cli import outputs, session
from worker.entrypoints.cli.inputs import Input, expand
from worker.errors import RequestError

_NAMES = 5  # how many names a line shows


@dataclass(frozen=True)
class Plan:
    """The inputs of a command, and the sink of their results. `todo` holds the places of the inputs to process."""

    inputs: Sequence[Input]
    sink: outputs.Sink
    todo: Sequence[int]


def make(given: argparse.Namespace, forms: Sequence[str]) -> Plan:
    """Return the plan of a command that writes results in these formats, and print it.

    Raises RequestError if an input or the output cannot be used.
    """
    if given.skip_existing and not outputs.is_folder(session.output(given)):
        raise RequestError("--skip-existing requires a folder of results; specify --output-dir FOLDER", param="output")
    left_out: dict[str, list[str]] = {}
    typed = session.typed(given)
    inputs = expand(typed, lambda path, reason: left_out.setdefault(reason, []).append(os.path.basename(path)))
    if given.failed_list is not None:
        outputs.check_writable(given.failed_list)
    sink = outputs.create(forms, session.output(given), inputs, sys.stdout.buffer)
    todo = [
        index
        for index, source in enumerate(inputs)
        if not (given.skip_existing and _is_newer(sink.paths(index), source.source))
    ]
    if left_out or [source.source for source in inputs] != typed:
        others = ", ".join(f"{len(names)} {reason} ({_some(names)})" for reason, names in left_out.items())
        session.say(f"found {_count(len(inputs), 'input')}" + (f"; left out {others}" if others else ""))
    if skipped := len(inputs) - len(todo):
        session.say(f"skipping {_count(skipped, 'input')} with results")
    overwritten = dict.fromkeys(path for index in todo for path in sink.paths(index) if path.is_file())
    if overwritten:
        session.say(f"overwriting {_count(len(overwritten), 'file')} ({_some([path.name for path in overwritten])})")
    return Plan(inputs, sink, todo)


@contextlib.contextmanager
def failed_list(path: str | None) -> Iterator[Callable[[Input], None]]:
    """Yield a function that adds an input to the file, one a line, as `expand` reads it. None: no file."""
    if path is None:
        yield lambda _source: None
        return
    with open(path, "w", encoding="utf-8", errors="surrogateescape", buffering=1) as file:

        def add(source: Input) -> None:
            if {"\n", "\r"} & set(source.listed):
                session.say(f"{source.source!r} has a line break, so {path} does not list it")
            else:
                print(source.listed, file=file)

        yield add


def _is_newer(paths: Sequence[Path], source: str) -> bool:
    """Return whether all files exist, are not empty, and are no older than the source, if that is a file."""
    try:
        changed = os.stat(source).st_mtime
    except (OSError, ValueError):  # a URL, for example
        changed = 0.0
    try:
        found = [path.stat() for path in paths]
    except OSError:
        return False
    return all(stat.st_size > 0 and stat.st_mtime >= changed for stat in found)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    """Return the first names, and a sign that there are others."""
    return ", ".join([*names[:_NAMES], *(["…"] if len(names) > _NAMES else [])])
