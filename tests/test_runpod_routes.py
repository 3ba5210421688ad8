"""The payload {"route", "method", "body"} under the SDK's loop: it returns what the HTTP server responds with."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time

import httpx
import pytest
import test_runpod
from gateway_host import holding
from runpod_host import REPO, RunpodHost
from serving import serving
from test_docs import blocks

from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.http.app import create_app
from worker.entrypoints.runpod import RunpodWorker
from worker.entrypoints.runpod_routes import STORED
from worker.scoring import scorer
from worker.scoring.scorer import Progress

pytestmark = pytest.mark.slow

WEEK = str(REPO / "samples" / "week.wav")
DATA = base64.b64encode((REPO / "samples" / "week.wav").read_bytes()).decode()
SPEECH, CHAT = "/v1/audio/transcriptions", "/v1/chat/completions"
QUESTION = [{"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}}, {"type": "text", "text": "What?"}]
VARYING = {"id", "created", "elapsed_sec", "timestamp", "timing", "loaded"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict[str, object]:
    return {"skip_model_load": True, "allow_private_urls": True, "data_dir": tmp_path_factory.mktemp("data")}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A host with a worker whose settings guard its HTTP server, which must not stop a job."""
    guards = {"API_KEY": "k", "ADMIN_API_KEY": "a", "RATE_LIMIT": "1/hour", "REQUEST_TIMEOUT_SEC": 0.3}
    with (
        RunpodHost() as one,
        one.worker(
            SKIP_MODEL_LOAD=1,
            ALLOW_PRIVATE_URLS=1,
            MAX_CONCURRENCY=4,
            DATA_DIR=tmp_path_factory.mktemp("data"),
            **guards,
        ),
    ):
        yield one


@pytest.fixture(scope="module")
def server(settings):
    with serving(Settings(**settings)) as url, httpx.Client(base_url=url, timeout=30, follow_redirects=True) as http:
        yield http


def without_varying(value):
    if isinstance(value, dict):
        return {key: without_varying(one) for key, one in value.items() if key not in VARYING}
    return [without_varying(one) for one in value] if isinstance(value, list) else value


def call(host, route, body=None, method=None, **more):
    payload = {"route": route, "body": body, "method": method} | more
    return host.result(host.submit({name: value for name, value in payload.items() if value is not None}))


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (SPEECH, {"audio": {"data": DATA}}),
        (SPEECH, {"file": WEEK, "response_format": "srt"}),
        (SPEECH, {"audio": {"url": WEEK}, "response_format": "verbose_json", "timestamp_granularities": ["word"]}),
        ("/v1/audio/translations", {"audio": WEEK, "model": "canary"}),
        ("/v1/audio/embeddings", {"audio": WEEK, "model": "audio-flamingo-3", "pooling": "mean"}),
        (CHAT, {"model": "audio-flamingo-3", "messages": [{"role": "user", "content": QUESTION}]}),
        ("/transcribe", {"paths": [WEEK, WEEK]}),
        ("/transcribe", {"file": WEEK, "language": "en", "include_timestamps": True}),
        ("/transcribe", {"file": {"data": DATA}, "include_timestamps": False}),
        ("/v1/models", None),
        ("/v1/models/parakeet", None),
        ("/v1/models?any=1", None),
        ("/health", None),
        ("/", None),
        ("/openapi.json", None),
        ("/ui", None),
    ],
)
def test_every_route_returns_the_servers_response(host, server, route, body):
    expected = server.get(route) if body is None else server.post(route, json=body)
    assert expected.status_code == 200, expected.text
    shown = expected.json() if expected.headers["content-type"] == "application/json" else expected.text
    post = call(host, route, body)
    assert "error" not in post
    assert without_varying(post["output"]) == without_varying(shown)


@pytest.mark.parametrize(
    ("route", "body", "method"),
    [
        ("/no-such-route", None, None),
        (SPEECH, None, "get"),
        ("/v1/models", None, "DELETE"),
        (SPEECH, {"audio": WEEK, "colour": "red"}, None),
        (SPEECH, {"audio": str(REPO / "samples/none.wav")}, "POST"),
        (SPEECH, {"audio": "/etc/hostname"}, None),
        (SPEECH, {}, None),
        ("/v1/models/none", None, None),
        ("/transcribe", {"file": 1}, None),
        ("/transcribe", {"file": WEEK, "include_timestamps": "often"}, None),
    ],
)
def test_an_error_response_fails_the_job_with_its_status(host, server, route, body, method):
    expected = server.request((method or ("GET" if body is None else "POST")).upper(), route, json=body)
    assert expected.status_code >= 400
    error = expected.json()["error"]
    post = call(host, route, body, method)
    assert post["error"] == error["message"]
    assert (post["output"]["code"], post["output"]["status"]) == (error["code"], expected.status_code)
    assert post["output"].get("param") == error["param"]
    assert post["output"]["retryable"] is False


def test_the_payload_of_the_documentation(host, server):
    (payload,) = (text for text in blocks(REPO / "docs" / "payload.md", "json") if '"route"' in text)
    payload = json.loads(payload.replace("https://host/a.mp3", WEEK))
    assert host.result(host.submit(payload["input"]))["output"]["filename"] == "week.wav"
    refused = server.post("/runsync", json=payload).json()
    assert refused["status"] == "FAILED"
    assert "route is not a field" in refused["error"]


def test_what_is_no_json_is_base64_and_no_content_is_its_status(host, server):
    icon = "/ui/docs/assets/favicon.png"
    expected = server.get(icon)
    output = call(host, icon)["output"]
    assert output == {"content_type": "image/png", "base64": base64.b64encode(expected.content).decode()}
    assert call(host, "/ping")["output"] == {"status": 200}


@pytest.mark.parametrize(
    ("payload", "param"),
    [
        ({"route": "/v1/models", "openai_input": {}}, "openai_input"),
        ({"route": "/v1/models", "webhook": "https://host"}, "webhook"),
        ({"route": 7}, "route"),
        ({"route": None}, "route"),
        ({"route": "v1/models"}, "route"),
        ({"route": "https://host/v1/models"}, "route"),
        ({"route": "/v1/\u0000models"}, "route"),
        ({"route": SPEECH, "body": [1]}, "body"),
        ({"route": SPEECH, "method": 7, "body": {}}, "method"),
        ({"route": SPEECH, "body": {"audio": WEEK, "stream": True}}, "stream"),
        ({"route": CHAT, "body": {"messages": [], "stream": "true"}}, "stream"),
    ],
)
def test_a_mistake_names_its_field(host, payload, param):
    post = host.result(host.submit(payload))
    assert post["output"]["param"] == param
    assert post["output"]["status"] == 400
    assert post["error"]


def test_odd_characters_are_refused_like_any_other(host):
    post = call(host, SPEECH, {"audio": WEEK, "a\ud800": 1})
    assert post["output"]["status"] == 400


def test_stored_jobs_are_refused_and_no_other_route_is(host, settings):
    """By the tags of the routes, so that a new route of jobs is refused too, or this test fails."""
    with Engine(Settings(**settings)) as engine:
        paths = create_app(Settings(**settings), engine).openapi()["paths"]
    assert len(paths) > 20
    for path, operations in paths.items():
        (tags,) = {tuple(operation["tags"]) for operation in operations.values()}
        refused = any(f"{path}/".startswith(f"{prefix}/") for prefix in STORED)
        assert refused == (tags in (("Jobs",), ("Runpod",))), path
        if refused:
            for method in operations:
                post = call(host, path.replace("{name}", "j").replace("{endpoint}", "e"), method=method)
                assert (post["output"]["code"], post["output"]["param"]) == ("unsupported", "route"), path
    assert call(host, "/run?x=1", {"input": {}})["output"]["code"] == "unsupported"
    assert call(host, "/%72un", {"input": {}})["output"]["code"] == "unsupported"


@pytest.mark.parametrize("path", ["/metrics", "/stats", "/stats/"])
def test_counters_that_count_no_jobs_are_refused(host, path):
    post = call(host, path)
    assert (post["output"]["code"], post["output"]["param"]) == ("unsupported", "route")
    assert path.rstrip("/") in post["error"]


def test_a_canceled_job_ends_its_request(host):
    with test_runpod.Site() as site:
        threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        job = host.submit({"route": SPEECH, "body": {"audio": {"url": site.url("trickle/gone")}}})
        test_runpod.eventually(lambda: site.hits == ["trickle/gone"])
        host.stop(job)
        test_runpod.eventually(lambda: site.dropped == ["trickle/gone"], 8)
        assert host.posts_of(job) == []
        site.shutdown()


def test_requests_wait_for_no_other_and_end_with_their_job(host):
    """REQUEST_TIMEOUT_SEC, which makes late requests jobs, is the HTTP server's and no limit here."""
    with holding() as (source, released):
        slow, cancelled = (host.submit({"route": SPEECH, "body": {"audio": {"url": source}}}) for _ in range(2))
        assert call(host, SPEECH, {"audio": WEEK})["output"]["text"].startswith("[dry-run]")
        host.stop(cancelled)
        assert call(host, "/v1/models")["output"]["data"]
        time.sleep(0.5)  # longer than REQUEST_TIMEOUT_SEC
        assert not host.has_result(slow)
        released.set()
        assert host.result(slow)["output"]["text"].startswith("[dry-run]")
        assert call(host, "/health")["output"]["status"] == "healthy"
        assert host.posts_of(cancelled) == []


def test_a_lost_device_asks_for_a_fresh_worker(tmp_path):
    settings = Settings(model="parakeet", data_dir=tmp_path)
    with Engine(settings, create_backend=lambda _model: test_runpod.TestLostDevice.Broken()) as engine:
        job = {"id": "lost", "input": {"route": SPEECH, "body": {"audio": WEEK}}}
        answer = asyncio.run(RunpodWorker(settings, engine).handle(job))
    assert (answer["code"], answer["status"], answer["retryable"]) == ("device_lost", 503, True)
    assert answer["refresh_worker"] is True


def test_routes_and_other_jobs_share_the_references_of_scoring(tmp_path, monkeypatch):
    opened = []

    class OneScorer:
        progress = Progress({"whisper": "loaded"}, 1, 1)

        @classmethod
        def open(cls, *_):
            opened.append(cls())
            return opened[-1]

    monkeypatch.setattr(scorer, "Scorer", OneScorer)
    settings = Settings(skip_model_load=True, data_dir=tmp_path, audio_score_config=tmp_path / "config.json")
    with Engine(settings) as engine:
        worker = RunpodWorker(settings, engine)
        answer = asyncio.run(worker.handle({"id": "1", "input": {"route": "/v1/models"}}))
        assert answer["scoring_models"] == ["whisper"]
        assert opened == [worker.tasks.scorer]


def test_a_large_response_without_a_bucket_is_refused(tmp_path):
    settings = Settings(skip_model_load=True, data_dir=tmp_path, max_result_bytes=2000)
    with Engine(settings) as engine:
        answer = asyncio.run(RunpodWorker(settings, engine).handle({"id": "1", "input": {"route": "/openapi.json"}}))
    assert answer["code"] == "result_too_large"


def test_the_answer_is_strict_json(tmp_path):
    settings = Settings(skip_model_load=True, data_dir=tmp_path)
    with Engine(settings) as engine:
        body = {"audio": WEEK, "temperature": float("nan")}
        answer = asyncio.run(
            RunpodWorker(settings, engine).handle({"id": "1", "input": {"route": SPEECH, "body": body}})
        )
    assert (answer["param"], answer["status"]) == ("body", 400)
    json.dumps(answer, allow_nan=False)
