"""Ray Serve, where it is installed: two dry-run replicas on this machine, one of them killed."""
from __future__ import annotations

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

ROOT = Path(__file__).parent.parent
ray = pytest.importorskip("ray", reason="ray[serve] is not installed")


@pytest.fixture
def served(tmp_path, monkeypatch):
    from ray import serve

    from worker import cluster

    for name, value in {"SKIP_MODEL_LOAD": "1", "DATA_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,
             runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(cluster.app({"min_replicas": 2, "max_replicas": 2, "gpus": 0, "cpus": 0.5}), route_prefix="/")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def replicas() -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "ServeReplica" in " ".join(one.cmdline()):
                found.append(one)
    return found


def test_two_replicas_answer_and_one_that_is_killed_is_replaced(served):
    week = (ROOT / "samples" / "week.wav").read_bytes()
    client = httpx.Client(base_url=served, timeout=60)

    def hear(_: int) -> int:
        return client.post("/v1/audio/transcriptions", files={"file": week}, data={"model": "parakeet"}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(hear, range(40))) == {200}
        victim, other = replicas()
        victim.kill()
        statuses = list(pool.map(hear, range(40)))
        assert statuses.count(200) >= 30
        deadline = time.monotonic() + 90
        while len({one.pid for one in replicas()} - {victim.pid, other.pid}) < 1:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert set(pool.map(hear, range(10))) == {200}
    assert client.get("/health").json()["status"] == "healthy"
    assert httpx.post(f"{served}/v1/audio/transcriptions", json={"model": "nobody/x"}).status_code == 404
