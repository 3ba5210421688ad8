"""A database by its URL: transactions to write in, connections to read on, and its errors as Aviary's.

SQLite runs in WAL mode with synchronous=NORMAL: a commit survives kill -9 of any process; a power failure may lose the
last commits, but leaves the file intact (https://www.sqlite.org/wal.html). A process writes on one connection, and its
threads queue for it. Each write starts with BEGIN IMMEDIATE, so processes take turns instead of failing halfway. Reads
use other connections and never wait for a write. PostgreSQL is accessed through psycopg.

Opening raises ConfigError for a URL that does not work. Later, DiskFull or StoreError reports a failure of the
database. No error shows statements, values or passwords.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import tenacity
from sqlalchemy import event, exc

from worker import private
from worker.errors import ConfigError, DiskFull, StoreError
from worker.jobs.schema import migrate

BUSY_SEC = 30.0
_READERS = 16
_WAL_BYTES = 64 * 1024**2  # the size that SQLite truncates its write-ahead log to after a burst


class Database:
    """An open database, created if it does not exist, and migrated to the current schema. Thread-safe.

    Raises: ConfigError if `url` is not sqlite:////path/jobs.db or postgresql://host/name, or if the database cannot be
    opened or migrated.
    """

    def __init__(self, url: str | sa.URL) -> None:
        try:
            parsed = _parse(url)
            sqlite = parsed.get_backend_name() == "sqlite"
            self._writer = (
                _sqlite(parsed, 1) if sqlite else sa.create_engine(parsed, pool_pre_ping=True, hide_parameters=True)
            )
            self._reader = (
                _sqlite(parsed, _READERS, read_only=True)
                if sqlite
                else sa.create_engine(parsed, pool_pre_ping=True, hide_parameters=True, isolation_level="AUTOCOMMIT")
            )
            with _errors():
                migrate(self._writer)
        except (exc.SQLAlchemyError, StoreError, OSError, ImportError) as error:
            raise ConfigError(
                f"JOBS_URL={_without_password(url)!r}: the job store cannot be opened: {_reason(error)}"
            ) from error

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Yield the connection of one transaction; it is committed at the end, or rolled back by an exception.

        Raises: DiskFull or StoreError if the database fails; it is then unchanged.
        """
        with _errors(), self._writer.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Yield a connection on which each statement sees the latest commits. Raises: StoreError if it fails."""
        with _errors(), self._reader.connect() as connection:
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self._writer.dispose()
        self._reader.dispose()


def _parse(url: str | sa.URL) -> sa.URL:
    parsed = sa.make_url(url)
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ConfigError(
            f"JOBS_URL={_without_password(url)!r} is not allowed; use sqlite:////path/jobs.db or postgresql://host/name"
        )
    if parsed.drivername == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError("JOBS_URL names no file; use sqlite:////path/jobs.db")
        _make_private(Path(str(parsed.database)))
    return parsed


def _make_private(path: Path) -> None:
    """Create the file of a database for this user alone. SQLite gives its own files beside it the same mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    private.make_file(path)
    for suffix in ("-wal", "-shm"):
        private.hide(path.with_name(path.name + suffix))


def _sqlite(url: sa.URL, connections: int, *, read_only: bool = False) -> sa.Engine:
    engine = sa.create_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=BUSY_SEC,
        hide_parameters=True,
        poolclass=sa.QueuePool,
        connect_args={"timeout": BUSY_SEC, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # stops the sqlite3 module from starting transactions
        mode = _RETRY_LOCKED(
            lambda: connection.execute(f"PRAGMA journal_mode{'' if read_only else '=WAL'}").fetchone()[0]
        )
        if mode != "wal":
            raise ConfigError(
                f"the file system of the job store does not support SQLite's WAL mode (journal mode {mode!r}). "
                "Use a local disk (DATA_DIR) or PostgreSQL (JOBS_URL)."
            )
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")
        connection.execute(f"PRAGMA query_only={'ON' if read_only else 'OFF'}")

    if not read_only:

        @event.listens_for(engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            connection.connection.cursor().execute("BEGIN IMMEDIATE")  # bypasses SQLAlchemy, because it is frequent

    return engine


# SQLite waits for locks, except when another process switches a new file to WAL mode at the same moment.
_RETRY_LOCKED = tenacity.Retrying(
    retry=tenacity.retry_if_exception_message(match=".*locked"),
    reraise=True,
    wait=tenacity.wait_random(0.01, 0.05),
    stop=tenacity.stop_after_delay(BUSY_SEC),
)


_DISK_FULL = "the disk of the job store is full, and nothing was changed; free some space and try again"


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Raise errors of the database as DiskFull or StoreError."""
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, sqlite3.OperationalError) as error:
        if _is_full(error):
            raise DiskFull(_DISK_FULL) from error
        raise StoreError(f"the job store is unavailable: {_reason(error)}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(_DISK_FULL) from error


def _is_full(error: Exception) -> bool:
    cause = getattr(error, "orig", error)
    return (
        "database or disk is full" in str(cause)
        or getattr(cause, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_WRITE")
        or getattr(cause, "sqlstate", "") == "53100"
    )


def _reason(error: BaseException) -> str:
    """Return the driver's message on one line."""
    if isinstance(error, ImportError):
        return "PostgreSQL requires psycopg: pip install 'psycopg[binary]'"
    return (str(getattr(error, "orig", None) or error).strip() or type(error).__name__).splitlines()[0]


def _without_password(url: str | sa.URL) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except exc.ArgumentError:
        return "…"
