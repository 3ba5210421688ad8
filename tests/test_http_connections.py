"""Clients that connect and send nothing, or half, or never read: the server closes them and serves the others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from served import served
from serving import serving
from starlette.responses import Response, StreamingResponse

from worker.config import Settings
from worker.entrypoints.http import connections

HEAD = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"


@contextlib.contextmanager
def connected(url: str, content: bytes = b""):
    """A client that has sent so much."""
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as raw:
        raw.settimeout(20)
        raw.sendall(content)
        yield raw


def many(stack: contextlib.ExitStack, url: str, count: int, content: bytes = b"") -> list[socket.socket]:
    return [stack.enter_context(connected(url, content)) for _ in range(count)]


def ended(raw: socket.socket) -> bool:
    """Whether the server has closed the connection; what it had sent is read."""
    raw.setblocking(False)
    try:
        while raw.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


def until(true, sec: float = 10) -> None:
    deadline = time.monotonic() + sec
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("content", [b"", HEAD])
def test_idle_clients_shut_nobody_out(tmp_path, content):
    """300 clients of a server that may open 256 files took every one of them, for as long as they liked."""
    with served(tmp_path, files=256) as server, contextlib.ExitStack() as stack:
        many(stack, server.url, 300, content)
        time.sleep(0.5)
        with open("samples/week.wav", "rb") as file:
            answer = httpx.post(f"{server.url}/v1/audio/transcriptions", files={"file": file}, timeout=20)
        assert answer.json()["text"] == "[dry-run] transcribe of 1.27 s"
        assert server.open_files() < 256
        many(stack, server.url, 100, content)
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.log.read_text().count("MAX_CONNECTIONS") == 1


@pytest.mark.parametrize("content", [b"", b"GET", HEAD, HEAD + b"\r\n" + HEAD])
def test_a_client_that_sends_no_head_is_not_waited_for(tmp_path, content):
    settings = Settings(skip_model_load=True, data_dir=tmp_path, client_timeout_sec=0.5)
    with serving(settings) as url, connected(url, content) as raw:
        started = time.monotonic()
        until(lambda: ended(raw), 5)
        assert time.monotonic() - started > 0.3


def test_a_head_that_drips_is_not_waited_for(tmp_path):
    settings = Settings(skip_model_load=True, data_dir=tmp_path, client_timeout_sec=0.5)
    with serving(settings) as url, connected(url, HEAD) as raw, contextlib.suppress(OSError):
        for _ in range(50):
            raw.sendall(b"x: y\r\n")
            time.sleep(0.1)
        pytest.fail("the connection is still open")


def test_a_request_that_takes_long_and_a_client_that_reads_slowly_are_waited_for(tmp_path):
    settings = Settings(skip_model_load=True, data_dir=tmp_path, client_timeout_sec=0.3)
    size = 40_000_000

    async def app(scope, receive, send):
        await asyncio.sleep(1)
        await Response(b"x" * size)(scope, receive, send)

    with serving(settings, app=app) as url, connected(url, HEAD + b"\r\n") as raw:
        read = 0
        while read < size:
            read += len(raw.recv(1 << 22))
            time.sleep(0.05)


def test_a_client_that_reads_nothing_is_not_waited_for(tmp_path):
    settings = Settings(skip_model_load=True, data_dir=tmp_path, client_timeout_sec=0.3)

    async def app(scope, receive, send):
        await Response(b"x" * 40_000_000)(scope, receive, send)

    with serving(settings, app=app) as url, connected(url, HEAD + b"\r\n") as raw:
        time.sleep(2)
        assert len(b"".join(iter(lambda: received(raw), b""))) < 40_000_000


def received(raw: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return raw.recv(1 << 22)
    return b""


def test_the_connection_that_is_idle_for_longest_makes_room(tmp_path, caplog):
    settings = Settings(skip_model_load=True, data_dir=tmp_path, max_connections=8)
    with serving(settings) as url, contextlib.ExitStack() as stack:
        first, *others = many(stack, url, 8)
        for raw in (others[-1], first):  # all are accepted, and the first one is the last that became idle
            raw.sendall(HEAD + b"\r\n")
            assert raw.recv(12) == b"HTTP/1.1 200"
        with caplog.at_level(logging.WARNING, connections.__name__):
            late = many(stack, url, 3)
            until(lambda: ended(others[2]))
        assert [ended(raw) for raw in (first, *others, *late)] == [False, *[True] * 3, *[False] * 7]
    assert caplog.text.count("MAX_CONNECTIONS") == 1


def test_more_requests_than_connections_get_503_and_health_checks_do_not(tmp_path):
    settings = Settings(skip_model_load=True, data_dir=tmp_path, max_connections=16)
    with serving(settings) as url, contextlib.ExitStack() as stack:
        begun = (
            b"POST /runsync HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
        )
        busy = many(stack, url, 14, begun + b"{")
        time.sleep(0.3)
        refused = httpx.get(f"{url}/v1/models")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "too_many_connections"
        assert "MAX_CONNECTIONS" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.get(f"{url}/health/live").status_code == 200
        assert httpx.get(f"{url}/ui/").status_code == 200
        for raw in busy:
            raw.sendall(b"}")
        assert {raw.recv(12) for raw in busy} == {b"HTTP/1.1 400"}
        assert httpx.get(f"{url}/v1/models").status_code == 200


@pytest.mark.parametrize("last", ["/ui/docs/assets/swagger-ui-bundle.js", "/v1/models"])
def test_clients_without_a_key_that_read_nothing_take_no_places(tmp_path, last):
    """31 slow readers of the documentation's scripts took the places of 32 connections, and others got status 503."""
    settings = Settings(skip_model_load=True, data_dir=tmp_path, max_connections=16, api_key="k" * 20)
    paths = ["/ui/docs/assets/swagger-ui-bundle.js"] * 4 + [last]
    content = b"".join(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode() for path in paths)
    with serving(settings) as url, contextlib.ExitStack() as stack:
        many(stack, url, 16, content)
        time.sleep(0.5)
        for _ in range(3):
            answer = httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer " + "k" * 20})
            assert answer.status_code == 200
        assert httpx.get(f"{url}/health/live").status_code == 200


def test_a_client_that_does_not_read_its_error_takes_no_place(tmp_path):
    settings = Settings(skip_model_load=True, data_dir=tmp_path, max_connections=8)

    async def app(scope, receive, send):
        status, pieces = (401, [b"x" * 40_000_000] * 2) if scope["path"] == "/refused" else (200, [b"x"])

        async def content():
            for piece in pieces:
                yield piece

        await StreamingResponse(content(), status)(scope, receive, send)

    with serving(settings, app=app) as url, contextlib.ExitStack() as stack:
        many(stack, url, 7, b"GET /refused HTTP/1.1\r\nhost: localhost\r\n\r\n")
        time.sleep(0.5)
        assert httpx.get(f"{url}/v1/models").status_code == 200


def test_kept_connections_and_pipelines_stay_served(tmp_path):
    settings = Settings(skip_model_load=True, data_dir=tmp_path, max_connections=16)
    with serving(settings) as url, httpx.Client(base_url=url) as http, ThreadPoolExecutor(8) as pool:
        assert {one.status_code for one in pool.map(lambda _: http.get("/health"), range(200))} == {200}
        with connected(url, (HEAD + b"\r\n") * 5) as raw:
            time.sleep(0.5)
            assert raw.recv(1 << 16).count(b"HTTP/1.1 200") == 5
        with connected(url, HEAD + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n") as raw:
            assert raw.recv(12) == b"HTTP/1.1 200"
        with connected(url, HEAD + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n") as raw:
            assert raw.recv(12) == b"HTTP/1.1 400"  # no key of a WebSocket
