"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass

FULL_REQUIREMENTS = "Install requirements.txt (for a CUDA GPU) or requirements-cpu.txt"


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
