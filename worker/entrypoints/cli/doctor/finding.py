"""The result of one check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worker import child

BASE_REQUIREMENTS = "requirements-base.txt"


def checkout_file(name: str) -> Path | None:
    """Return a requirements file beside the package, or None: the package was installed without a checkout."""
    path = child.ROOT / name
    return path if path.is_file() else None


def install(needs: Sequence[str]) -> str:
    """Return how to install what a model needs, which is `needs` of its row in the catalog.

    The last of `needs` is the name of an extra in pyproject.toml.
    """
    if checkout_file(BASE_REQUIREMENTS):
        return "Install requirements.txt (for a CUDA GPU) or requirements-cpu.txt"
    return f'Run pip install "aviary-worker[{needs[-1]}]"'


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one subject, and what to do if it is a problem."""

    subject: str
    """What was checked, in one word."""

    state: str
    """The state that the check found."""

    advice: str | None = None
    """What to do about the problem. None if there is no problem."""

    @property
    def ok(self) -> bool:
        """Return whether there is no problem."""
        return self.advice is None
