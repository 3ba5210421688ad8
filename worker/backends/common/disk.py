"""Writing model files to a folder: a failure names the folder and says what is missing.

with writing("MODEL", folder, needed, setting="HF_HOME"): …

no room             the bytes that are needed and those that are free
no permission       the user that may not write there
read-only           the folder alone
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from worker.backends.common.device import GIB
from worker.errors import ModelUnavailable


@contextlib.contextmanager
def writing(what: str, folder: Path, needed: Callable[[], int | None], *, setting: str) -> Iterator[None]:
    """Raise ModelUnavailable in place of an OSError which means that the folder cannot take the files of the block.

    `what` is the subject of the message, `needed` returns the bytes that it takes, or None if they are unknown, and
    `setting` is the variable that selects the folder.
    """
    try:
        yield
    except OSError as error:
        if reason := _reason(error, folder, needed):
            advice = f"Set {setting} to a folder that this user can write to"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                advice = f"Free some room, or set {setting} to a folder on a larger disk"
            raise ModelUnavailable(f"{what} cannot be written to {folder}: {reason}. {advice}.") from error
        raise


def is_writable(folder: Path) -> bool:
    """Return whether this user can create the folder, or files in it if it exists."""
    return os.access(_existing(folder), os.W_OK)


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())


def _reason(error: OSError, folder: Path, needed: Callable[[], int | None]) -> str | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needs = "more room" if (count := needed()) is None else f"{count / GIB:.1f} GiB"
        return f"it needs {needs}, and {shutil.disk_usage(_existing(folder)).free / GIB:.1f} GiB are free"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"the user with the id {os.geteuid()} has no permission"
    return "the file system is read-only" if error.errno == errno.EROFS else None
