"""Heads and trailers that are too large: status 431, in little memory, and nobody else waits."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path

import pytest
import uvicorn
from served import Served, served

from worker.config import Settings
from worker.entrypoints.http import serve
from worker.entrypoints.http.app import create_app
from worker.entrypoints.http.request_heads import HEAD_BYTES, HEADERS, PIPELINED

MIB = 1 << 20
GET = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n"
CHUNKED = (
    b"POST /runsync HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("data")) as running:
        yield running


@contextlib.contextmanager
def connected(port: int, content: bytes = b""):
    """A client that has sent so much, or as much of it as the server let it."""
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.settimeout(20)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            raw.sendall(content)
        yield raw


def answers(raw: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    return b"".join(iter(lambda: raw.recv(1 << 16), b""))


def lines(count: int, size: int = 1) -> bytes:
    return b"".join(b"x-%d: %s\r\n" % (number, b"a" * size) for number in range(count))


LARGE = [
    pytest.param(*case, id=name)
    for name, *case in [
        ("headers", GET, b"a:b\r\n" * 13_000),
        ("header", GET + b"x: ", b"a" * 65_536),
        ("name", GET, b"a" * 65_536),
        ("url", b"GET /", b"a" * 65_536),
        ("empty lines", b"", b"\r\n" * 32_768),
        ("trailers", CHUNKED, b"a:b\r\n" * 13_000),
        ("trailer", CHUNKED + b"x: ", b"a" * 65_536),
    ]
]


@pytest.mark.parametrize(("begin", "unit"), LARGE)
def test_an_endless_head_is_not_collected(server: Served, begin: bytes, unit: bytes):
    """Without a limit, 60 MB of headers took 1.4 GB, and one header of 60 MB stopped the server for 2.6 s."""
    sent = 0
    with (
        server.watch(),
        connected(server.port, begin) as raw,
        contextlib.suppress(BrokenPipeError, ConnectionResetError),
    ):
        while sent < 30 * MIB:
            raw.sendall(unit)
            sent += len(unit)
    assert sent < 30 * MIB, "the server has read everything"
    assert server.grown < 16 * MIB
    assert server.silent_sec < 1


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(content, id=name)
        for name, content in [
            ("headers", GET + lines(HEADERS) + b"\r\n"),
            ("header", GET + b"x: " + b"a" * HEAD_BYTES + b"\r\n\r\n"),
            ("header bytes", GET + lines(70, 1000) + b"\r\n"),
            ("url", b"GET /" + b"a" * HEAD_BYTES + b" HTTP/1.1\r\n\r\n"),
            ("trailers", CHUNKED + lines(HEADERS)),
            ("trailer", CHUNKED + b"x: " + b"a" * HEAD_BYTES + b"\r\n\r\n"),
        ]
    ],
)
def test_a_head_beyond_the_limits_gets_431(server: Served, content: bytes):
    with connected(server.port, content) as raw:
        head, _, body = answers(raw).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert error["code"] == "head_too_large"
    assert error["type"] == "invalid_request_error"
    assert str(HEAD_BYTES) in error["message"]


def test_a_head_within_the_limits_is_served(server: Served):
    most = GET + lines(HEADERS - 2) + b"x: "
    long = most + b"a" * (HEAD_BYTES - len(most)) + b"\r\n\r\n"
    with connected(server.port, long * 2 + GET + b"connection: close\r\n\r\n") as raw:
        assert answers(raw).count(b"HTTP/1.1 200") == 3
    with connected(server.port, CHUNKED + lines(100) + b"\r\n" + GET + b"connection: close\r\n\r\n") as raw:
        assert [part[:3] for part in answers(raw).split(b"HTTP/1.1 ")] == [b"", b"400", b"200"]


def test_bodies_are_no_heads(server: Served):
    """Chunks of one byte, and as many as a large body has."""
    body = b'{"input": {"audio": "' + b"a" * 20_000 + b'"}}'
    head = CHUNKED.partition(b"\r\n\r\n")[0] + b"\r\nconnection: close\r\n\r\n"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    with connected(server.port, head + chunks + b"0\r\n\r\n") as raw:
        assert answers(raw).startswith(b"HTTP/1.1 200 ")
    whole = head.replace(b"transfer-encoding: chunked", b"content-length: %d" % (8 * MIB))
    with connected(server.port, whole + body + b" " * (8 * MIB - len(body))) as raw:
        assert answers(raw).startswith(b"HTTP/1.1 200 ")


def test_no_431_is_taken_for_the_response_to_an_earlier_request(server: Served):
    begun = (
        CHUNKED.partition(b"\r\n\r\n")[0].replace(b"transfer-encoding: chunked", b"content-length: 2") + b"\r\n\r\n{}"
    )
    with connected(server.port, begun + GET + lines(HEADERS) + b"\r\n") as raw:
        assert b"431" not in answers(raw).partition(b"\r\n")[0]


def test_waiting_requests_of_one_connection_are_bounded(server: Served):
    """Without a limit, 20 clients that pipelined a megabyte took 180 MB and stopped the server for 2.9 s."""
    page = b"GET /ui/docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with server.watch(), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(server.port, page * 3000)) for _ in range(16)]
        for raw in clients:
            with contextlib.suppress(ConnectionResetError):
                answers(raw)
    assert server.grown < 32 * MIB
    with connected(server.port, GET.join([b"", *[b"\r\n"] * PIPELINED]) + GET + b"connection: close\r\n\r\n") as raw:
        assert answers(raw).count(b"HTTP/1.1 200") == PIPELINED + 1


def test_a_unix_socket_has_the_same_limit(tmp_path: Path):
    settings = Settings(skip_model_load=True, data_dir=tmp_path)
    with socket.socket(socket.AF_UNIX) as bound, socket.socket(socket.AF_UNIX) as raw:
        bound.bind(str(tmp_path / "socket"))
        bound.listen()
        server = uvicorn.Server(serve.config(create_app(settings), settings, behind_proxy=True))
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            raw.settimeout(20)
            raw.connect(str(tmp_path / "socket"))
            raw.sendall(GET + lines(HEADERS) + b"\r\n")
            assert answers(raw).startswith(b"HTTP/1.1 431 ")
        finally:
            server.should_exit = True
            thread.join(20)
