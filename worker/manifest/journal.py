"""A JSONL file that one process at a time appends to, and that survives a kill at any moment.

Lines reach the disk in small groups (fsync). `recover` cuts off an incomplete line that a killed process left.
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
    """An open journal at `path`, created if it does not exist. Raises: RequestError if another process has it open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise RequestError(
                f"another run is writing {path}; wait for it, or choose another output folder", param="output"
            ) from None
        except OSError:
            pass  # the file system has no locks
        self._unsynced, self._synced_at = 0, time.monotonic()

    def recover(self) -> Iterator[dict[str, Any]]:
        """Yield the object of every line, and cut off an incomplete last line.

        Exhaust the iterator before the first `append`. Raises: RequestError if the file is not a journal.
        """
        whole = 0
        with self.path.open("rb") as file:
            for line in file:
                value = _object(line)
                if value is None and file.peek(1):
                    raise RequestError(
                        f"{self.path} is not the output of a manifest. Choose another output folder, or delete the "
                        "file to start over.",
                        param="output",
                    )
                if value is not None:
                    whole += len(line)
                    yield value
        self._file.truncate(whole)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, each with its line end."""
        with self.path.open("rb") as file:
            yield from file

    def append(self, line: bytes) -> None:
        """Append a line, which includes its line end. It reaches the disk with the next `sync`."""
        self._file.write(line)
        self._unsynced += 1

    @property
    def due(self) -> bool:
        """Return whether a sync is due: after SYNC_LINES lines or SYNC_SEC seconds."""
        return self._unsynced >= SYNC_LINES or time.monotonic() - self._synced_at >= SYNC_SEC

    def sync(self) -> None:
        """Write all appended lines to the disk (fsync)."""
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
