"""Empty job stores for the tests, on SQLite and on a PostgreSQL server of the tests' own."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import sqlalchemy as sa

schemas = itertools.count()


def _as_postgres(*command: str) -> None:
    prefix = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    subprocess.run(
        [*prefix, *command],
        check=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )


def postgres_tools() -> Path:
    """Return the folder of initdb: Debian keeps the programs of each version in a folder of its own, others on PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = versions[-1] if versions else shutil.which("initdb")
    if initdb is None:
        pytest.skip("PostgreSQL is not installed")
    return Path(initdb).resolve().parent


@pytest.fixture(scope="session")
def postgres():
    """A private server on a unix socket; gives a function that makes the URL of an empty schema."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    tools, folder = postgres_tools(), Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
        _as_postgres(
            str(tools / "initdb"), "-D", f"{folder}/data", "-U", "aviary", "-A", "trust", "-E", "UTF8", "--no-sync"
        )
        _as_postgres(
            str(tools / "pg_ctl"),
            "-D",
            f"{folder}/data",
            "-w",
            "-l",
            f"{folder}/log",
            "-o",
            f"-k {folder} -c listen_addresses= -c fsync=off",
            "start",
        )
        try:
            address = f"postgresql+psycopg://aviary@/postgres?host={folder}"
            server = sa.create_engine(address, pool_pre_ping=True)  # a test ends all connections

            def fresh() -> str:
                name = f"s{next(schemas)}"
                with server.begin() as connection:
                    connection.execute(sa.text(f"CREATE SCHEMA {name}"))
                return f"postgresql://aviary@/postgres?host={folder}&options=-csearch_path%3D{name}"

            yield fresh
            server.dispose()
        finally:
            _as_postgres(str(tools / "pg_ctl"), "-D", f"{folder}/data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def fresh(request, tmp_path):
    """Makes the URL of an empty store."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres")
    return lambda: f"sqlite:///{tmp_path}/{next(schemas)}.db"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()
