"""Without an API key, no web page reaches the server but its own and those of CORS_ORIGINS; every other client does."""

from __future__ import annotations

import re
import socket
import threading

import httpx
import pytest
import uvicorn
from serving import serving

from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.http import serve
from worker.entrypoints.http.app import create_app

EVIL = {"origin": "https://evil.example"}
FORM = {"files": {"file": b"x"}}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    settings = Settings(
        skip_model_load=True,
        data_dir=tmp_path_factory.mktemp("data"),
        host="127.0.0.5",
        cors_origins=("https://app.example", "app://desktop"),
    )
    with serving(settings) as url:
        yield url


@pytest.fixture(scope="module")
def routes(url):
    """Every method and path of the application, and some paths outside the document."""
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    found = [(method.upper(), re.sub(r"{.*?}", "x", path)) for path in paths for method in paths[path]]
    assert ("POST", "/v1/audio/transcriptions") in found
    assert len(found) > 25
    return [
        *found,
        *(("GET", path) for path in ("/ui/", "/docs", "/openapi.json")),
        ("POST", "/no"),
        ("DELETE", "/jobs"),
    ]


def refused(answer: httpx.Response) -> bool:
    """Whether the answer is the refusal, which must be OpenAI's error object."""
    if answer.status_code != 403:
        return False
    if answer.request.method != "HEAD":
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == ("forbidden", "invalid_request_error")
        assert "CORS_ORIGINS" in error["message"] or "API_KEY" in error["message"]
    return True


@pytest.mark.parametrize(
    "host", ["attacker.example", "127.0.0.1.attacker.example:8000", "localhost.", "a@localhost", ""]
)
def test_no_route_answers_to_a_foreign_name(url, routes, host):
    with httpx.Client(base_url=url) as http:
        assert [r for r in routes if not refused(http.request(*r, headers={"host": host}))] == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:81", "127.0.0.1:8000", "[::1]:8000", "127.0.0.5", "[::1]"])
def test_every_route_answers_to_its_own_names(url, routes, host):
    with httpx.Client(base_url=url) as http:
        assert [r for r in routes if refused(http.request(*r, headers={"host": host}))] == []


@pytest.mark.parametrize(
    "headers",
    [
        EVIL,
        EVIL | {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "http://localhost:3000", "sec-fetch-site": "same-site"},
        {"origin": "null"},
        {"origin": "https://app.example.evil.example"},
    ],
)
def test_no_foreign_page_has_an_effect_through_any_route(url, routes, headers):
    with httpx.Client(base_url=url) as http:
        for method, path in routes:
            effect = method not in ("GET", "HEAD", "OPTIONS")
            assert refused(http.request(method, path, headers=headers)) == effect, (method, path)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "https://app.example", "sec-fetch-site": "cross-site"},
        {"origin": "app://desktop"},
        {"origin": "http://localhost:8000", "host": "localhost:8000"},
        {"origin": "https://proxied.example", "sec-fetch-site": "same-origin"},
        {"origin": "chrome-extension://abc", "sec-fetch-site": "none"},
    ],
)
def test_the_own_page_named_origins_and_programs_are_served(url, routes, headers):
    with httpx.Client(base_url=url) as http:
        assert [r for r in routes if refused(http.request(*r, headers=headers))] == []


@pytest.mark.parametrize(("route", "options"), [("/transcribe/async", FORM), ("/cancel/x", {}), ("/transcribe", FORM)])
def test_a_form_of_another_site_is_refused_before_it_does_anything(url, route, options):
    before = httpx.get(f"{url}/jobs").json()["counts"]
    assert refused(httpx.post(url + route, headers=EVIL, **options))
    assert httpx.get(f"{url}/jobs").json()["counts"] == before


@pytest.mark.parametrize("key", ["k", "off"])
def test_a_server_with_a_key_or_behind_one_that_checks_keys_has_any_name(tmp_path, key):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path, api_key=key)) as url:
        headers = EVIL | {"host": "speech.example", "authorization": "Bearer k", "sec-fetch-site": "cross-site"}
        assert httpx.get(f"{url}/jobs", headers=headers).status_code == 200
        assert httpx.post(f"{url}/cancel/x", headers=headers).status_code == 404


def test_every_origin_may_be_named(tmp_path):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path, cors_origins=("*",))) as url:
        assert httpx.post(f"{url}/cancel/x", headers=EVIL).status_code == 404
        assert refused(httpx.get(f"{url}/jobs", headers={"host": "evil.example"}))


def test_a_client_without_a_host_is_no_browser(url):
    with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port)) as raw:
        raw.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert b"200 OK" in raw.recv(100)


def test_a_unix_socket_is_trusted_and_the_clients_that_a_gateway_names_are_not(tmp_path):
    settings = Settings(skip_model_load=True, data_dir=tmp_path)
    with Engine(settings) as engine, socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        server = uvicorn.Server(serve.config(create_app(settings, engine), settings, behind_proxy=True))
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            transport = httpx.HTTPTransport(uds=str(tmp_path / "socket"), retries=5)
            with httpx.Client(base_url="http://any.example", transport=transport) as http:
                assert http.get("/jobs").status_code == 200
                assert http.post("/cancel/x", headers=EVIL).status_code == 404
                for address in ("127.0.0.1", "::1", "10.0.0.1"):
                    assert refused(http.get("/jobs", headers={"x-forwarded-for": address}))
                assert http.get("/jobs", headers={"x-forwarded-for": "unix:"}).status_code == 200
        finally:
            server.should_exit = True
            thread.join(20)


STAINLESS = [
    "arch",
    "lang",
    "os",
    "package-version",
    "retry-count",
    "runtime",
    "runtime-version",
    "timeout",
    "helper-method",
]


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/audio/transcriptions"), ("DELETE", "/v1/files/file-1")])
def test_openai_s_client_in_a_page_of_a_named_origin_passes_the_preflight(url, method, path):
    asked = ["authorization", "content-type", *(f"x-stainless-{name}" for name in STAINLESS), "openai-project"]
    headers = {"access-control-request-method": method, "access-control-request-headers": ",".join(asked)}
    named, evil = (
        httpx.options(f"{url}{path}", headers=headers | {"origin": origin})
        for origin in ("https://app.example", "https://evil.example")
    )
    assert named.status_code == 200, named.text
    assert named.headers["access-control-allow-origin"] == "https://app.example"
    allowed = {name.strip() for name in named.headers["access-control-allow-headers"].lower().split(",")}
    assert allowed >= set(asked)
    assert evil.status_code == 400
    assert "access-control-allow-origin" not in evil.headers
    answer = httpx.get(f"{url}/v1/models", headers={"origin": "https://app.example"})
    exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
    assert exposed >= {"retry-after", "x-should-retry"}
