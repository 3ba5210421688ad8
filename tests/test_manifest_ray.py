"""Manifests on a Ray cluster: what the plain engine writes, whoever is killed. Real Ray, two dry-run engines on this
machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import Future
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import tone
from ray_host import ROOT, cluster, gone, processes, ray

import worker.manifest.ray
from worker import errors
from worker.config import Settings
from worker.engine.engine import Engine
from worker.manifest import on_ray, process, with_engine

pytestmark = pytest.mark.slow

WEEK = str((ROOT / "samples/week.wav").resolve())


@pytest.fixture(scope="module")
def address():
    with cluster() as address:
        yield address


@pytest.fixture
def options(tmp_path) -> Settings:
    return Settings(skip_model_load=True, data_dir=tmp_path / "data", batch_wait_sec=0, decode_workers=1)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def write(path: Path, count: int) -> Path:
    """Clips of five lengths, in turn, by paths relative to the manifest; line 7 has no file, line 8 is a segment, 9 is
    broken."""
    for n in range(5):
        tone(path.parent / f"{n}.wav", 0.1 * (n + 1))
    lines = [json.dumps({"audio_filepath": f"{n % 5}.wav", "n": n}) for n in range(count)]
    lines[7:10] = [
        json.dumps({"path": "none.wav", "n": 7}),
        json.dumps({"path": WEEK, "offset": 0.5, "n": 8}),
        "{broken",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def strangers_reach(those: set[psutil.Process]) -> set[str]:
    """The addresses they listen on that are not loopback."""
    found = {one.laddr.ip for process in those for one in process.net_connections() if one.status == psutil.CONN_LISTEN}
    assert found
    return {ip for ip in found if not ip_address(ip.removeprefix("::ffff:")).is_loopback}


def plain(manifest: Path, output: Path, options: Settings, task="transcribe") -> bytes:
    with Engine(options) as engine:
        process(manifest, output, with_engine(engine, task))
    return output.read_bytes()


def test_it_writes_what_the_plain_engine_writes(address, tmp_path, options, monkeypatch):
    manifest = write(tmp_path / "m.jsonl", 300)
    monkeypatch.chdir(tmp_path)
    with on_ray(options, "transcribe", engines=2, each=8) as ask:
        assert ask.concurrency == 16
        summary = process("m.jsonl", tmp_path / "out.jsonl", ask, concurrency=ask.concurrency)
    assert summary.errors == {"source_not_found": 1, "invalid_input": 1}
    assert (tmp_path / "out.jsonl").read_bytes() == plain(manifest, tmp_path / "plain.jsonl", options)
    gone(processes("ray::EngineActor"))


def test_embeddings_come_back_and_are_written_here(address, tmp_path, options):
    manifest = write(tmp_path / "m.jsonl", 12)
    with on_ray(options, "analyze", engines=1) as ask:
        process(manifest, tmp_path / "out.jsonl", ask, concurrency=ask.concurrency)
    plain(manifest, tmp_path / "plain.jsonl", options, "analyze")
    for row, other in zip(rows(tmp_path / "out.jsonl"), rows(tmp_path / "plain.jsonl"), strict=True):
        assert row.get("caption") == other.get("caption")
        if "embedding_path" in other:
            np.testing.assert_array_equal(
                np.load(tmp_path / row["embedding_path"]), np.load(tmp_path / other["embedding_path"])
            )


def test_an_engine_that_is_killed_is_replaced_and_no_line_is_lost(address, tmp_path, options):
    manifest = write(tmp_path / "m.jsonl", 300)
    killed, seen = [], set()

    def kill(summary) -> None:
        if not killed and 0 < summary.lines < 300:
            killed.append(sorted(processes("ray::EngineActor"), key=lambda one: one.pid)[0])
            killed[0].kill()

    with on_ray(options, "transcribe", engines=2, each=8) as ask:

        def watched(line):
            answer = ask(line)
            until = time.monotonic() + 60
            while killed and len(seen - {killed[0].pid}) < 2 and time.monotonic() < until:
                time.sleep(0.02)  # lines are left for the replacement
                seen.update(one.pid for one in processes("ray::EngineActor"))
            return answer

        process(manifest, tmp_path / "out.jsonl", watched, concurrency=ask.concurrency, progress=kill)
    assert killed
    assert len(seen - {killed[0].pid}) == 2, "the other, and the one that came"
    assert (tmp_path / "out.jsonl").read_bytes() == plain(manifest, tmp_path / "plain.jsonl", options)


def test_killed_twice_the_run_ends_complete(address, tmp_path, options):
    """At first on a cluster of its own, which nobody beyond this machine reaches, and which goes with it."""
    manifest, output = write(tmp_path / "m.jsonl", 600), tmp_path / "out/m.transcribe.jsonl"
    typed = [
        sys.executable,
        "-m",
        "worker",
        "manifest",
        manifest,
        "--output",
        output.parent,
        "--engines=2",
        "--concurrency=8",
    ]
    env = os.environ | {
        "SKIP_MODEL_LOAD": "1",
        "DATA_DIR": str(options.data_dir),
        "DECODE_WORKERS": "1",
        "PYTHONPATH": str(ROOT),
    }
    shared = processes()
    for killed, where in enumerate((["--ray"], ["--ray", address], ["--ray", address])):
        done = size(output)
        with (tmp_path / "stderr").open("w+") as stderr:
            child = subprocess.Popen([*typed, *where], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            if killed == 2:
                assert child.wait(60) == 1, "line 7 has no file, line 9 is broken"
                break
            while child.poll() is None and size(output) == done:
                time.sleep(0.005)
            assert child.poll() is None, (tmp_path / "stderr").read_text()
            if killed == 0:
                assert not strangers_reach(processes() - shared)
        finally:
            agents, own = processes("ray::RuntimeEnvAgent") | processes("ray::DashboardAgent"), processes() - shared
            child.kill()
            child.wait()
            gone(own - agents)
            for one in agents - shared:  # they would go within a minute
                one.kill()
    assert output.read_bytes() == plain(manifest, tmp_path / "plain.jsonl", options)


def test_what_is_no_lines_fault_ends_the_run(address, tmp_path, options):
    manifest = write(tmp_path / "m.jsonl", 20)
    for values, fields, error in (
        ({"model": "nobody"}, {}, errors.ModelNotFound),
        ({"model": "missing.nemo", "skip_model_load": False}, {}, errors.ModelUnavailable),
        ({}, {"model": "parakeet", "prompt": "what?"}, errors.Unsupported),
    ):
        with (
            on_ray(Settings(**options.model_dump() | values), "transcribe", engines=1, **fields) as ask,
            pytest.raises(error),
        ):
            process(manifest, tmp_path / "out.jsonl", ask, concurrency=ask.concurrency)
    assert rows(tmp_path / "out.jsonl") == []


def test_an_engine_that_ray_is_restarting_is_called_again(monkeypatch):
    class Restarting:
        """Stands for an actor whose first calls fail at once, as on a machine that has much to do."""

        def __init__(self) -> None:
            self.load, self.calls = self, 0

        def options(self, **_options: int) -> Restarting:
            return self

        remote = options

        def future(self) -> Future:
            self.calls += 1
            future: Future = Future()
            if self.calls < 9:
                future.set_exception(ray.exceptions.ActorUnavailableError("it is restarting", None))
            else:
                future.set_result(None)
            return future

    monkeypatch.setattr(worker.manifest.ray, "RESTART_SEC", 0.01)
    actor = Restarting()
    made = worker.manifest.ray.Cluster([actor], 2)
    assert [made._free.get(timeout=10) for _ in range(2)] == [actor, actor]
    assert actor.calls == 9


def test_an_engine_that_has_lost_its_device_ends_its_process():
    lost = """
from worker.errors import DeviceLost
from worker.manifest.ray import EngineActor
engine = EngineActor({"skip_model_load": True}, "transcribe", {})
def ask(line): raise DeviceLost("gone")
engine._ask = ask
engine.ask(None)
"""
    ended = subprocess.run(
        [sys.executable, "-c", lost], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "the engine lost its device; Ray replaces the engine" in ended.stderr
