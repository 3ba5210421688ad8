"""What nginx keeps of a body: nothing without a key, nothing on routes that read none, and nothing for ever."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from pathlib import Path

import httpx
import psutil
import pytest
from gateway_host import WEEK, Host, hosting

from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.http import body_limits
from worker.entrypoints.http.app import create_app
from worker.entrypoints.http.gateway import nginx

needs_nginx = pytest.mark.skipif(
    nginx.find() is None or not Path("/proc/self/fd").is_dir(), reason="nginx or /proc is missing"
)

SIZE = 8 << 20  # of which all but the last byte is sent
FORM = "multipart/form-data; boundary=x"
KEY = "Authorization: Bearer k"
OTHERS = (
    "/",
    "/health",
    "/ping",
    "/ui/x",
    "/docs",
    "/stats",
    "/metrics",
    "/v1/models",
    "/cancel/x",
    "/status/x",
    "/no",
)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with hosting(tmp_path_factory.mktemp("gw"), 2, API_KEY="k", CLIENT_TIMEOUT_SEC="4") as running:
        running.settle()
        yield running


def kept(host: Host) -> int:
    """How many bytes of bodies the processes of nginx hold on disk, in files that have no name any more."""
    found = 0
    for process in host.family():
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):  # a process that has ended holds nothing
            links = list(Path(f"/proc/{process.pid}/fd").iterdir()) if "nginx" in process.name() else []
            for link in links:
                with contextlib.suppress(FileNotFoundError):
                    if "client_body" in os.readlink(link):
                        found += link.stat().st_blocks * 512
    return found


@contextlib.contextmanager
def sending(host: Host, method: str, path: str, *headers: str):
    """A client that has sent all but the last byte of a large body, or as much of it as the server let it."""
    with socket.create_connection(("127.0.0.1", host.port)) as raw:
        raw.settimeout(10)
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {SIZE}", *headers]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            raw.sendall("\r\n".join([*lines, f"Content-Type: {FORM}", "", ""]).encode())
            raw.sendall(b"x" * (SIZE - 1))
        yield raw


def status(raw: socket.socket) -> int:
    """The status of the response; 0 if the connection was closed before it could be read."""
    with contextlib.suppress(ConnectionResetError):
        return int(raw.recv(1 << 16)[9:12] or 0)
    return 0


@needs_nginx
@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        *(("POST", path, ()) for path in (*OTHERS, *body_limits.ROUTES)),
        *(("POST", path, (KEY,)) for path in OTHERS),
        *(("OPTIONS", path, ()) for path in ("/run", "/health", "/v1/audio/transcriptions")),
        *((method, "/run", (KEY,)) for method in ("GET", "PUT", "DELETE", "OPTIONS")),
        *(
            ("POST", path, ())
            for path in ("/ui/../run", "/health/../run", "//run", "/ui/%2e%2e/run", "/run/", "/run?a=b")
        ),
        ("POST", "/run", ("Authorization: Bearer wrong",)),
    ],
)
def test_no_body_is_kept_that_is_not_to_be_read(host, method, path, headers):
    with sending(host, method, path, *headers) as raw:
        assert status(raw) in (0, 401, 413)
        assert kept(host) == 0


@needs_nginx
@pytest.mark.parametrize("start", ["POST /health", "OPTIONS /run", "POST /cancel/x", "GET /transcribe"])
def test_a_chunked_body_is_not_kept_either(host, start):
    with socket.create_connection(("127.0.0.1", host.port)) as raw:
        raw.settimeout(10)
        head = f"{start} HTTP/1.1\r\nHost: localhost\r\n{KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            raw.sendall(head.encode() + b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
        assert status(raw) in (0, 413)
        assert kept(host) == 0


@needs_nginx
def test_what_is_kept_of_a_body_is_dropped_when_its_client_stops(host):
    with sending(host, "POST", "/transcribe", KEY):
        host.until(lambda: kept(host) > SIZE // 2, 5)
        host.until(lambda: kept(host) == 0, 15)


@needs_nginx
def test_a_head_that_does_not_end_is_dropped(host):
    with socket.create_connection(("127.0.0.1", host.port)) as raw:
        raw.settimeout(15)
        raw.sendall(b"GET /health HTTP/1.1\r\n")
        assert b"200" not in raw.recv(1 << 16)


@needs_nginx
def test_bodies_reach_the_routes_that_read_them(host):
    assert host.transcribe().json()["text"] == "[dry-run] transcribe of 1.27 s"
    large = WEEK + b"\0" * SIZE
    for path in ("/transcribe", "/v1/audio/transcriptions"):
        answer = host.client.post(path, headers=host.headers, files={"file": ("a.wav", large)})
        assert "[dry-run]" in answer.json()["text"]
    moved = host.client.post("/run/", headers=host.headers, json={"input": {"audio": "x" * 5000}})
    assert moved.status_code == 307
    job = host.client.post("/run", headers=host.headers, json={"input": {"audio": "samples/week.wav"}}).json()["id"]
    assert host.client.post(f"/cancel/{job}", headers=host.headers, json={}).status_code in (200, 400)
    assert host.client.post(f"/status/{job}", headers=host.headers, json={}).status_code == 200
    refused = host.client.post("/health", content=b"x" * 5000)
    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "too_large"


@needs_nginx
@pytest.mark.parametrize(
    "line",
    [b"GET /%00 HTTP/1.1", b"GET /a\0b HTTP/1.1", b"GET /%zz HTTP/1.1", b"nonsense", b"GET  HTTP/1.1", b"\x16\x03\x01"],
)
def test_what_is_no_http_is_answered_and_is_no_fault_of_the_gateway(host, line):
    before = len(host.log.read_text())
    with socket.create_connection(("127.0.0.1", host.port)) as raw:
        raw.settimeout(10)
        raw.sendall(line + b"\r\nHost: localhost\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(1 << 16), b""))
    assert json.loads(answer[answer.index(b"{") :])["error"]["code"] == "invalid_request"
    assert b" 400 " in answer or not answer.startswith(b"HTTP")
    assert "empty URI" not in host.log.read_text()[before:]


def test_the_routes_with_bodies_are_those_of_the_application():
    settings = Settings(skip_model_load=True)
    with Engine(settings) as engine:
        paths = create_app(settings, engine).openapi()["paths"]
    with_body = {path for path, methods in paths.items() if any("requestBody" in one for one in methods.values())}
    assert with_body == set(body_limits.ROUTES)


def test_nginx_opens_no_more_files_than_it_may_and_waits_as_long_as_a_worker():
    text = nginx.configuration(Settings(client_timeout_sec=7), Path("/x"), [])
    (files,), (connections,) = (
        re.findall(rf"{name} (\d+);", text) for name in ("worker_rlimit_nofile", "worker_connections")
    )
    assert int(connections) * 2 <= int(files)
    for name in ("client_header_timeout", "client_body_timeout", "send_timeout", "keepalive_timeout"):
        assert f"{name} 7000ms;" in text


@needs_nginx
def test_a_gateway_without_keys_takes_bodies_where_they_are_read_and_no_foreign_pages(tmp_path):
    with hosting(tmp_path, 2) as host:
        assert host.transcribe().status_code == 200
        with sending(host, "POST", "/ping") as raw:
            assert status(raw) in (0, 413)
            assert kept(host) == 0
        assert httpx.post(f"{host.url}/cancel/x", headers={"origin": "https://evil.example"}).status_code == 403
        for path in ("/stats", "/jobs"):
            assert httpx.get(host.url + path, headers={"host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("path", "takes"),
    [("/v2/any-name/run", True), ("/v2/x/runsync", True), ("/v2/x/y/run", False), ("/v2//run", False)],
)
def test_nginx_accepts_bodies_on_the_routes_of_any_endpoint(path, takes):
    text = nginx.configuration(Settings(), Path("/x"), [])
    (pattern,) = re.findall(r'location ~ "(.*)" \{', text)
    assert bool(re.match(pattern.replace(r"\z", r"\Z"), path)) == takes
