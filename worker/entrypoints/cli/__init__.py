"""The command line: `aviary COMMAND`, or `python -m worker COMMAND`. It may read every path that the user may read.

    transcribe, translate, caption, embed, chat, analyze     any number of files, folders and URLs, as one request
    score        recordings against a reference clip
    evaluate     error rates on labeled audio
    manifest     a JSONL manifest of any length, on this machine or through a server
    listen       a microphone or stdin, while the audio comes in
    serve        the HTTP server
    mcp          the tools of a language model, over the Model Context Protocol
    models       the models, with their sizes on disk; download and remove them
    doctor       a check of this machine's setup, with advice

Results go to stdout or to --output; progress, warnings and failures go to stderr. Exit codes:

    0      success
    1      some inputs failed, or their results could not be written
    2      wrong usage or configuration; nothing was done
    130    interrupted; the finished results are written
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from worker.entrypoints.cli import arguments, session
from worker.errors import AviaryError


def run_process() -> NoReturn:
    """Run the command of this process, and exit.

    An interrupted command does not wait for the threads that still run a model, as Python would, and Python crashes if
    one of them returns from a library while it exits. Child processes end with this process.
    """
    code = main()
    if code == session.INTERRUPTED:
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit code. `argv` defaults to the arguments of the process."""
    parser = arguments.parser()
    args = parser.parse_args(argv)
    try:
        code = _run(parser, args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return session.INTERRUPTED
    except BrokenPipeError:  # the reader, such as `| head`, has exited
        _silence()
        return 1
    except OSError as error:  # for example, the disk for the results is full
        print(f"{parser.prog}: {error.strerror}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        _silence()
        return 1
    return code


def _silence() -> None:
    """Discard the rest of stdout, which Python would otherwise flush at exit and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    try:
        code: int = args.run(args)
    except AviaryError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return code
