"""What one request, or many that never end, may cost the server: memory, time, and nobody else's answers."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from served import served
from serving import serving

from worker.config import Settings
from worker.entrypoints.http import body, body_limits, multipart
from worker.errors import TooLarge
from worker.protocol.options import OPTIONS

MIB = 1 << 20
SIZE = 16 * MIB
JSON = {"content-type": "application/json"}
WIDE = b'"' + b"A" * 16_000 + b'\xf0\x9f\x98\x80"'
LABEL = b'{"inputs":[{"source":"samples/week.wav","text":"'
FORM = "multipart/form-data; boundary=x"
MOST = body_limits.structure(Settings().max_inputs) - 20


def repeated(head: bytes, unit: bytes, tail: bytes, count: int) -> bytes:
    return head + b",".join([unit] * count) + tail


def long(head: bytes, tail: bytes, char: bytes = b"A") -> bytes:
    return head + char * (SIZE - len(head) - len(tail)) + tail


def fields(head: bytes, tail: bytes, count: int) -> bytes:
    return head + b",".join(b'"%d":0' % number for number in range(count)) + tail


@contextlib.contextmanager
def begun(url: str, size: int, content: bytes, kind: str = "application/json", route: str = "/runsync"):
    """A connection on which a request has been begun whose body has `size` bytes."""
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as raw:
        raw.settimeout(20)
        head = f"POST {route} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: {size}\r\n\r\n"
        raw.sendall(head.encode() + content)
        yield raw


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.mark.parametrize(
    ("route", "content", "status"),
    [
        pytest.param(*case, id=name)
        for name, *case in [
            ("lists", "/runsync", repeated(b'{"input":{"inputs":[', b"[]", b"]}}", SIZE // 3), 413),
            ("objects", "/run", repeated(b'{"input":{"inputs":[', b"{}", b"]}}", SIZE // 3), 413),
            ("strings", "/v1/chat/completions", repeated(b'{"messages":[', b'"x"', b"]}", SIZE // 4), 413),
            ("fields", "/runsync", fields(b'{"input":{', b"}}", 2_000_000), 413),
            ("depth", "/runsync", b'{"input":' + b"[" * SIZE, 413),
            ("few lists", "/runsync", repeated(b'{"input":{"inputs":[', b"[]", b"]}}", MOST // 2), 200),
            ("few fields", "/runsync", fields(b'{"input":{"audio":"x",', b"}}", MOST // 2), 200),
            ("few fields of one", "/runsync", fields(b'{"input":{"inputs":[{', b"}]}}", MOST // 2), 200),
            ("few turns", "/runsync", repeated(b'{"input":{"audio":"x","messages":[', b"{}", b"]}}", MOST // 2), 200),
            ("few levels", "/runsync", repeated(b'{"input":{"audio":"x","timestamps":[', b"1", b"]}}", MOST), 200),
            ("few pairs", "/runsync", repeated(b'{"input":{"task":"evaluate","inputs":[', b"1", b"]}}", MOST), 200),
            ("few scores", "/runsync", repeated(b'{"input":{"task":"score","inputs":[', b"1", b"]}}", MOST), 200),
            ("long source", "/runsync", long(b'{"input":{"audio":"', b'"}}'), 200),
            ("long id", "/runsync", long(b'{"input":{"audio":"x","id":"', b'"}}'), 200),
            ("long wide text", "/run", long(b'{"input":{"audio":"x","id":"\xf0\x9f\x98\x80', b'"}}'), 413),
            ("long escaped text", "/runsync", long(b'{"input":{"audio":"data:,\\ud83d\\ude00', b'"}}'), 413),
            ("wide texts", "/runsync", repeated(b'{"input":{"inputs":[', WIDE, b"]}}", SIZE // len(WIDE)), 413),
            ("long label", "/evaluate", long(LABEL, b'"}]}'), 400),
            ("long label, other route", "/runsync", long(b'{"input":{"task":"evaluate",' + LABEL[1:], b'"}]}}'), 200),
            ("long path", "/transcribe", long(b'{"paths":["', b'"]}'), 400),
            ("long folder", "/evaluate", long(b'{"audio_dir":"', b'"}'), 400),
            ("long field", "/v1/audio/transcriptions", long(b'{"', b'":1}'), 400),
            ("long model", "/v1/audio/captions", long(b'{"audio":"x","model":"', b'"}'), 404),
            ("long prompt", "/v1/chat/completions", long(b'{"messages":"', b'"}'), 400),
            ("spaces", "/runsync", long(b'{"input":{}', b"}", b" "), 200),
            ("digits", "/runsync", long(b'{"input":', b"}", b"1"), 400),
        ]
    ],
)
def test_no_json_silences_the_server_or_takes_more_than_four_times_its_size(server, route, content, status):
    with server.watch():
        answer = httpx.post(server.url + route, content=content, headers=JSON, timeout=60)
    assert answer.status_code == status, answer.text
    assert len(answer.content) < 10_000, "it is not repeated"
    assert server.silent_sec < 1
    assert server.grown <= 4 * max(len(content), SIZE)


def test_wide_texts_are_counted_whatever_their_quotes_and_escapes():
    most = body_limits.WIDE_BYTES
    long_text, wide = b'"' + b"A" * most + b'"', "ö".encode()
    for text in (
        b'{"a":"' + wide + b'","b":' + long_text + b"}",
        b'{"a":"' + wide + b'\\\\","b":' + long_text + b"}",
        b'{"a":' + long_text + b',"b":"\\u00e4\\""}',
    ):
        json.loads(text)
        body_limits.check_wide(text)
    for text in (
        b'{"a":"' + wide + b'\\"' + long_text[1:] + b"}",
        b'{"a":"\\u00e4\\\\\\"' + long_text[1:] + b"}",
        b"[" + b",".join([b'"' + wide + b"A" * 1000 + b'"'] * (most // 1000)) + b"]",
    ):
        json.loads(text)
        with pytest.raises(TooLarge, match="beyond ASCII"):
            body_limits.check_wide(text)


def test_as_many_inputs_as_are_allowed_fit_with_all_their_options():
    turns = [{"role": "user", "content": "Well, what is it: a bird, or a plane?", "audio": False}] * 10
    one = dict.fromkeys(OPTIONS, 1) | {"source": "https://host/a,b:c", "id": "1", "messages": turns}
    one |= {"timestamps": ["word", "segment", "char"]}
    for most in (1, 1000, 20_000):
        content = json.dumps({"input": {"inputs": [one] * most} | one}).encode()
        assert sum(map(content.count, (b",", b":", b"[", b"{"))) <= body_limits.structure(most)


def test_too_much_structure_is_refused_before_the_rest_is_sent(server):
    with begun(server.url, SIZE, b'{"input":[' + b"[]," * MOST) as raw:
        answer = b""
        while b"}}" not in answer:
            answer += raw.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 413 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "too_large"
    assert "MAX_INPUTS" in error["message"]


# Bodies that come slowly, or not at all


def many_fields(count: int) -> bytes:
    """The beginning of a form with text fields of almost 1 MiB."""
    head = b'--x\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n'
    return b"".join(head % number + b"a" * (MIB - 100) + b"\r\n" for number in range(count))


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """A server that waits 0.4 s for a client, has little memory for JSON, and gets all of it back."""
    monkeypatch.setattr(body, "_ROOM", multipart.Room(4 * MIB))
    settings = Settings(skip_model_load=True, data_dir=tmp_path, client_timeout_sec=0.4)
    with serving(settings) as url:
        yield url
    assert body._ROOM._left == 4 * MIB


def rest(raw: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    return b"".join(iter(lambda: raw.recv(1 << 16), b""))


@pytest.mark.parametrize(
    "sent",
    [(b'{"input": ', "application/json", "/runsync"), (b"--x\r\n", FORM, "/transcribe")],
)
def test_a_body_that_stops_is_given_up(slow, sent):
    with begun(slow, 1000, *sent) as raw:
        started = time.monotonic()
        answer = rest(raw)
    assert 0.3 < time.monotonic() - started < 5
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "body_timeout"
    assert "CLIENT_TIMEOUT_SEC" in error["message"]


def test_json_that_drips_is_given_up_in_the_end(slow):
    started = time.monotonic()
    with begun(slow, 100_000, b"{") as raw, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while time.monotonic() - started < 20:
            time.sleep(0.2)
            raw.sendall(b" " * 500)
    assert 10 * 0.4 < time.monotonic() - started < 20


@pytest.mark.parametrize(
    "sent",
    [(b'{"input": ', "application/json", "/runsync"), (many_fields(1)[:200], FORM, "/transcribe")],
)
def test_a_body_that_drips_is_given_up_soon(slow, sent):
    """Without a least rate, 28 forms that sent a byte a second filled a server of 32 connections."""
    started = time.monotonic()
    with begun(slow, 1000, *sent) as raw:
        raw.setblocking(False)
        while True:
            time.sleep(0.05)
            try:
                answer = raw.recv(1 << 16)
                break
            except BlockingIOError:
                assert time.monotonic() - started < 3
                raw.sendall(b" ")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"bytes a second" in answer


def test_an_upload_that_takes_long_and_never_pauses_is_served(slow):
    content = httpx.Request("POST", slow, files={"file": ("a.wav", open("samples/week.wav", "rb").read())})  # noqa: SIM115
    data = content.read()
    pieces = [data[at : at + len(data) // 25] for at in range(0, len(data), len(data) // 25)]

    def slowly() -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            time.sleep(0.2)

    answer = httpx.post(
        f"{slow}/transcribe", content=slowly(), headers={"content-type": content.headers["content-type"]}, timeout=30
    )
    assert answer.json()["text"] == "[dry-run] transcribe of 1.27 s"


def test_stalled_bodies_take_only_so_much_memory_and_only_for_so_long(slow):
    """Without a limit, twenty of these hold 20 MiB for as long as their clients like."""
    with contextlib.ExitStack() as stack:
        raws = [stack.enter_context(begun(slow, 2 * MIB, b" " * MIB)) for _ in range(20)]
        assert httpx.get(f"{slow}/health/live").status_code == 200
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda raw: raw.recv(12)[9:], raws))
    assert {answer for answer in answers if answer} <= {b"408", b"429"}
    assert 1 <= answers.count(b"408") <= 4
    assert body._ROOM._left == 4 * MIB
    assert httpx.post(f"{slow}/runsync", json={"input": {"audio": "samples/week.wav"}}).json()["status"] == "COMPLETED"


def test_unfinished_forms_take_only_so_much_memory(server):
    """Without a limit, eight forms with 100 MB of fields each took 800 MB."""
    with server.watch(), contextlib.ExitStack() as stack:
        for _ in range(8):
            raw = stack.enter_context(begun(server.url, 1 << 28, b"", FORM, "/v1/audio/transcriptions"))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                raw.sendall(many_fields(20))
    assert server.grown < 80 * MIB


def test_too_many_bytes_of_fields_are_refused(server):
    with begun(server.url, 1 << 28, many_fields(4) + many_fields(1)[:2000], FORM, "/transcribe") as raw:
        assert raw.recv(12) == b"HTTP/1.1 413"


def test_stalled_forms_share_the_memory_of_bodies(slow):
    with contextlib.ExitStack() as stack:
        raws = [stack.enter_context(begun(slow, 1 << 24, many_fields(1), FORM, "/transcribe")) for _ in range(12)]
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda raw: raw.recv(12)[9:], raws))
    assert set(answers) == {b"408", b"429"}
    assert answers.count(b"408") <= 4
    assert body._ROOM._left == 4 * MIB


def test_a_body_that_finds_no_memory_is_to_come_again(slow):
    refused = httpx.post(f"{slow}/runsync", content=b" " * 5 * MIB, headers=JSON)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1


def test_the_memory_of_a_body_is_free_again_whatever_becomes_of_it(slow):
    with begun(slow, 2 * MIB, b" " * MIB):
        pass
    long_json = b'{"input": {"audio": "samples/week.wav"}' + b" " * MIB
    for content in (long_json, long_json + b"}", b"[" + b" " * MIB + b"]"):
        httpx.post(f"{slow}/runsync", content=content, headers=JSON)
    streamed = {"audio": "samples/week.wav", "stream": True, "model": "parakeet"}
    assert "[DONE]" in httpx.post(f"{slow}/v1/audio/transcriptions", json=streamed).text
    deadline = time.monotonic() + 5
    while body._ROOM._left != 4 * MIB:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Texts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_any_encoding_is_read(slow, encoding):
    content = json.dumps({"input": {"audio": "nö 語 😀"}}, ensure_ascii=False).encode(encoding)
    answer = httpx.post(f"{slow}/runsync", content=content, headers=JSON)
    assert "nö 語 😀" in answer.json()["output"]["results"][0]["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": "\\ud83d"}', b'{"a": "\xed\xa0\x80"}', b'{"a": "\xff"}', b"[" * 300 + b"]" * 300, b"\xff\xfe{"],
)
def test_what_is_no_json_is_said(slow, content):
    answer = httpx.post(f"{slow}/runsync", content=content, headers=JSON)
    assert answer.status_code == 400
    assert "The body is not valid JSON: " in answer.json()["error"]["message"]
