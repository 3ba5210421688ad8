"""Files and folders of one user: created for that user alone, and refused if another user may have put them there.

    make_folder(path)     create a folder with mode 0700, or check the folder that exists
    make_file(path)       the same for a file, with mode 0600
    hide(path)            take all rights from users outside the group of the path

A path that exists must belong to this user or to root. Root also accepts the path of another user, such as a volume of
a container, if only that user may write to the path and to its parent folder: then root or that user put the path
there. In the temporary folder, any user could have done it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from worker.errors import ConfigError

_OTHERS = stat.S_IRWXO
_SHARED = stat.S_IWGRP | stat.S_IWOTH


def make_folder(path: Path) -> Path:
    """Create the folder with its parents if it does not exist, and return it.

    Raises: ConfigError if another user may have put it there; OSError if it cannot be created.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(path)
    return path


def make_file(path: Path) -> Path:
    """Create the file, empty, if it does not exist, and return it. Users outside its group lose all rights to it.

    Raises: ConfigError if another user may have put it there; OSError if it cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    _check_owner(path)
    hide(path)
    return path


def hide(path: Path) -> None:
    """Take all rights from users outside the group of the path, if this user owns it and the file system has modes."""
    with contextlib.suppress(OSError):  # no such path, or a file system without modes
        status = path.stat()
        if status.st_uid == os.geteuid() and status.st_mode & _OTHERS:
            path.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS)


def _check_owner(path: Path) -> None:
    """Raise ConfigError unless the path and, if it is a link, its target are trusted."""
    for place in (path, path.resolve()) if path.is_symlink() else (path,):
        status = place.lstat()
        if not _is_trusted(status, place.parent.stat()):
            raise ConfigError(
                f"{path} belongs to another user (uid {status.st_uid}), who could read and replace jobs. Set DATA_DIR "
                f"to a folder that does not exist yet, or make this user the owner: chown {os.geteuid()} {path}"
            )


def _is_trusted(status: os.stat_result, parent: os.stat_result) -> bool:
    """Return whether only this user, root, or an owner whom root accepts can have put the path there."""
    if status.st_uid in (0, os.geteuid()):
        return True
    is_link = stat.S_ISLNK(status.st_mode)  # the mode of a link means nothing
    return os.geteuid() == 0 and not (parent.st_mode & _SHARED or (status.st_mode & _SHARED and not is_link))
