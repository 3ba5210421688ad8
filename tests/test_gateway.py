"""Several workers behind a real nginx: work is spread, nothing is lost when one dies or is replaced, nothing is left
behind."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from gateway_host import ROOT, WEEK, WITHOUT_NGINX, Host, gone, holding, hosting
from prometheus_client.parser import text_string_to_metric_families

from worker.config import Settings
from worker.engine.placement import Placement
from worker.entrypoints.http.gateway import nginx, supervisor
from worker.entrypoints.http.gateway.worker_process import ask

pytestmark = pytest.mark.slow

needs_nginx = pytest.mark.skipif(nginx.find() is None, reason="nginx is not installed")


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    if nginx.find() is None:
        pytest.skip("nginx is not installed")
    with hosting(tmp_path_factory.mktemp("gw"), MAX_AUDIO_BYTES="300000", MAX_JSON_BYTES="300000") as running:
        yield running


def many(host: Host, count: int, at_once: int = 20) -> list[httpx.Response]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda _: host.transcribe(), range(count)))


def samples(text: str) -> dict[tuple, float]:
    return {
        (one.name, *sorted(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def in_flight(host: Host) -> list[int]:
    return [one["inputs"]["in_flight"] for one in host.own_stats()]


def test_work_goes_to_the_least_busy_and_the_sums_are_those_of_the_workers(host):
    host.settle()
    before = host.stats()["inputs"]["answered"]
    with ThreadPoolExecutor(3) as pool, holding() as (url, released):
        answers = []
        for number in range(1, 4):  # in turn, all that wait would be one worker's
            answers.append(pool.submit(host.ask_for, url))
            host.until(lambda number=number: sum(in_flight(host)) == number)
            assert {answer.status_code for answer in many(host, 2, 1)} == {200}
        assert in_flight(host) == [1, 1, 1]
        assert host.stats()["inputs"]["in_flight"] == 3
        released.set()
        assert {answer.result().json()["text"] for answer in answers} == {"[dry-run] transcribe of 1.27 s"}
    assert host.stats()["inputs"]["answered"] == before + 9
    whole = host.stats()
    assert whole["inputs"]["answered"] == sum(one["inputs"]["answered"] for one in host.own_stats())
    assert whole["models"] == {"nvidia/parakeet-tdt-0.6b-v3": "ready"}

    total = samples(host.client.get("/metrics").text)
    parts = [samples(ask(path, "/metrics")[1].decode()) for path in sorted(host.folder.glob("[0-9]-*"))]
    assert len(parts) == 3
    stable = [key for key in total if key[0].startswith(("aviary_inputs_total", "aviary_batch", "aviary_model_state"))]
    assert len(stable) > 10
    for key in stable:
        assert total[key] == sum(part.get(key, 0) for part in parts), key
    assert total["aviary_workers", ("state", "ready")] == 3


def test_a_stream_and_openai_s_client_pass_through(host):
    client = openai.OpenAI(base_url=f"{host.url}/v1", api_key="none", max_retries=0)
    events = list(client.audio.transcriptions.create(file=WEEK, model="parakeet", stream=True))
    assert events[-1].type == "transcript.text.done"
    with pytest.raises(openai.NotFoundError, match="is not available here"):
        client.audio.transcriptions.create(file=WEEK, model="nobody/nothing")


def test_a_realtime_session_passes_through(host):
    async def run() -> str:
        client = openai.AsyncOpenAI(base_url=f"{host.url}/v1", api_key="none")
        async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            manual = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
            await connection.session.update(session=manual)
            await connection.input_audio_buffer.append(audio=base64.b64encode(bytes(48_000)).decode())
            await connection.input_audio_buffer.commit()
            async for event in connection:
                if event.type == "conversation.item.input_audio_transcription.completed":
                    return event.transcript
        return ""

    assert asyncio.run(run()) == "[dry-run] transcribe of 1.00 s"
    refused = httpx.get(f"{host.url}/v1/realtime")
    assert refused.status_code == 404


def test_an_offer_of_http_2_does_not_reach_the_worker(host):
    """Java's client offers HTTP/2 with each request. A worker that sees the offer loses the body of the request."""
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    sent = host.client.post("/v1/audio/transcriptions", files={"file": WEEK}, headers=offer)
    assert sent.status_code == 200


def test_what_nginx_itself_refuses_is_openai_s_error(host):
    large = host.client.post("/v1/audio/transcriptions", files={"file": b"x" * 3_000_000}, data={"model": "parakeet"})
    assert large.status_code == 413
    assert large.json()["error"]["code"] == "too_large"
    assert large.json()["error"].keys() == {"message", "type", "param", "code"}


def test_a_worker_killed_under_load_costs_no_answer(host):
    assert host.transcribe().status_code == 200
    restarts = [worker["restarts"] for worker in host.stats()["workers"]]
    counted = samples(host.client.get("/metrics").text)[
        "aviary_inputs_total", ("outcome", "ok"), ("task", "transcribe")
    ]
    victim = host.pids()[1]
    with ThreadPoolExecutor(100) as pool, holding() as (url, released):
        answers = [pool.submit(host.ask_for, url) for _ in range(100)]
        host.until(lambda: host.stats()["inputs"]["in_flight"] == 100)
        os.kill(victim, signal.SIGKILL)
        host.until(lambda: host.stats()["inputs"]["in_flight"] == 100 and victim not in host.pids())
        released.set()
        statuses = [answer.result().status_code for answer in answers]
    assert statuses == [200] * 100
    host.until(host.all_ready)
    assert victim not in host.pids()
    restarts[1] += 1
    assert [worker["restarts"] for worker in host.stats()["workers"]] == restarts
    assert "worker 1 (cores" in host.log.read_text()
    assert "exited on signal SIGKILL" in host.log.read_text()
    after = samples(host.client.get("/metrics").text)
    assert after["aviary_inputs_total", ("outcome", "ok"), ("task", "transcribe")] >= counted, "counters never fall"
    assert after["aviary_worker_restarts_total",] == sum(restarts)


def test_a_rolling_restart_under_load_refuses_nobody(host):
    before, end, statuses = host.pids(), threading.Event(), []

    def work() -> None:
        while not end.is_set():
            statuses.append(host.transcribe().status_code)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    host.process.send_signal(signal.SIGHUP)
    try:
        host.until(lambda: "all 3 workers have been replaced" in host.log.read_text())
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}
    assert not set(before) & set(host.pids())


@needs_nginx
def test_a_rolling_restart_waits_for_what_takes_long(tmp_path, tmp_path_factory):
    """Longer than a server that is told to end: 2 s here, in the server's processes too."""
    (tmp_path / "sitecustomize.py").write_text("from worker.entrypoints.http import sockets; sockets.DRAIN_SEC = 2")
    path = os.pathsep.join(map(str, (tmp_path, ROOT)))
    with (
        hosting(tmp_path_factory.mktemp("gw"), 2, PYTHONPATH=path) as host,
        ThreadPoolExecutor(4) as pool,
        holding() as (url, released),
    ):
        before = host.pids()
        answers = [pool.submit(host.ask_for, url) for _ in range(4)]
        host.until(lambda: host.stats()["inputs"]["in_flight"] == 4)
        host.process.send_signal(signal.SIGHUP)
        time.sleep(4)
        released.set()
        assert [answer.result().status_code for answer in answers] == [200] * 4
        host.until(lambda: "all 2 workers have been replaced" in host.log.read_text())
        assert not set(before) & set(host.pids())


@needs_nginx
def test_a_full_disk_does_not_end_the_server_when_a_worker_dies(tmp_path):
    with hosting(tmp_path, 2) as host:
        obstacle = host.folder / "nginx.conf.new"  # stands for a disk on which nothing can be written
        obstacle.mkdir()
        os.kill(host.pids()[0], signal.SIGKILL)
        host.until(lambda: "cannot write the configuration of nginx" in host.log.read_text())
        host.until(host.all_ready)
        assert host.transcribe().status_code == 200
        obstacle.rmdir()
        host.until(lambda: f'{host.folder}/0-2" ' in (host.folder / "nginx.conf").read_text())


@needs_nginx
def test_keys_and_rates_are_one_for_all_workers(tmp_path):
    with hosting(tmp_path, 2, API_KEY=",k1,k2", RATE_LIMIT="6/minute", CORS_ORIGINS="https://page.example") as host:
        for path in ("/v1/models", "/stats", "/metrics"):
            assert host.client.get(path).status_code == 401
            assert host.client.get(path, headers={"Authorization": "Bearer k2"}).status_code == 200
        assert host.client.get("/health").status_code == 200
        refused = host.client.post("/v1/audio/transcriptions", files={"file": WEEK}, data={"model": "parakeet"})
        assert refused.status_code == 401
        assert refused.headers.get_list("www-authenticate") == ["Bearer"]
        assert refused.json()["error"]["type"] == "invalid_request_error"
        preflight = host.client.options(
            "/v1/models", headers={"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
        )
        assert preflight.status_code == 200

        host.headers = {"Authorization": "Bearer k1"}
        answers = many(host, 10, 2)
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(200) == 6
        assert statuses.count(429) == 4
        late = next(answer for answer in answers if answer.status_code == 429)
        assert late.json()["error"]["code"] == "rate_limit_exceeded"
        assert 0 < int(late.headers["retry-after"]) <= 60
        host.headers = {"Authorization": "Bearer k2"}
        assert host.transcribe().status_code == 200


@needs_nginx
def test_a_supervisor_that_is_killed_takes_everything_with_it(tmp_path):
    with hosting(tmp_path, 2) as host:
        family = host.family()
        assert any("nginx" in one.name() for one in family)
        host.process.kill()
        host.process.wait()
        gone(family)
    assert len(list(tmp_path.glob("gateway-*"))) == 1
    assert broken(tmp_path) == 1
    assert not list(tmp_path.glob("gateway-*")), "what was left is cleared away"


def broken(data: Path) -> int:
    """The exit code of a server whose workers cannot start."""
    settings = Settings(skip_model_load=True, data_dir=data, port=0)
    seat = Placement("nowhere", {"PYTHONHOME": str(data / "nowhere")}, (), settings)
    return supervisor.run(settings, [seat, seat], None)


def test_workers_that_cannot_start_are_given_up(tmp_path):
    assert broken(tmp_path) == 1
    assert not list(tmp_path.glob("gateway-*"))


def refused(host: Host) -> bool:
    try:
        httpx.get(f"{host.url}/health")
    except httpx.ConnectError:
        return True
    return False


@needs_nginx
def test_sigterm_finishes_what_is_under_way_and_leaves_nothing(tmp_path):
    with hosting(tmp_path, 2) as host:
        family = host.family()
        with ThreadPoolExecutor(20) as pool, holding() as (url, released):
            answers = [pool.submit(host.ask_for, url) for _ in range(20)]
            host.until(lambda: host.stats()["inputs"]["in_flight"] == 20)
            host.process.terminate()
            host.until(lambda: refused(host))
            released.set()
            assert [answer.result().status_code for answer in answers] == [200] * 20
        assert host.process.wait(30) == 0
        gone(family, 1)
        assert not list(host.data.glob("gateway-*"))


@needs_nginx
def test_a_port_that_is_taken_is_said_and_ends_it(host, tmp_path):
    other = Host(tmp_path, 2, PORT=str(host.port))
    assert other.process.wait(60) == 1
    assert "Address already in use" in other.log.read_text()
    gone([child for child in psutil.process_iter() if child.ppid() == other.process.pid])


def test_without_nginx_the_workers_share_the_port(tmp_path):
    with hosting(tmp_path, 2, WITHOUT_NGINX) as host:
        assert "apt install nginx-light" in host.log.read_text()
        assert not any("nginx" in one.name() for one in host.family())
        assert {answer.status_code for answer in many(host, 40)} == {200}
        assert host.stats()["inputs"]["answered"] == 40
        assert min(one["inputs"]["answered"] for one in host.own_stats()) > 0
        text = host.client.get("/metrics").text
        assert samples(text)["aviary_inputs_total", ("outcome", "ok"), ("task", "transcribe")] == 40
        os.kill(host.pids()[0], signal.SIGKILL)
        time.sleep(0.2)
        host.until(host.all_ready)
        assert host.transcribe().status_code == 200
        assert host.end() == 0
        assert not list(host.data.glob("gateway-*"))
