"""The folder of the uploaded files that jobs own.

The name of an upload is 32 hexadecimal digits. It is checked whenever it is read, because a database that others write
to must not name a file elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from worker import private
from worker.errors import DiskFull, SourceForbidden

log = logging.getLogger(__name__)

_NAME = re.compile(r"[0-9a-f]{32}")


def is_name(name: Any) -> bool:
    """Return whether an upload may have the name."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


class Uploads:
    """The uploads in a private folder, which is created if it does not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        private.hide(private.make_folder(folder))

    def path(self, name: Any) -> Path:
        """Return the path of an upload by its stored name. Raises: SourceForbidden if no upload has such a name."""
        if not is_name(name):
            raise SourceForbidden(
                f"the job store names {str(name)[:64]!r} as an upload, which is not the name of an upload: another "
                "program has changed the job. Submit the job again."
            )
        return self.folder / str(name)

    def keep(self, file: BinaryIO) -> str:
        """Copy an open file into the folder, and return its name there. Raises: DiskFull."""
        name = uuid.uuid4().hex
        place = self.folder / name
        try:
            with place.open("xb") as kept:
                file.seek(0)
                shutil.copyfileobj(file, kept, 1 << 20)
        except OSError as error:
            place.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull("there is no space for this upload; try again later") from error
            raise
        return name

    def remove(self, names: Iterable[str | None]) -> None:
        """Remove the uploads. A file that cannot be removed is logged."""
        for name in names:
            if name is not None:
                try:
                    self.path(name).unlink(missing_ok=True)
                except SourceForbidden as error:
                    log.warning("no file is removed: %s", error.message)
                except OSError as error:
                    log.warning("the upload %s could not be removed: %s", name, error.strerror)

    def written_at(self) -> dict[str, float]:
        """Return the time of the last change of each upload, in seconds since 1970, by its name."""
        times: dict[str, float] = {}
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process may have removed the file
                if path.is_file() and is_name(path.name):
                    times[path.name] = path.stat().st_mtime
        return times
