"""What a running job has done since its progress was last stored.

on_progress ──▶ ProgressLog.add ── unstored ──▶ the store ──▶ ProgressLog.note_stored
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from worker.types import Progress


@dataclass(frozen=True, slots=True)
class Unstored:
    """The progress of a job, and what its inputs add to their texts: indexes of inputs and additions, in order."""

    progress: Progress
    texts: tuple[tuple[int, str], ...]


class ProgressLog:
    """The progress of one job. Thread-safe."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._texts: list[tuple[int, str]] = []
        self._lock = threading.Lock()

    def add(self, progress: Progress) -> None:
        """Note how far the job has come."""
        with self._lock:
            self._progress = progress
            if progress.text is not None:
                self._texts.append(progress.text)

    def unstored(self) -> Unstored | None:
        """Return what is not stored yet, or None if everything is."""
        with self._lock:
            return None if self._progress is None else Unstored(self._progress, tuple(self._texts))

    def note_stored(self, stored: Unstored) -> None:
        """Forget what has been stored. Additions since then stay."""
        with self._lock:
            del self._texts[: len(stored.texts)]
            if self._progress is stored.progress:
                self._progress = None
