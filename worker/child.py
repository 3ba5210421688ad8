"""Child processes that run a module of this package.

command(module, *arguments)    what to execute
environment(**variables)       this process's environment and the variables
ROOT                           the folder to start the child in, so that it finds the package wherever this process
started
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs `module` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def environment(**variables: str) -> dict[str, str]:
    """Return the environment to pass on, with `variables` added or replaced."""
    return {**os.environ, **variables}
