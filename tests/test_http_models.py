"""An operator downloads and removes models through the server. The hub is one on loopback."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
from gateway_host import hosting
from hub_host import BLOCK, hub_on_loopback
from serving import serving

from worker import config
from worker.backends.common import hub_cache
from worker.config import Settings
from worker.entrypoints.http.gateway import nginx

NEMO, WHISPER = "nvidia/parakeet-ctc-0.6b", "openai/whisper-tiny"
ENCODED = NEMO.replace("/", "%2F")
SIZE = 4 << 20
CONFIG = json.dumps({"architectures": ["WhisperForConditionalGeneration"]}).encode()
WEIGHTS = random.Random(2).randbytes(SIZE)
WEEK = (Path(__file__).parent.parent / "samples" / "week.wav").read_bytes()


@pytest.fixture
def hub(monkeypatch):
    with hub_on_loopback(monkeypatch) as hub:
        hub.add(NEMO, model__nemo=WEIGHTS)
        yield hub


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    monkeypatch.setattr(config, "VOLUME", tmp_path / "volume")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Settings(model="pocketsphinx", hf_home=tmp_path / "hf", data_dir=tmp_path / "data")


@contextlib.contextmanager
def client(settings: Settings, **options):
    with serving(settings.model_copy(update=options)) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield http


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def until(true, sec: float = 20) -> None:
    deadline = time.monotonic() + sec
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("name", [NEMO, ENCODED, "parakeet-ctc-0.6b"])
def test_a_model_is_downloaded_and_removed(hub, settings, name):
    with client(settings) as http:
        before = http.get(f"/v1/models/{name}").json()
        assert (before["on_disk"], before["size_bytes"], before["download"]) == (False, None, None)
        assert before["license"] == "CC-BY-4.0"
        made = http.post(f"/v1/models/{name}")
        assert made.status_code == 201
        assert made.json() == http.get(f"/v1/models/{name}").json()
        assert (made.json()["id"], made.json()["on_disk"], made.json()["size_bytes"]) == (NEMO, True, SIZE)
        assert http.post(f"/v1/models/{name}").status_code == 200
        gone = http.delete(f"/v1/models/{name}")
        assert (gone.status_code, gone.json()) == (200, {"id": NEMO, "object": "model", "deleted": True})
        assert http.get(f"/v1/models/{name}").json() == before
        assert code(http.delete(f"/v1/models/{name}")) == (404, "model_not_found")
    assert len(hub.sent) == 1


def test_openai_client_deletes_a_model(hub, settings):
    with client(settings) as http:
        assert http.post(f"/v1/models/{NEMO}").status_code == 201
        with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="x", max_retries=0) as theirs:
            assert theirs.models.delete(NEMO).deleted
            with pytest.raises(openai.NotFoundError):
                theirs.models.delete(NEMO)


def test_the_progress_is_streamed_and_shown_to_others(hub, settings):
    hub.gate.clear()
    with client(settings) as http:
        events: list[str] = []

        def listen() -> None:
            with http.stream("POST", f"/v1/models/{NEMO}", params={"stream": "true"}) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                events.extend(line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: "))

        thread = threading.Thread(target=listen)
        thread.start()
        until(
            lambda: http.get(f"/v1/models/{ENCODED}").json()["download"] == {"bytes_done": BLOCK, "bytes_total": SIZE}
        )
        assert code(http.delete(f"/v1/models/{NEMO}")) == (409, "model_in_use")
        time.sleep(1)  # for an event of the progress
        hub.gate.set()
        thread.join(30)
        progress, done = map(json.loads, (events[0], events[-2]))
        assert events[-1] == "[DONE]"
        assert progress == {
            "type": "model.download.progress",
            "model": NEMO,
            "bytes_done": BLOCK,
            "bytes_total": SIZE,
        }
        assert done == {"type": "model.download.done", "model": NEMO, "downloaded": True}


def test_many_requests_share_a_download_that_outlives_them(hub, settings):
    hub.gate.clear()
    with client(settings, request_timeout_sec=1.0) as http:
        with contextlib.suppress(httpx.ReadTimeout):
            http.post(f"/v1/models/{NEMO}", timeout=0.5)
        late = http.post(f"/v1/models/{NEMO}")
        assert late.status_code == 202
        assert late.json()["download"]["bytes_total"] == SIZE
        assert http.get("/health/live").status_code == 200, "the event loop is free"
        hub.gate.set()
        until(lambda: http.get(f"/v1/models/{NEMO}").json()["on_disk"])
        assert len(hub.sent) == 1


def test_only_operators_and_allowed_models(hub, settings):
    keys = {name: {"authorization": f"Bearer {name}"} for name in ("alice", "root")}
    hub.add("me/whisper-mine", config__json=CONFIG, model__safetensors=WEIGHTS[:1000])
    options = {"api_key": "alice,bob", "admin_api_key": "root", "allowed_models": (NEMO, "me/whisper-mine")}
    with client(settings, **options) as http:
        for method in ("POST", "DELETE"):
            assert http.request(method, f"/v1/models/{NEMO}").status_code == 401
            refused = http.request(method, f"/v1/models/{NEMO}", headers=keys["alice"])
            assert code(refused) == (403, "insufficient_permissions")
            for name in ("parakeet", "me/whisper-other", "..", "../../etc", "%2e%2e%2f%2e%2e"):
                assert http.request(method, f"/v1/models/{name}", headers=keys["root"]).status_code in (404, 405), name
        theirs = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="alice")
        with theirs, pytest.raises(openai.PermissionDeniedError, match="Only an operator"):
            theirs.models.delete(NEMO)
        assert http.post("/v1/models/me/whisper-mine", headers=keys["root"]).status_code == 201
        mine = http.get("/v1/models/me/whisper-mine", headers=keys["alice"]).json()
        assert (mine["on_disk"], mine["size_bytes"], mine["license"]) == (True, 1000, "its own")
    assert [name for name, _ in hub.sent] == ["model.safetensors"]


def test_failures_are_errors_of_openai(hub, settings, monkeypatch):
    monkeypatch.setattr(hub_cache, "PAUSE_SEC", 0.01)
    with client(settings) as http:
        hub.status = 500
        for stream in ("false", "true"):
            assert code(http.post(f"/v1/models/{NEMO}?stream={stream}")) == (503, "model_unavailable")
        hub.status = None
        assert code(http.delete("/v1/models/pocketsphinx")) == (400, "unsupported")
        assert http.post("/v1/models/pocketsphinx").status_code == 200
        assert code(http.post(f"/v1/models/{NEMO}?stream=perhaps")) == (400, "invalid_request")
    with client(settings, hf_hub_offline=True) as http:
        answer = http.post(f"/v1/models/{NEMO}")
        assert code(answer) == (503, "model_unavailable")
        assert "HF_HUB_OFFLINE forbids downloading it" in answer.text
    with client(settings, skip_model_load=True) as http:
        for method in ("POST", "DELETE"):
            assert code(http.request(method, f"/v1/models/{NEMO}")) == (400, "unsupported")


def test_a_model_that_is_loaded_is_not_removed(hub, settings, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_whisper

    folder = tiny_whisper.save(tmp_path / "tiny")
    hub.repositories[WHISPER] = {path.name: path.read_bytes() for path in folder.iterdir()}
    with client(settings, device="cpu", model_idle_sec=1.0) as http:
        assert http.post("/v1/models/whisper-tiny").status_code == 201
        form = {"files": {"file": ("week.wav", WEEK)}, "data": {"model": WHISPER}}
        assert http.post("/v1/audio/transcriptions", **form).status_code == 200
        refused = http.delete("/v1/models/whisper-tiny")
        assert code(refused) == (409, "model_in_use")
        assert refused.headers["x-should-retry"] == "false"
        until(lambda: not http.get(f"/v1/models/{WHISPER}").json()["loaded"])
        until(lambda: http.delete(f"/v1/models/{WHISPER}").status_code == 200)
        assert not http.get(f"/v1/models/{WHISPER}").json()["on_disk"]


@pytest.mark.slow
@pytest.mark.skipif(nginx.find() is None, reason="nginx is not installed")
def test_processes_download_once(hub, tmp_path, tmp_path_factory):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_whisper

    folder = tiny_whisper.save(tmp_path / "tiny")
    hub.repositories[WHISPER] = {path.name: path.read_bytes() for path in folder.iterdir()}
    environment = {
        "SKIP_MODEL_LOAD": "0",
        "MODEL": "pocketsphinx",
        "DEVICE": "cpu",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "API_KEY": "k",
    }
    hub.gate.clear()
    with hosting(tmp_path_factory.mktemp("gw"), 2, **environment) as host:
        answers: list[int] = []

        def pull(name: str) -> None:
            answers.append(httpx.post(f"{host.url}/v1/models/{name}", headers=host.headers, timeout=60).status_code)

        threads = [threading.Thread(target=pull, args=(name,)) for name in (NEMO, ENCODED, NEMO, ENCODED)]
        for thread in threads:
            thread.start()
        assert hub.began.wait(30)
        shown = [host.client.get(f"/v1/models/{ENCODED}", headers=host.headers).json() for _ in range(6)]
        assert {one["download"]["bytes_total"] for one in shown} == {SIZE}, "whichever process is asked"
        hub.gate.set()
        for thread in threads:
            thread.join(60)
        assert set(answers) <= {200, 201}
        assert 201 in answers
        assert len(hub.sent) == 1
        assert host.client.delete(f"/v1/models/{ENCODED}", headers=host.headers).status_code == 200
        assert host.client.post(f"/v1/models/{WHISPER}", headers=host.headers).status_code == 201
        form = {"files": {"file": ("week.wav", WEEK)}, "data": {"model": WHISPER}}
        assert host.client.post("/v1/audio/transcriptions", headers=host.headers, **form).status_code == 200
        for _ in range(6):
            assert code(host.client.delete(f"/v1/models/{WHISPER}", headers=host.headers)) == (409, "model_in_use")
