"""A Ray cluster of this machine, on two cores: loopback alone, no dashboard, nothing told to anybody, its keys in no
home."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from worker.config import keep_ray_here

ROOT = Path(__file__).parent.parent
keep_ray_here()
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-dev.txt")


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Its address; this process is connected to it. No process of it is left afterwards."""
    before = processes()
    context = ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="WARNING",
        object_store_memory=100 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    try:
        yield context.address_info["address"]
    finally:
        ray.shutdown()
        gone(processes() - before)


def processes(name: str = "") -> set[psutil.Process]:
    """What this process has started, and what that has; of those, the ones whose command has the name."""
    found = set()
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if name in " ".join(one.cmdline()):
                found.add(one)
    return found


def gone(those: set[psutil.Process]) -> None:
    _, left = psutil.wait_procs(those, timeout=20)
    assert not left
