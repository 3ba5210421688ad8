"""The files that clients upload to name them later, and the results of batches: a row each, and a file in `uploads`.

    upload ── keep ──▶ a file in the folder ── add ──▶ StoredFile ── delete, or `expires_at` ──▶ removed

A file that has expired is not found, even if it is not removed yet. The input of a batch stays on the disk until the
batch has ended, even if its row is deleted. Every method raises StoreError or DiskFull if the database fails.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from worker.errors import DiskFull
from worker.jobs.database import Database
from worker.jobs.records import StoredFile
from worker.jobs.schema import batches, files
from worker.jobs.uploads import Uploads

_COLUMNS = [files.c[field.name] for field in fields(StoredFile)]
_ID = re.compile(r"file-[0-9a-f]{32}")


class FileStore:
    """The files in one database. Thread-safe. `clock`: returns the seconds since 1970."""

    def __init__(self, database: Database, uploads: Uploads, clock: Callable[[], float]) -> None:
        self._database, self._uploads, self._clock = database, uploads, clock

    def add(
        self, upload: str, *, filename: str, purpose: str, owner: str | None, keep_sec: float, most_bytes: int
    ) -> StoredFile:
        """Store a row for a file in the folder, which is then the store's. most_bytes: of all files together.

        Raises: DiskFull if the files would take more.
        """
        row = self.row(upload, filename=filename, purpose=purpose, owner=owner, keep_sec=keep_sec)
        with self._database.write() as connection:
            taken = int(connection.scalar(sa.select(sa.func.coalesce(sa.func.sum(files.c.bytes), 0))) or 0)
            if taken + row["bytes"] > most_bytes:
                raise DiskFull(
                    f"the files of this server would take more than {most_bytes} bytes (JOBS_MAX_BYTES); delete files "
                    "that you no longer need (DELETE /v1/files/{id})"
                )
            number = connection.scalars(files.insert().returning(files.c.number), [row]).one()
        return StoredFile(number=number, **row)

    def row(self, upload: str, *, filename: str, purpose: str, owner: str | None, keep_sec: float) -> dict[str, Any]:
        """Return the values of a new file's row."""
        now = self._clock()
        return {
            "id": f"file-{uuid.uuid4().hex}",
            "owner": owner,
            "filename": filename.encode("utf-8", "replace").decode().replace("\0", "�"),
            "purpose": purpose,
            "bytes": self._uploads.path(upload).stat().st_size,
            "created_at": now,
            "expires_at": now + keep_sec,
            "upload": upload,
        }

    def find(self, file_id: str) -> StoredFile | None:
        """Return a file, or None if there is none or it has expired."""
        if not _ID.fullmatch(file_id):
            return None
        with self._database.read() as connection:
            row = connection.execute(
                sa.select(*_COLUMNS).where(files.c.id == file_id, files.c.expires_at > self._clock())
            ).one_or_none()
        return None if row is None else StoredFile(*row)

    def path(self, file: StoredFile) -> Path:
        """Return the path of a file. Raises: SourceForbidden if the row names no upload."""
        return self._uploads.path(file.upload)

    def recent(
        self, *, owner: str | None, purpose: str | None, after: int | None, limit: int, ascending: bool
    ) -> list[StoredFile]:
        """Return up to `limit` files in the order of their creation, newest first unless `ascending`.

        owner: None stands for all. after: the number of the file after which the list begins.
        """
        query = sa.select(*_COLUMNS).where(files.c.expires_at > self._clock()).limit(limit)
        query = query.order_by(files.c.number if ascending else files.c.number.desc())
        for column, value in ((files.c.owner, owner), (files.c.purpose, purpose)):
            query = query if value is None else query.where(column == value)
        if after is not None:
            query = query.where(files.c.number > after if ascending else files.c.number < after)
        with self._database.read() as connection:
            return [StoredFile(*row) for row in connection.execute(query)]

    def delete(self, file_id: str) -> bool:
        """Remove a file. Return whether there was one."""
        return self._remove([file_id]) > 0

    def expire(self) -> int:
        """Remove the files that have expired, and return their number."""
        with self._database.read() as connection:
            old = connection.scalars(sa.select(files.c.id).where(files.c.expires_at <= self._clock())).all()
        return sum(self._remove([file_id]) for file_id in old)

    def uploads_in_use(self, connection: sa.Connection) -> set[str]:
        """Return the uploads that a file, or a batch that has not ended, names."""
        return {*connection.scalars(sa.select(files.c.upload)), *connection.scalars(_inputs())}

    def _remove(self, ids: Sequence[str]) -> int:
        with self._database.write() as connection:
            removed = connection.scalars(files.delete().where(files.c.id.in_(ids)).returning(files.c.upload)).all()
            kept: Iterable[str] = connection.scalars(_inputs().where(batches.c.input_upload.in_(removed))).all()
        self._uploads.remove(set(removed) - set(kept))
        return len(removed)


def _inputs() -> sa.Select[Any]:
    return sa.select(batches.c.input_upload).where(batches.c.due_at.is_not(None))
