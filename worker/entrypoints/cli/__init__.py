"""The command line: `aviary COMMAND`, or `python -m worker COMMAND`. It trusts the paths it is given.

    transcribe, translate, caption, embed, chat, analyze     any number of files, folders and URLs, as one request
    score        recordings against a reference clip
    evaluate     labelled audio: error rates
    manifest     a JSONL manifest of any length, by this machine or a server
    serve        the HTTP server
    models       the catalog
    doctor       whether this machine is set up, and what to do about it

Results are on stdout, or where --output says; what is said about them (progress, failures) is on stderr. Exit codes:
0, 1 (some
inputs failed, or their results could not be written), 2 (usage or configuration; nothing was done), 130 (interrupted;
what was done is written).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from worker.entrypoints.cli import arguments
from worker.errors import AviaryError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    parser = arguments.parser()
    given = parser.parse_args(argv)
    try:
        code = _run(parser, given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough: nothing more may be written, not even at exit
        _silence()
        return 1
    except OSError as error:  # the disk that results go to is full, or gone
        print(f"{parser.prog}: {error.strerror}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        _silence()
        return 1
    return code


def _silence() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    try:
        code: int = given.run(given)
    except AviaryError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return code
