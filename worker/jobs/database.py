"""A database by its URL: transactions to write in, connections to read on, and its errors as ours.

SQLite runs in WAL mode with synchronous=NORMAL: what is committed survives kill -9 of any process; a loss of power may
lose the last moments, but leaves the file sound. A process writes on one connection, whose pool is the queue of its
writers, and
begins with BEGIN IMMEDIATE, so that processes take turns instead of failing halfway. Readers have connections of their
own and wait for nobody. PostgreSQL is reached through psycopg.

Raises ConfigError for a URL that does not work; later DiskFull, or StoreError for anything else that the database
cannot do at present. Neither shows statements, values or passwords.
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

from worker.errors import ConfigError, DiskFull, StoreError
from worker.jobs.schema import migrate

BUSY_SEC = 30.0
_READERS = 16
_WAL_BYTES = 64 * 1024**2  # what the log is cut back to after a burst


class Database:
    """Opens the database, makes it where there is none, and migrates it. Thread-safe."""

    def __init__(self, url: str | sa.URL) -> None:
        try:
            parsed = _parsed(url)
            sqlite = parsed.get_backend_name() == "sqlite"
            self._writer = (
                _sqlite(parsed, 1) if sqlite else sa.create_engine(parsed, pool_pre_ping=True, hide_parameters=True)
            )
            self._reader = (
                _sqlite(parsed, _READERS, read_only=True)
                if sqlite
                else sa.create_engine(parsed, pool_pre_ping=True, hide_parameters=True, isolation_level="AUTOCOMMIT")
            )
            with _translated():
                migrate(self._writer)
        except (exc.SQLAlchemyError, StoreError, OSError, ImportError) as error:
            raise ConfigError(f"JOBS_URL={_shown(url)!r}: the job store cannot be opened: {_reason(error)}") from error

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction: committed at the end, undone by an exception."""
        with _translated(), self._writer.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection on which each statement sees what is committed."""
        with _translated(), self._reader.connect() as connection:
            yield connection

    def close(self) -> None:
        self._writer.dispose()
        self._reader.dispose()


def _parsed(url: str | sa.URL) -> sa.URL:
    parsed = sa.make_url(url)
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ConfigError(
            f"JOBS_URL={_shown(url)!r} is not allowed: use sqlite:////path/jobs.db or postgresql://host/name"
        )
    if parsed.drivername == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError("JOBS_URL names no file: use sqlite:////path/jobs.db")
        Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
    return parsed


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
        connection.isolation_level = None  # sqlite3 begins no transactions of its own
        mode = _PATIENTLY(lambda: connection.execute(f"PRAGMA journal_mode{'' if read_only else '=WAL'}").fetchone()[0])
        if mode != "wal":
            raise ConfigError(
                f"the job store's file system cannot hold it (journal mode {mode!r} in place of WAL): "
                "use a local disk (DATA_DIR), or PostgreSQL (JOBS_URL)"
            )
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")
        connection.execute(f"PRAGMA query_only={'ON' if read_only else 'OFF'}")

    if not read_only:

        @event.listens_for(engine, "begin")
        def _begin(connection: sa.Connection) -> None:
            connection.connection.cursor().execute("BEGIN IMMEDIATE")  # past SQLAlchemy: it is said very often

    return engine


# SQLite waits for a lock, but not for others who turn a new file to WAL at the same moment.
_PATIENTLY = tenacity.Retrying(
    retry=tenacity.retry_if_exception_message(match=".*locked"),
    reraise=True,
    wait=tenacity.wait_random(0.01, 0.05),
    stop=tenacity.stop_after_delay(BUSY_SEC),
)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, sqlite3.OperationalError) as error:
        if _is_full(error):
            raise DiskFull(
                "the disk that holds the jobs is full: nothing was changed; try again when there is room"
            ) from error
        raise StoreError(f"the job store cannot be used at present: {_reason(error)}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            "the disk that holds the jobs is full: nothing was changed; try again when there is room"
        ) from error


def _is_full(error: Exception) -> bool:
    cause = getattr(error, "orig", error)
    return (
        "database or disk is full" in str(cause)
        or getattr(cause, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_WRITE")
        or getattr(cause, "sqlstate", "") == "53100"
    )


def _reason(error: BaseException) -> str:
    """What the driver says, in one line."""
    if isinstance(error, ImportError):
        return "PostgreSQL needs psycopg: pip install 'psycopg[binary]'"
    return (str(getattr(error, "orig", None) or error).strip() or type(error).__name__).splitlines()[0]


def _shown(url: str | sa.URL) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except exc.ArgumentError:
        return "…"
