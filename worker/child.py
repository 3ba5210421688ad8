"""Child processes: how they start, and how they end with this process.

    process = start(command(module, *arguments))     in place of subprocess.Popen

- `command` returns the command line that runs a module of this package.
- `environment` returns this process's environment and more variables.
- `ROOT` is the folder to start a child in, so that it finds the package.
- `start` starts a child that ends with this process.
- `Lifeline` does the same for a child that another function starts, such as asyncio's.
- `ignore_signals`, in a child, leaves Ctrl-C and SIGTERM to this process.

On Linux, the kernel kills the child when this process ends, even if this process is killed. The child need not help:

    this process ── write end of a pipe ══▶ read end ── the child, which never reads it
         ends  ──▶  the kernel closes it  ──▶  the kernel signals the child (F_SETOWN, F_SETSIG, O_ASYNC)

PR_SET_PDEATHSIG is not used: it kills the child as soon as the thread that started it ends. On other systems, a child
ends once it reads the end of its stdin or socket.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent


class Process(Protocol):
    """A child process, as subprocess and asyncio describe it."""

    @property
    def pid(self) -> int:
        """The id of the process."""
        ...


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs `module` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def environment(**variables: str) -> dict[str, str]:
    """Return the environment to pass on, with `variables` added or replaced."""
    return {**os.environ, **variables}


def start(arguments: Sequence[str], *, pass_fds: Sequence[int] = (), **options: Any) -> subprocess.Popen[bytes]:
    """Start a child process that ends with this process.

    The parameters and the exceptions are those of subprocess.Popen.
    """
    with Lifeline() as lifeline:
        process = subprocess.Popen(arguments, pass_fds=(*pass_fds, lifeline.descriptor), **options)  # noqa: S603  never a text of a client
        lifeline.tie(process)
    return process


class Lifeline:
    """The pipe by which the kernel notices the end of this process. Pass `descriptor` on to the child, then `tie` it.

    As a context manager, it closes what this process no longer needs.
    """

    def __init__(self) -> None:
        self.descriptor, self._held = os.pipe()
        self._is_tied = False

    def tie(self, process: Process, number: int = signal.SIGKILL) -> None:
        """Make the kernel send the signal to the process when this process ends."""
        if sys.platform == "linux":
            fcntl.fcntl(self.descriptor, fcntl.F_SETOWN, process.pid)
            fcntl.fcntl(self.descriptor, fcntl.F_SETSIG, number)
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, os.O_ASYNC)
        weakref.finalize(process, os.close, self._held)
        self._is_tied = True

    def __enter__(self) -> Lifeline:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.descriptor)
        if not self._is_tied:
            os.close(self._held)


def ignore_signals() -> None:
    """Ignore Ctrl-C and SIGTERM, which may reach a whole group of processes: the parent decides when this one ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
