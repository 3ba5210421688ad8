"""Ray Serve: two dry-run replicas on this machine, one of them killed. Real Ray, where it is installed."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from ray_host import ROOT, cluster, processes

from worker.entrypoints import ray_serve

pytestmark = pytest.mark.slow

WEEK = (ROOT / "samples/week.wav").read_bytes()
TRIES = 5


@pytest.fixture
def served(tmp_path, monkeypatch):
    from ray import serve

    for name, value in {"SKIP_MODEL_LOAD": "1", "DATA_DIR": str(tmp_path), "DECODE_WORKERS": "1"}.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with cluster():
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(ray_serve.app({"min_replicas": 2, "max_replicas": 2, "gpus": 0, "cpus": 0.5}), route_prefix="/")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()


def test_two_replicas_answer_and_one_that_is_killed_is_replaced(served):
    client = httpx.Client(base_url=served, timeout=60)

    def tries(_: int) -> int:
        """How often a clip is sent until its answer is there: what was in a replica that died fails, and nothing else
        does."""
        for tried in range(1, TRIES + 1):
            answer = client.post("/v1/audio/transcriptions", files={"file": WEEK}, data={"model": "parakeet"})
            if answer.status_code == 200:
                assert answer.json()["text"] == "[dry-run] transcribe of 1.27 s"
                return tried
            assert answer.status_code == 500
            time.sleep(0.2)
        return TRIES + 1

    with client, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tries, range(40))) == [1] * 40
        first = processes("ServeReplica")
        assert len(first) == 2
        under_way = [pool.submit(tries, number) for number in range(40)]
        victim = min(first, key=lambda one: one.pid)
        victim.kill()
        assert max(one.result() for one in under_way) <= TRIES
        deadline = time.monotonic() + 60
        while not processes("ServeReplica") - first:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert list(pool.map(tries, range(10))) == [1] * 10
        assert client.get("/health").json()["status"] == "healthy"
        unknown = {"model": "nobody/x", "audio": "week.wav"}
        assert client.post("/v1/audio/transcriptions", json=unknown).status_code == 404
