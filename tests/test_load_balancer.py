"""`python -u handler.py` as a worker of a load-balancing endpoint of Runpod, behind a stand-in for the balancer."""

from __future__ import annotations

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
import test_runpod
from balancer_host import KEY, Balancer
from gateway_host import holding
from runpod_host import REPO, Process, clean_env
from serving import serving
from test_http_realtime import address, first_event, pcm, recording, silence, speak, transcripts, until
from websockets.exceptions import InvalidStatus

from worker.backends.common import vad
from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints import load_balancer
from worker.entrypoints.http.health_port import PATHS
from worker.errors import ConfigError

WEEK = REPO / "samples" / "week.wav"
ENDPOINT = {"RUNPOD_ENDPOINT_ID": "ep", "PORT_HEALTH": "80"}
QUEUE = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1/job-take?"}


@pytest.fixture
def settings(monkeypatch):
    """Makes settings of an environment in which nothing else of Runpod's is set."""

    def make(**environment: str) -> Settings:
        for name in ("HOST", "PORT", "API_KEY", "REQUEST_TIMEOUT_SEC", "RUNPOD_SERVERLESS", "RUNPOD_MODE"):
            monkeypatch.delenv(name, raising=False)
        for name in (*ENDPOINT, *QUEUE):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return Settings()

    return make


class TestMode:
    @pytest.mark.parametrize(
        ("environment", "starts", "http"),
        [
            ({}, False, False),
            (QUEUE, True, False),
            (QUEUE | {"RUNPOD_ENDPOINT_ID": "ep"}, True, False),
            (ENDPOINT, True, True),
            (ENDPOINT | QUEUE, True, True),
            (ENDPOINT | QUEUE | {"RUNPOD_MODE": "queue"}, True, False),
            (ENDPOINT | {"RUNPOD_MODE": "queue"}, False, False),
            ({"PORT_HEALTH": "8001"}, False, False),  # a machine elsewhere, or a pod
            ({"RUNPOD_MODE": "http"}, True, True),
            (QUEUE | {"RUNPOD_MODE": "http"}, True, True),
            (ENDPOINT | {"RUNPOD_SERVERLESS": "0"}, False, True),
            ({"RUNPOD_SERVERLESS": "1"}, True, False),
        ],
    )
    def test_is_found_by_runpods_variables(self, settings, environment, starts, http):
        found = settings(**environment)
        assert (found.on_runpod, found.behind_load_balancer) == (starts, http)

    def test_other_modes_are_refused(self, settings):
        with pytest.raises(ConfigError, match="RUNPOD_MODE"):
            settings(RUNPOD_MODE="both")


class TestDefaults:
    def test_fit_the_platform(self, settings):
        found = load_balancer.with_defaults(settings(**ENDPOINT))
        assert (found.host, found.port, found.api_key) == ("0.0.0.0", 80, "off")
        assert found.request_timeout_sec < 330, "the load balancer gives up after 5.5 minutes"

    def test_give_way_to_what_is_set(self, settings):
        own = {"HOST": "::", "PORT": "5000", "API_KEY": "k", "REQUEST_TIMEOUT_SEC": "20"}
        found = load_balancer.with_defaults(settings(**ENDPOINT, **own))
        assert (found.host, found.port, found.api_key, found.request_timeout_sec) == ("::", 5000, "k", 20)

    def test_open_no_server_that_no_load_balancer_guards(self, settings):
        with pytest.raises(ConfigError, match="API_KEY"):
            load_balancer.serve(settings(RUNPOD_MODE="http"))


@pytest.mark.slow
class TestWorker:
    @pytest.fixture(scope="class")
    def spoken(self, tmp_path_factory):
        """An endpoint whose worker transcribes with pocketsphinx."""
        with (
            Balancer() as balancer,
            balancer.worker(MODEL="pocketsphinx", DATA_DIR=tmp_path_factory.mktemp("data")) as worker,
        ):
            balancer.until(200)
            yield balancer
            worker.terminate()
            assert worker.wait() == 0, worker.output
            assert "Traceback" not in worker.output

    @pytest.fixture
    def client(self, spoken):
        return openai.OpenAI(base_url=f"{spoken.url}/v1", api_key=KEY, max_retries=0)

    def test_reports_204_while_it_loads_then_200(self, spoken):
        assert spoken.seen == [None, 204, 200]

    def test_transcribes_for_openais_client(self, client):
        with WEEK.open("rb") as file:
            assert client.audio.transcriptions.create(model="pocketsphinx", file=file).text == "see you next week"

    def test_streams(self, client):
        with WEEK.open("rb") as file:
            events = list(client.audio.transcriptions.create(model="pocketsphinx", file=file, stream=True))
        assert events[-1].type == "transcript.text.done"
        assert events[-1].text == "see you next week"

    @pytest.mark.skipif(not vad.is_available(), reason="needs onnxruntime and silero-vad")
    def test_transcribes_in_realtime(self, spoken):
        """OpenAI's client speaks over the endpoint's WebSocket, and gets the words of two turns while it is open."""

        async def run() -> list:
            client = openai.AsyncOpenAI(base_url=f"{spoken.url}/v1", api_key=KEY)
            async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
                samples = [recording("week.wav", 24_000), silence(1, 24_000)]
                await speak(connection, pcm(np.concatenate(2 * samples)))
                return await until(connection, "transcription.completed", 2)

        assert transcripts(asyncio.run(run())) == ["see you next week"] * 2
        with pytest.raises(InvalidStatus) as refused:
            asyncio.run(first_event(address(spoken.url), additional_headers={"Authorization": "Bearer wrong"}))
        assert refused.value.response.status_code == 401

    def test_responds_to_health_checks_only_on_their_port(self, spoken):
        with httpx.Client(base_url=f"http://127.0.0.1:{spoken.health_port}") as http:
            assert {http.get(path).status_code for path in PATHS} == {200}
            for path in ("/", "/v1/models", "/ui", "/jobs", "/metrics", "/ping/", "//ping"):
                assert http.get(path).status_code == 404, path
            assert http.post("/run", json={"input": {}}).status_code == 404
        assert httpx.get(f"{spoken.url}/v1/models", headers=spoken.headers).status_code == 200

    @pytest.mark.parametrize("forwards_key", [True, False])
    def test_its_own_key_is_a_header_of_its_own(self, forwards_key):
        with Balancer(forwards_key=forwards_key) as balancer, balancer.worker(SKIP_MODEL_LOAD=1, API_KEY="own"):
            balancer.until(200)
            url = f"{balancer.url}/v1/models"
            refused = httpx.get(url, headers=balancer.headers)
            assert refused.status_code == 401
            assert "X-API-Key" in refused.json()["error"]["message"]
            assert httpx.get(url, headers=balancer.headers | {"X-API-Key": "wrong"}).status_code == 401
            client = openai.OpenAI(
                base_url=f"{balancer.url}/v1", api_key=KEY, default_headers={"X-API-Key": "own"}, max_retries=0
            )
            assert client.models.list().data

    def test_one_port_for_both_serves_everything(self):
        with Balancer() as balancer:
            balancer.health_port = balancer.port
            with balancer.worker(SKIP_MODEL_LOAD=1):
                balancer.until(200)
                assert httpx.get(f"{balancer.url}/v1/models", headers=balancer.headers).status_code == 200

    def test_a_request_under_way_is_finished_on_sigterm(self):
        with (
            Balancer() as balancer,
            balancer.worker(SKIP_MODEL_LOAD=1, ALLOW_PRIVATE_URLS=1) as worker,
            holding() as (source, released),
            ThreadPoolExecutor(1) as pool,
        ):
            balancer.until(200)
            url = f"{balancer.url}/v1/audio/transcriptions"
            waiting = pool.submit(
                httpx.post, url, headers=balancer.headers, json={"audio": {"url": source}}, timeout=60
            )
            with httpx.Client(base_url=balancer.url, headers=balancer.headers) as http:
                until = time.monotonic() + 20
                while "aviary_inputs_in_flight 1.0" not in http.get("/metrics").text:
                    assert time.monotonic() < until
                    time.sleep(0.05)
            worker.terminate()
            balancer.until(None)  # it accepts no more
            assert not waiting.done()
            released.set()
            response = waiting.result(30)
            assert (response.status_code, response.json()["text"][:9]) == (200, "[dry-run]")
            assert worker.wait() == 0, worker.output

    def test_a_port_that_is_taken_is_named(self):
        with socket.socket() as taken:
            taken.bind(("0.0.0.0", 0))
            taken.listen()
            port = taken.getsockname()[1]
            environment = clean_env(SKIP_MODEL_LOAD=1, PORT=0, PORT_HEALTH=port, RUNPOD_ENDPOINT_ID="ep")
            with Process("handler.py", env=environment) as worker:
                assert worker.wait() == 1
                assert f"cannot listen on 0.0.0.0:{port}" in worker.output


class TestLostDevice:
    def test_is_an_error_status_of_ping(self, tmp_path):
        settings = Settings(model="parakeet", data_dir=tmp_path)
        with (
            Engine(settings, create_backend=lambda _model: test_runpod.TestLostDevice.Broken()) as engine,
            serving(settings, engine) as url,
        ):
            assert httpx.get(f"{url}/ping").status_code == 200
            with WEEK.open("rb") as file:
                assert httpx.post(f"{url}/v1/audio/transcriptions", files={"file": file}).status_code == 503
            assert httpx.get(f"{url}/ping").status_code == 503


def test_several_server_processes_share_one_port(settings):
    found = settings(WORKERS="2", PORT="8000", PORT_HEALTH="8001", DEVICE="cpu", SKIP_MODEL_LOAD="1")
    with pytest.raises(ConfigError, match="PORT_HEALTH"):
        load_balancer.serve(found.model_copy(update={"host": "127.0.0.1"}))
