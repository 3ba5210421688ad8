"""What a request meets before a route: keys, rates, sizes; and how the server treats who waits and who has gone."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from serving import serving

from worker.backends.base import Backend
from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.http import events, wrong_keys
from worker.entrypoints.http.auth import AuthMiddleware, check_address
from worker.errors import ConfigError
from worker.types import Transcript

WEEK = "samples/week.wav"


class Held(Backend):
    """Waits in load, or in each batch, until it is let go."""

    def __init__(self, *, loading: bool = False) -> None:
        self.gate, self.seen, self._loading = threading.Event(), 0, loading

    def load(self) -> None:
        if self._loading:
            self.gate.wait(20)

    def infer(self, batch):
        self.gate.wait(20)
        self.seen += len(batch.pieces)
        return [Transcript("heard") for _ in batch.pieces]


@contextlib.contextmanager
def held(tmp_path, *, loading: bool = False, **options):
    settings = Settings(model="pocketsphinx", data_dir=tmp_path / "data", **options)
    backend = Held(loading=loading)
    with (
        Engine(settings, create_backend=lambda _row: backend) as engine,
        serving(settings, engine, wait=not loading) as url,
        httpx.Client(base_url=url, timeout=30) as http,
    ):
        try:
            yield http, backend, engine
        finally:
            backend.gate.set()


def ask(http, **options):
    with open(WEEK, "rb") as file:
        return http.post("/v1/audio/transcriptions", files={"file": file}, **options)


def test_keys(tmp_path):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path, api_key="first, second")) as url:
        for key, welcome in (
            ("first", True),
            ("second", True),
            ("third", False),
            ("first, second", False),
            ("", False),
        ):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            answer = httpx.get(f"{url}/v1/models", headers=headers)
            assert answer.status_code == (200 if welcome else 401)
        assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/health/live", "/health/ready", "/healthz", "/ping", "/docs", "/openapi.json", "/"):
            assert httpx.get(url + path).status_code in (200, 204), path
        for path in ("/stats", "/metrics"):
            assert httpx.get(url + path).status_code == 401
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


@pytest.mark.parametrize(
    ("host", "key", "fine"),
    [
        ("127.0.0.1", None, True),
        ("localhost", None, True),
        ("::1", None, True),
        ("0.0.0.0", None, False),
        ("0.0.0.0", "secret", True),
        ("0.0.0.0", "off", True),
        ("example.org", None, False),
    ],
)
def test_an_address_that_others_reach_needs_a_key(host, key, fine):
    settings = Settings(host=host, api_key=key)
    if fine:
        check_address(settings)
    else:
        with pytest.raises(ConfigError, match="set API_KEY"):
            check_address(settings)


def test_a_rate_is_kept_for_each_key(tmp_path):
    with (
        serving(Settings(skip_model_load=True, data_dir=tmp_path, api_key="a,b", rate_limit="2/minute")) as url,
        httpx.Client(base_url=url) as http,
    ):
        headers = {"authorization": "Bearer a"}
        assert [ask(http, headers=headers).status_code for _ in range(3)] == [200, 200, 429]
        late = ask(http, headers=headers)
        assert 1 <= int(late.headers["retry-after"]) <= 60
        assert late.json()["error"]["type"] == "requests"
        assert ask(http, headers={"authorization": "Bearer b"}).status_code == 200


def test_spaces_make_no_other_key_of_one(tmp_path):
    with (
        serving(Settings(skip_model_load=True, data_dir=tmp_path, api_key="a", rate_limit="2/minute")) as url,
        httpx.Client(base_url=url) as http,
    ):
        answers = [ask(http, headers={"authorization": "Bearer" + " " * n + "a"}).status_code for n in range(1, 5)]
        assert answers == [200, 200, 429, 429]


@pytest.mark.parametrize("key", ["schlüssel", "ключ", "à", "鍵🔑"])
def test_a_key_may_have_any_letters(tmp_path, key):
    def status(header: bytes) -> int:
        return httpx.get(f"{url}/v1/models", headers=[(b"authorization", b"Bearer " + header)]).status_code

    with serving(Settings(skip_model_load=True, data_dir=tmp_path, api_key=f"other,{key}")) as url:
        assert status(key.encode()) == 200
        assert status(key.encode() + b"\xa0") == 401
        if max(key) < "\u0100":
            assert status(key.encode("latin-1")) == 200


def test_a_key_has_one_rate_however_it_is_spelled(tmp_path):
    settings = Settings(skip_model_load=True, data_dir=tmp_path, api_key="ü", rate_limit="2/minute")
    with serving(settings) as url, httpx.Client(base_url=url) as http:
        spellings = [b"Bearer \xfc", "Bearer ü".encode()] * 2
        assert [ask(http, headers=[(b"authorization", one)]).status_code for one in spellings] == [200, 200, 429, 429]


def test_wrong_keys_are_limited_and_keys_in_use_are_not(tmp_path):
    settings = Settings(skip_model_load=True, data_dir=tmp_path, api_key="in-use,new")
    with serving(settings) as url, httpx.Client(base_url=url) as http:

        def send(key: str) -> httpx.Response:
            return http.get("/v1/models", headers={"authorization": f"Bearer {key}"} if key else {})

        assert send("in-use").status_code == 200
        assert {send("").status_code for _ in range(wrong_keys.MOST + 1)} == {401}, "no key is no guess"
        assert {send(f"guess {number}").status_code for number in range(wrong_keys.MOST)} == {401}
        for key in ("one more", "new"):
            refused = send(key)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            assert 1 <= int(refused.headers["retry-after"]) <= wrong_keys.WINDOW_SEC
        assert send("in-use").status_code == 200
        assert http.get("/health").status_code == 200


def test_wrong_keys_are_counted_by_network_and_forgotten_in_time(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(wrong_keys.time, "monotonic", lambda: now[0])
    counts = wrong_keys.WrongKeys()
    for number in range(wrong_keys.MOST):
        assert counts.wait_sec("2001:db8::1", b"a") == 0
        counts.note(f"2001:db8::{number:x}", b"a", right=False)
    assert counts.wait_sec("2001:db8::ffff", b"a") == wrong_keys.WINDOW_SEC
    assert counts.wait_sec("2001:db8:0:1::1", b"a") == 0
    assert counts.wait_sec("::ffff:10.0.0.1", b"a") == counts.wait_sec("unix", b"a") == 0
    now[0] += wrong_keys.WINDOW_SEC
    assert counts.wait_sec("2001:db8::1", b"a") == 0
    counts.note("2001:db8::1", b"a", right=False)
    assert counts.wait_sec("2001:db8::1", b"a") == 0, "a new window begins"


def test_counts_of_wrong_keys_are_bounded(monkeypatch):
    monkeypatch.setattr(wrong_keys, "REMEMBERED", 10)
    counts = wrong_keys.WrongKeys()
    for number in range(100):
        counts.note(f"10.0.0.{number}", b"a", right=number % 2 == 0)
    assert len(counts._wrong) == len(counts._right) == 10


def test_a_client_cannot_choose_the_address_that_its_rate_is_kept_for(tmp_path):
    settings = Settings(skip_model_load=True, data_dir=tmp_path, rate_limit="2/minute")
    with serving(settings) as url, httpx.Client(base_url=url) as http:
        statuses = [ask(http, headers={"x-forwarded-for": f"10.0.0.{n}"}).status_code for n in range(4)]
    assert statuses == [200, 200, 429, 429]


@pytest.mark.parametrize("key", [" ", ",", " ,\n"])
def test_a_blank_key_is_none(key):
    settings = Settings(host="0.0.0.0", api_key=key)
    with pytest.raises(ConfigError, match="holds no key"):
        check_address(settings)
    with pytest.raises(ConfigError, match="holds no key"):
        AuthMiddleware(None, settings)


def test_a_rate_that_is_none_is_told_at_start():
    with pytest.raises(ConfigError, match="60/minute"):
        AuthMiddleware(None, Settings(rate_limit="often"))


def test_a_body_is_cut_off_at_its_limit(tmp_path):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path, max_audio_bytes=1000, max_json_bytes=2000)) as url:
        told = httpx.post(f"{url}/v1/audio/transcriptions", files={"file": b"x" * 3_000_000})
        assert told.status_code == 413
        assert "MAX_AUDIO_BYTES" in told.json()["error"]["message"]
        assert httpx.post(f"{url}/v1/chat/completions", json={"messages": "x" * 3000}).status_code == 413

        def endless():
            for _ in range(30):
                yield b"x" * 100_000

        untold = httpx.post(
            f"{url}/v1/chat/completions", content=endless(), headers={"content-type": "application/json"}
        )
        assert untold.status_code == 413
        shouted = httpx.post(
            f"{url}/v1/chat/completions", content=b" " * 3000, headers={"content-type": "APPLICATION/JSON"}
        )
        assert shouted.status_code == 413


def test_no_page_of_elsewhere_may_call_unless_it_is_configured(tmp_path):
    origin = {"origin": "https://app.example"}
    with serving(Settings(skip_model_load=True, data_dir=tmp_path)) as url:
        assert "access-control-allow-origin" not in httpx.get(f"{url}/health", headers=origin).headers
    with serving(Settings(skip_model_load=True, data_dir=tmp_path, cors_origins=("https://app.example",))) as url:
        assert (
            httpx.get(f"{url}/health", headers=origin).headers["access-control-allow-origin"] == "https://app.example"
        )
        other = httpx.get(f"{url}/health", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_full_queue_answers_at_once_and_when_to_come_again(tmp_path):
    with held(tmp_path, max_queue=3) as (http, backend, _), ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, http) for _ in range(3)]
        while http.get("/stats").json()["inputs"]["in_flight"] < 3:
            time.sleep(0.01)
        refused = ask(http)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        backend.gate.set()
        assert [one.result().status_code for one in waiting] == [200] * 3
        assert ask(http).status_code == 200


def test_while_it_loads_it_answers_and_says_so(tmp_path):
    with held(tmp_path, loading=True) as (http, backend, _):
        assert http.get("/ping").status_code == 204
        assert http.get("/health").json()["status"] == "loading"
        assert http.get("/health/ready").status_code == 503
        assert http.get("/health/live").status_code == 200
        early = ask(http)
        assert early.status_code == 503
        assert early.json()["error"]["code"] == "model_loading"
        assert int(early.headers["retry-after"]) >= 1
        backend.gate.set()
        while http.get("/ping").status_code != 200:
            time.sleep(0.01)
        assert ask(http).json()["text"] == "heard"


def test_a_default_model_that_cannot_load_is_told(tmp_path):
    with serving(Settings(model=str(tmp_path / "none.nemo"), data_dir=tmp_path)) as url:
        deadline = time.monotonic() + 30
        while httpx.get(f"{url}/ping").status_code == 204 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert httpx.get(f"{url}/ping").status_code == 503
        assert httpx.get(f"{url}/health").json()["status"] == "unhealthy"
        with httpx.Client(base_url=url) as http:
            assert ask(http).json()["error"]["code"] == "model_unavailable"


def posts(http: httpx.Client) -> float:
    """How many POST requests the server has refused with 503."""
    rows = re.findall(r"^aviary_http_requests_total\{(.*)\} (\S+)$", http.get("/metrics").text, re.MULTILINE)
    return sum(float(count) for labels, count in rows if 'status="503"' in labels and 'method="POST"' in labels)


def test_what_takes_too_long_is_told_once(tmp_path):
    """Transcriptions go on as jobs, and keep their places; the stream is given up."""
    with held(tmp_path, request_timeout_sec=0.3) as (http, _, _):
        late = ask(http)
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "deadline_exceeded"
        assert late.headers["x-should-retry"] == "false"
        assert "retry-after" not in late.headers
        streamed = ask(http, data={"stream": "true"})
        assert streamed.status_code == 503
        assert streamed.headers["x-should-retry"] == "false"
        url = str(http.base_url).rstrip("/") + "/v1"
        with pytest.raises(openai.InternalServerError), open(WEEK, "rb") as file:
            openai.OpenAI(base_url=url, api_key="none").audio.transcriptions.create(file=file, model="pocketsphinx")
        assert posts(http) == 3, "OpenAI's client retried"
        assert http.get("/stats").json()["inputs"]["in_flight"] == len(http.get("/jobs").json()["jobs"]) == 2


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_client_that_hangs_up_frees_its_place(tmp_path, stream):
    with held(tmp_path, max_queue=1) as (http, backend, engine):
        first = threading.Thread(target=lambda: ask(http), daemon=True)
        body = httpx.Request(
            "POST", "http://x/v1/audio/transcriptions", files={"file": Path(WEEK).read_bytes()}, data={"stream": stream}
        )
        content = body.read()
        host, port = http.base_url.host, http.base_url.port
        with socket.create_connection((host, port)) as raw:
            head = (
                "POST /v1/audio/transcriptions HTTP/1.1\r\nhost: localhost\r\n"
                f"content-type: {body.headers['content-type']}\r\ncontent-length: {len(content)}\r\n\r\n"
            )
            raw.sendall(head.encode() + content)
            while http.get("/stats").json()["inputs"]["in_flight"] < 1:
                time.sleep(0.01)
            assert ask(http).status_code == 429
        deadline = time.monotonic() + 5
        while http.get("/stats").json()["inputs"]["in_flight"]:
            assert time.monotonic() < deadline, "its place is not free"
            time.sleep(0.01)
        first.start()
        backend.gate.set()
        first.join(10)
        assert ask(http).status_code == 200
        assert backend.seen <= 3
        assert engine.held_sec == pytest.approx(0, abs=1e-6)


def test_an_upload_may_be_read_long_after_its_stream_began(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "KEEP_ALIVE_SEC", 0.1)
    with held(tmp_path, read_ahead_sec=1.0) as (http, backend, _), ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, http)
        while http.get("/stats").json()["queue"]["decoded_sec_held"] < 1:
            time.sleep(0.01)
        threading.Timer(0.6, backend.gate.set).start()
        late = ask(http, data={"stream": "true"})
        assert ": still working" in late.text
        assert '"text": "heard"' in late.text
        assert first.result().status_code == 200


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/runsync", {"input": {"input": {"model": "evil/parakeet-x", "audio": WEEK}}}),
        ("/run", {"input": {"task": "transcribe", "input": {"model": "evil/parakeet-x", "audio": WEEK}}}),
        ("/runsync", {"input": {"task": "score", "input": {"model": "evil/parakeet-x", "audio": WEEK}}}),
        (
            "/runsync",
            {
                "input": {
                    "openai_route": "/v1/audio/transcriptions",
                    "openai_input": {"model": "evil/parakeet-x", "audio": WEEK},
                }
            },
        ),
        ("/evaluate", {"input": {"model": "evil/parakeet-x", "audio": WEEK}}),
    ],
)
def test_no_nesting_hides_a_model(tmp_path, route, body):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path)) as url:
        answer = httpx.post(url + route, json=body)
        assert answer.status_code in (400, 404) or answer.json()["status"] == "FAILED", answer.text
        assert "evil/parakeet-x' is not available here" in answer.text or "not a field" in answer.text


def test_the_proxys_routes_over_http(tmp_path):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path)) as url:
        listed = httpx.post(f"{url}/runsync", json={"input": {"openai_route": "/v1/models"}}).json()
        assert listed["output"]["object"] == "list"
        body = {"openai_route": "/v1/audio/transcriptions", "openai_input": {"audio": WEEK}}
        assert httpx.post(f"{url}/runsync", json={"input": body}).json()["output"]["text"].startswith("[dry-run]")


@pytest.mark.parametrize(
    ("route", "content"),
    [
        ("/score", b'{"audio": []}'),
        ("/transcribe/async", b'{"file": {}}'),
        ("/transcribe", b'{"paths": ["\\ud800"]}'),
        ("/v1/chat/completions", b'{"model": 5, "stream": true, "messages": []}'),
        ("/evaluate", b'{"audio_dir": "a\\u0000"}'),
        ("/runsync", b'{"input": {"inputs": [{"source": "x", "id": "\\ud800"}]}}'),
    ],
)
def test_what_no_client_should_send_is_told_as_theirs(tmp_path, route, content):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path)) as url:
        answer = httpx.post(url + route, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        form = {"prompt": (None, "a"), "prompt[]": (None, "b")}
        assert httpx.post(f"{url}/v1/audio/captions", files=form).status_code == 400


def test_a_client_that_hangs_up_amid_its_upload_is_no_fault_of_ours(tmp_path, caplog):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path)) as url:
        with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as raw:
            raw.sendall(
                b"POST /transcribe HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n"
                b"content-type: multipart/form-data; boundary=y\r\n\r\n--y\r\n"
            )
            time.sleep(0.2)
        deadline = time.monotonic() + 5
        while 'route="/transcribe"' not in (told := httpx.get(f"{url}/metrics").text) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert 'aviary_http_requests_total{method="POST",route="/transcribe",status="503"} 1.0' in told
    assert "Traceback" not in caplog.text
