"""One process of a machine loads a model at a time: two loads might not fit in its memory together.

    with alone(settings): …     waits for the loads of the processes with the same DATA_DIR

The operating system releases the lock of a process that dies. Without a DATA_DIR, a load waits for no other process.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from typing import IO

from worker.config import Settings
from worker.errors import ConfigError

LOCK = "loading.lock"

log = logging.getLogger(__name__)


@contextlib.contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Hold the lock of the machine while the block runs."""
    try:
        file: IO[bytes] = (settings.make_data_dir() / LOCK).open("ab")
    except (OSError, ConfigError) as error:
        log.warning("the models of several processes may load at the same time: %s", error)
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process of this machine to load its model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
