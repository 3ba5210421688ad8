"""A JSONL file that is only appended to, by one process at a time, and that survives being killed at any moment.

Lines reach the disk in small groups (fsync). What a killed process left of a line is cut off by `recover`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.errors import RequestError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

SYNC_LINES, SYNC_SEC = 64, 1.0


class Journal:
    """Raises RequestError if another process has it open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise RequestError(f"another run is writing {path}", param="output") from None
        except OSError:
            pass  # a file system without locks
        self._unsynced, self._synced_at = 0, time.monotonic()

    def recover(self) -> Iterator[dict[str, Any]]:
        """Every line's object; a last line that is not whole is cut off. To be read to its end before `append`.
        Raises RequestError for a file that was never such a journal."""
        whole = 0
        with self.path.open("rb") as file:
            for line in file:
                value = _object(line)
                if value is None and file.peek(1):
                    raise RequestError(
                        f"{self.path} is not an output of this program: choose another folder, or remove it",
                        param="output",
                    )
                if value is not None:
                    whole += len(line)
                    yield value
        self._file.truncate(whole)

    def lines(self) -> Iterator[bytes]:
        """The lines, with their ends."""
        with self.path.open("rb") as file:
            yield from file

    def append(self, line: bytes) -> None:
        """`line`: with its end."""
        self._file.write(line)
        self._unsynced += 1

    @property
    def due(self) -> bool:
        """Whether a group is full, or old enough."""
        return self._unsynced >= SYNC_LINES or time.monotonic() - self._synced_at >= SYNC_SEC

    def sync(self) -> None:
        """Everything is on disk afterwards."""
        if self._unsynced:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._unsynced, self._synced_at = 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.closing(self._file):
            self.sync()


def _object(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
