"""What several workers are made of: nginx's configuration, sums of numbers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import PlainTextResponse

from worker.config import Settings
from worker.engine import placement
from worker.entrypoints.http import sockets, wrong_keys
from worker.entrypoints.http.auth import AuthMiddleware
from worker.entrypoints.http.gateway import aggregate, control, nginx, supervisor, worker_process
from worker.errors import ConfigError

ROOT = Path(__file__).parent.parent


# nginx


@pytest.mark.skipif(nginx.find() is None, reason="nginx is not installed")
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"api_key": "k", "host": "0.0.0.0"},
        {"rate_limit": "5/hour", "host": "::1"},
        {"api_key": "off", "request_timeout_sec": 0.5},
        {"audio_score_server_socket": "/tmp/aviary-test.sock"},
    ],
)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_nginx_takes_what_is_written_for_it(tmp_path, values, count):
    text = nginx.configuration(Settings(port=18999, **values), tmp_path, [tmp_path / f"{i}-1" for i in range(count)])
    (tmp_path / "nginx.conf").write_text(text)
    tried = subprocess.run(
        [nginx.find(), "-t", "-p", tmp_path, "-c", tmp_path / "nginx.conf"], capture_output=True, text=True, check=False
    )
    assert tried.returncode == 0, tried.stderr
    assert ("auth_request" in text) == (values.get("api_key") == "k" or "rate_limit" in values)


@pytest.mark.skipif(nginx.find() is None, reason="nginx is not installed")
def test_nginx_takes_any_folder(tmp_path):
    folder = tmp_path / 'my "data"; {a\\b} #1'
    folder.mkdir()
    (folder / "nginx.conf").write_text(nginx.configuration(Settings(port=18999), folder, [folder / "0-1"]))
    tried = subprocess.run(
        [nginx.find(), "-t", "-p", folder, "-c", folder / "nginx.conf"], capture_output=True, text=True, check=False
    )
    assert tried.returncode == 0, tried.stderr


def test_before_there_is_a_worker_clients_are_told_to_come_again(tmp_path):
    none, one = (nginx.configuration(Settings(), tmp_path, sockets) for sockets in ([], [tmp_path / "0-1"]))
    assert "=503 /-/error/502" in none
    assert "Retry-After 1" in none
    assert "model_loading" in none
    assert "=502 /-/error/502" in one
    assert "model_loading" not in one


def test_a_socket_that_was_left_is_taken_and_one_that_is_served_is_not(tmp_path):
    path = tmp_path / "scores.sock"
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(path))
        served.listen()
        with pytest.raises(ConfigError, match="another server"):
            sockets.claim(path)
        with pytest.raises(ConfigError, match="another server"):
            supervisor.run(Settings(audio_score_server_socket=path, data_dir=tmp_path), [], Path("nginx"))
    sockets.claim(path)
    assert not path.exists()
    sockets.claim(path)
    with pytest.raises(ConfigError, match="cannot serve on"):
        sockets.claim(tmp_path / ("d" * 120))


async def until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def supervised(settings: Settings, folder: Path):
    """A supervisor in this process, with one worker and no nginx."""
    made = supervisor.Supervisor(settings, placement.place(settings, 1, [], [0]), folder, None)
    running = asyncio.create_task(made.run())
    try:
        yield made, made._workers[0]
    finally:
        made._end.set()
        await running


def free_port() -> int:
    with sockets.bind_shared("127.0.0.1", 0) as bound:
        return bound.getsockname()[1]


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_process, "ASK_SEC", 0.3)
    monkeypatch.setattr(worker_process, "HUNG_SEC", 4)
    monkeypatch.setattr(worker_process, "HUNG_LOADING_SEC", 60)

    async def hang() -> None:
        settings = Settings(skip_model_load=True, data_dir=tmp_path, port=free_port())
        async with supervised(settings, tmp_path) as (_, worker):
            await until(lambda: worker.ready, 60)
            before, seen = worker.pid, set()
            os.kill(before, signal.SIGSTOP)
            await until(lambda: seen.add(worker.state) or (worker.pid != before and worker.ready), 60)
            assert "unhealthy" in seen  # so nobody was sent to it meanwhile
            assert worker.starts == 2

    asyncio.run(hang())


@pytest.mark.slow
def test_a_worker_that_cannot_load_tries_again(tmp_path):
    async def load() -> None:
        model = tmp_path / "digits.nemo"
        settings = Settings(model=str(model), data_dir=tmp_path, port=free_port())
        async with supervised(settings, tmp_path) as (_, worker):
            await until(lambda: worker.starts == 2, 120)
            shutil.copy(ROOT / "tests" / "fixtures" / "parakeet-digits.nemo", model)
            await until(lambda: worker.ready, 180)

    asyncio.run(load())


def test_limits_and_times_are_the_settings(tmp_path):
    text = nginx.configuration(
        Settings(max_audio_bytes=1000, max_json_bytes=5_000_000, request_timeout_sec=7), tmp_path, []
    )
    assert "client_max_body_size 5000000;" in text
    assert "proxy_read_timeout 37000ms;" in text
    assert "proxy_next_upstream_timeout 7000ms;" in text
    assert "proxy_buffering off;" in text


def test_a_folder_too_deep_for_sockets_is_said(tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(ConfigError, match="too long a path"):
        supervisor.run(Settings(data_dir=deep), [], None)
    assert not list(deep.iterdir())


@pytest.fixture
def asked(tmp_path):
    """A client of a supervisor's own server that has no workers yet."""
    settings = Settings(api_key="k", rate_limit="2/minute")
    with (
        control.serving(control.Control(settings, []), tmp_path / "control"),
        httpx.Client(base_url="http://control", transport=httpx.HTTPTransport(uds=str(tmp_path / "control"))) as client,
    ):
        yield client


def test_the_gate_counts_keys_and_lets_questions_pass(asked):
    key = {"Authorization": "Bearer k"}
    assert asked.post("/gate/v1/models").status_code == 401
    assert asked.options("/gate/v1/models").status_code == 204
    assert asked.get("/gate/health").status_code == 204
    assert [asked.post("/gate/v1/x?a=b", headers=key).status_code for _ in range(3)] == [204, 204, 403]
    assert int(asked.post("/gate/v1/x", headers=key).headers["retry-after"]) > 0
    assert [asked.get("/gate/v1/x", headers=key).status_code for _ in range(3)] == [204, 204, 204]


def test_without_keys_an_address_is_counted_as_nginx_says_it(tmp_path):
    with (
        control.serving(control.Control(Settings(rate_limit="1/minute"), []), tmp_path / "control"),
        httpx.Client(base_url="http://control", transport=httpx.HTTPTransport(uds=str(tmp_path / "control"))) as client,
    ):
        told = [
            client.post("/gate/v1/x", headers={"X-Forwarded-For": who}).status_code
            for who in ("1.2.3.4", "5.6.7.8", "1.2.3.4")
        ]
    assert told == [204, 204, 403]
    text = nginx.configuration(Settings(rate_limit="1/minute"), tmp_path, [])
    assert text.count("proxy_set_header X-Forwarded-For $remote_addr;") == text.count("X-Forwarded-For") == 3


def test_the_gate_limits_wrong_keys_by_address(asked):
    def status(key: str, address: str) -> int:
        return asked.get(
            "/gate/v1/x", headers={"Authorization": f"Bearer {key}", "X-Forwarded-For": address}
        ).status_code

    assert {status("wrong", "10.0.0.1") for _ in range(wrong_keys.MOST)} == {401}
    assert status("k", "10.0.0.1") == 403
    assert status("k", "10.0.0.2") == 204


def test_the_key_with_which_workers_are_asked_may_have_any_letters(tmp_path):
    settings = Settings(api_key="ключ")
    worker = worker_process.Worker(0, placement.place(settings, 1, [], [0])[0], tmp_path)
    worker.state = "ready"
    numbers = PlainTextResponse("# TYPE counted_total counter\ncounted_total 5\n")
    with (
        control.serving(AuthMiddleware(numbers, settings), worker.socket),
        control.serving(control.Control(settings, [worker]), tmp_path / "control"),
        httpx.Client(base_url="http://control", transport=httpx.HTTPTransport(uds=str(tmp_path / "control"))) as client,
    ):
        answer = client.get("/metrics", headers=[(b"authorization", "Bearer ключ".encode())])
    assert read(answer.text)["counted_total",] == 5


def test_numbers_need_the_key_and_are_there_before_any_worker(asked):
    assert asked.get("/metrics").status_code == asked.get("/stats").status_code == 401
    key = {"Authorization": "Bearer k"}
    assert read(asked.get("/metrics", headers=key).text)["aviary_workers", ("state", "ready")] == 0
    early = asked.get("/stats", headers=key)
    assert early.status_code == 503
    assert early.json()["error"]["code"] == "model_loading"


def test_a_worker_that_is_replaced_while_it_is_asked_counts_once(tmp_path):
    class Replaced(worker_process.Worker):
        texts = iter([b"counted_total 5\n", b"counted_total 5\n", b"counted_total 1\n"])

        def ask(self, path, headers=None, wait_sec=10):
            text = next(self.texts)
            if self.asked == 2:
                self.starts += 1
            self.asked += 1
            return 200, b"# TYPE counted_total counter\n" + text

    worker = Replaced(0, placement.place(Settings(), 1, [], [0])[0], tmp_path)
    worker.state, worker.starts, worker.asked = "ready", 1, 1
    with (
        control.serving(control.Control(Settings(), [worker]), tmp_path / "control"),
        httpx.Client(base_url="http://control", transport=httpx.HTTPTransport(uds=str(tmp_path / "control"))) as client,
    ):
        told = [read(client.get("/metrics").text)["counted_total",] for _ in range(3)]
    assert told == [5, 5, 6]


def test_a_rolling_restart_leaves_one_that_serves(tmp_path):
    class Quick(worker_process.Worker):
        async def stop(self, *, patiently=False):
            assert patiently
            self.starts, self.state = self.starts + 1, "ready"

        def leave(self):
            served.append(self.state != "ready" or any(one.ready for one in workers if one is not self))
            return super().leave()

    served: list[bool] = []
    taken = placement.place(Settings(), 3, [], [0])
    workers = [Quick(number, seat, tmp_path) for number, seat in enumerate(taken)]
    for worker, state in zip(workers, ("ready", "loading", "unhealthy"), strict=True):
        worker.state, worker.starts = state, 1
    told = supervisor.Supervisor(Settings(), [], tmp_path, None)
    told._workers = workers
    asyncio.run(told._roll())
    assert [worker.starts for worker in workers] == [2, 2, 2]
    assert served == [True, True, True]


@pytest.mark.slow
def test_one_worker_serves_on_a_unix_socket(tmp_path):
    path = tmp_path / "scores.sock"
    values = {
        "SKIP_MODEL_LOAD": "1",
        "AUDIO_SCORE_SERVER_SOCKET": str(path),
        "DATA_DIR": str(tmp_path),
        "HOST": "0.0.0.0",
    }
    process = subprocess.Popen([sys.executable, "-m", "worker", "serve"], cwd=ROOT, env=os.environ | values)
    try:
        deadline = time.monotonic() + 30
        while not path.is_socket() and time.monotonic() < deadline:
            time.sleep(0.05)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path), retries=5), base_url="http://socket") as client:
            assert client.get("/health").status_code == 200
            second = subprocess.run(
                [sys.executable, "-m", "worker", "serve"],
                cwd=ROOT,
                env=os.environ | values,
                timeout=60,
                capture_output=True,
                text=True,
                check=False,
            )
            assert second.returncode != 0
            assert "another server is listening on" in second.stderr
            assert client.get("/health").status_code == 200
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://socket") as client:
            assert client.get("/health").status_code == 200, "its socket is still there"
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert not path.exists()


# Sums


def worker_text(requests: dict[str, int], sizes: list[float], waiting: float) -> str:
    registry = CollectorRegistry()
    counter = Counter("aviary_requests", "Requests", ["route"], registry=registry)
    for route, count in requests.items():
        counter.labels(route).inc(count)
    histogram = Histogram("aviary_sizes", "Sizes", buckets=(1, 4, 16), registry=registry)
    for size in sizes:
        histogram.observe(size)
    Gauge("aviary_waiting", "Waiting", registry=registry).set(waiting)
    return generate_latest(registry).decode()


workers = st.builds(
    worker_text,
    st.dictionaries(st.sampled_from(["/a", "/b", 'with "quotes"\n']), st.integers(0, 9)),
    st.lists(st.integers(0, 20).map(float)),
    st.integers(0, 5),
)


def read(text: str) -> dict[tuple, float]:
    return {
        (one.name, *sorted(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def summed(totals: aggregate.Totals) -> dict[tuple, float]:
    registry = CollectorRegistry()
    registry.register(totals)
    return read(generate_latest(registry).decode())


@given(st.lists(workers, min_size=1, max_size=4))
def test_every_series_is_the_sum_of_the_workers(texts):
    totals = aggregate.Totals()
    totals.add({str(i): text for i, text in enumerate(texts)}, [str(i) for i in range(len(texts))])
    found = summed(totals)
    expected: dict[tuple, float] = {}
    for text in texts:
        for key, value in read(text).items():
            expected[key] = expected.get(key, 0) + value
    assert found == expected


@given(workers, workers)
def test_what_a_process_has_counted_outlives_it_and_what_it_held_does_not(old, new):
    totals = aggregate.Totals()
    totals.add({"0-1": old}, ["0-1"])
    totals.add({}, ["0-1"])
    assert summed(totals) == read(old), "busy, but there"
    totals.add({"0-2": new}, ["0-2"])
    found = summed(totals)
    for key, value in found.items():
        assert value == read(new).get(key, 0) + (read(old).get(key, 0) if key[0] != "aviary_waiting" else 0)


def stats(requests: int, busy: float, rtfx: float | None, padding: float | None, models: dict[str, str]) -> dict:
    return {
        "uptime_sec": float(requests),
        "requests": requests,
        "audio_sec": 1.5,
        "inputs": {"answered": requests, "failed": {"decode_failed": 1} if requests > 5 else {}, "in_flight": 1},
        "batches": {"count": requests, "device_busy_sec": busy, "rtfx": rtfx, "padding_share": padding},
        "models": models,
    }


def test_stats_add_up_and_rates_are_of_all_device_seconds():
    whole = aggregate.add_stats(
        [
            stats(4, 1.0, 100.0, 0.5, {"a": "ready"}),
            stats(6, 3.0, 20.0, 0.0, {"a": "loading", "b": "failed"}),
            stats(0, 0.0, None, None, {}),
        ]
    )
    assert whole["requests"] == 10
    assert whole["uptime_sec"] == 6.0
    assert whole["audio_sec"] == 4.5
    assert whole["inputs"] == {"answered": 10, "failed": {"decode_failed": 1}, "in_flight": 3}
    assert whole["batches"] == {"count": 10, "device_busy_sec": 4.0, "rtfx": 40.0, "padding_share": round(100 / 260, 4)}
    assert whole["models"] == {"a": "ready", "b": "failed"}
