"""One engine behind the Runpod handler and the HTTP application, and the checks between cases."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from tools.fuzz import inputs
from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.http.app import create_app
from worker.entrypoints.runpod import RunpodWorker

SPARE_DESCRIPTORS = 24  # connections to the job store, decoding processes and event loops that begin during the run


class Fault(Exception):
    """A promise that a case has shown to be broken."""


@dataclass
class Session:
    """What the cases of a run use.

    folder: a folder that payloads may name. data_dir, temporary: where the worker may keep files while it works.
    """

    settings: Settings
    worker: RunpodWorker
    client: httpx.AsyncClient
    folder: Path
    data_dir: Path
    temporary: Path
    files: Sequence[bytes]
    descriptors: int | None = None

    def remember(self) -> None:
        """Note how many descriptors are open, once everything that stays open has begun."""
        self.descriptors = _open_descriptors()

    def check(self) -> None:
        """Raise Fault if the cases so far have left files behind or hold descriptors."""
        left = [path for path in _files(self.temporary) + _files(self.data_dir) if not path.name.startswith("jobs.db")]
        if left:
            raise Fault(f"files are left: {', '.join(str(path) for path in left[:5])}")
        more = 0 if self.descriptors is None else _open_descriptors() - self.descriptors
        if more > SPARE_DESCRIPTORS:
            raise Fault(f"{more} more descriptors are open than at the beginning")


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Session]:
    """Yield a session. Raise Fault at its end if a process is left."""
    before = _children()
    former = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="aviary-fuzz-") as name:
        folder, data_dir, temporary = (Path(name, part) for part in ("inputs", "data", "tmp"))
        for path in (folder, data_dir, temporary):
            path.mkdir(mode=0o700)
        settings = Settings(
            skip_model_load=True,
            data_dir=data_dir,
            allowed_paths=(folder, inputs.INTACT.parent),
            decode_workers=2,
            decode_timeout_sec=60,
            max_audio_sec=120,
            max_inputs=100,
            log_level="ERROR",
        )
        tempfile.tempdir = str(temporary)
        try:
            with Engine(settings) as engine:
                app = create_app(settings, engine)
                transport = httpx.ASGITransport(app=app)
                async with (
                    app.router.lifespan_context(app),
                    httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", timeout=600) as client,
                ):
                    worker = RunpodWorker(settings, engine)
                    files = await asyncio.to_thread(inputs.audio_files)
                    yield Session(settings, worker, client, folder, data_dir, temporary, files)
        finally:
            tempfile.tempdir = former
    if left := _children() - before:
        raise Fault(f"processes are left: {sorted(left)}")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _open_descriptors() -> int:
    """Return the number of open descriptors; 0 on a system that does not list them."""
    listed = Path("/proc/self/fd")
    return len(list(listed.iterdir())) if listed.is_dir() else 0


def _children() -> set[int]:
    """Return the process ids of this process's children; none on a system that does not list them."""
    lists = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(child) for path in lists for child in path.read_text().split()}
