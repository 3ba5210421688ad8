"""Forms taken apart as they come: the same parts however they are cut, in memory or on disk, and no room lost."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from pathlib import Path

import pytest
from fastapi.requests import Request
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from urllib3 import encode_multipart_formdata

from worker.entrypoints.http import multipart
from worker.errors import RequestError, TooLarge

NAMES = st.text("abcÄ []", min_size=1)
FIELDS = st.tuples(NAMES, st.text())
FILES = st.tuples(NAMES, st.tuples(st.text("xyzü.", min_size=1), st.binary(max_size=5000)))


def ask(
    body: bytes,
    content_type: str,
    *,
    cut: int = 700,
    length: bool = True,
    whole: bool = True,
    encoding: str | None = None,
) -> Request:
    """A request whose body comes in pieces of `cut` bytes; the client hangs up at the end unless it is `whole`."""
    pieces = [body[at : at + cut] for at in range(0, len(body), cut)] or [b""]
    messages = [
        {"type": "http.request", "body": piece, "more_body": not whole or number + 1 < len(pieces)}
        for number, piece in enumerate(pieces)
    ] + [{"type": "http.disconnect"}]
    coming = iter(messages)

    async def receive():
        return next(coming)

    headers = [(b"content-type", content_type.encode())]
    if length:
        headers.append((b"content-length", str(len(body)).encode()))
    if encoding:
        headers.append((b"transfer-encoding", encoding.encode()))
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def read(*args, **options) -> list[multipart.Part]:
    return asyncio.run(multipart.read(ask(*args, **options), lambda _size: None))


def content(part: multipart.Part) -> bytes:
    part.file.seek(0)
    return part.file.read()


@pytest.fixture
def free():
    """Asserts at the end that all of the room was given back."""
    before = multipart._ROOM._left
    yield
    assert multipart._ROOM._left == before


@given(parts=st.lists(FIELDS | FILES, min_size=1, max_size=8), cut=st.integers(1, 6000), length=st.booleans())
def test_the_parts_are_those_that_were_sent(parts, cut, length):
    before = multipart._ROOM._left
    found = read(*encode_multipart_formdata(parts), cut=cut, length=length)
    assert [(part.name, (part.filename, content(part)) if part.is_file else part.text) for part in found] == parts
    for part in found:
        if part.is_file:
            part.file.close()
    assert multipart._ROOM._left == before


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_what_is_no_longer_small_goes_to_disk(size, free, monkeypatch, tmp_path):
    monkeypatch.setattr(multipart, "IN_MEMORY", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = os.urandom(size)
    body, kind = encode_multipart_formdata([("file", ("a", data)), ("more", ("b", b"x" * 2000))])
    one, other = read(body, kind, cut=1 << 16)
    assert content(one) == data
    assert content(other) == b"x" * 2000
    for part in (one, other):
        assert os.fstat(part.file.fileno()).st_dev == tmp_path.stat().st_dev
        part.file.close()


def test_together_they_take_no_more_memory_than_they_may(free, monkeypatch, tmp_path):
    monkeypatch.setattr(multipart._ROOM, "_left", 25_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    body, kind = encode_multipart_formdata([("file", ("a", b"x" * 10_000))])

    def on_disk(part: multipart.Part) -> bool:
        return not isinstance(part.file, io.BytesIO)

    def one() -> multipart.Part:
        (part,) = read(body, kind)
        assert content(part) == b"x" * 10_000
        return part

    held = [one() for _ in range(4)]
    assert [on_disk(part) for part in held] == [False, False, True, True]
    held[0].file.close()
    held.append(one())
    assert not on_disk(held[-1])
    for part in held:
        part.file.close()
        part.file.close()
    assert multipart._ROOM._left == 25_000


BODY, KIND = encode_multipart_formdata([("file", ("a", b"x" * 10_000)), ("model", "m")], boundary="b")


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (BODY, "multipart/form-data", "names no boundary"),
        (BODY, "multipart/form-data; boundary=" + "b" * 1000, "The form cannot be parsed"),
        (BODY, "multipart/form-data; boundary=c", "The form cannot be parsed"),
        (BODY[:-10], KIND, "before its last boundary"),
        (b"", KIND, "before its last boundary"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", KIND, "a part has no name"),
        (b"--b\r\n" + b"x" * 10_000 + b": 1\r\n\r\nx\r\n--b--\r\n", KIND, "The form cannot be parsed"),
        (*encode_multipart_formdata([("f", ("a" * 100_000, b"x"))], boundary="b"), "The form cannot be parsed"),
        (BODY.replace(b"Content-Disp", b"X: y\r\n" * 10_000 + b"Content-Disp", 1), KIND, "The form cannot be parsed"),
        (*encode_multipart_formdata([("f", "x" * (multipart.FIELD_BYTES + 1))], boundary="b"), "f has more than"),
        (*encode_multipart_formdata([("f", "x")] * (multipart.MOST_FIELDS + 1), boundary="b"), "200 fields"),
        (*encode_multipart_formdata([("f", ("a", b"x"))] * (multipart.MOST_FILES + 1), boundary="b"), "16 files"),
    ],
)
def test_what_is_wrong_with_a_form_is_said(body, kind, says, free):
    with pytest.raises(RequestError, match=says):
        read(body, kind)


@pytest.mark.parametrize("cut", [1, 1 << 16])
def test_the_bytes_of_all_fields_are_bounded_and_reserved_before_they_are_kept(cut, free, monkeypatch):
    monkeypatch.setattr(multipart, "FIELDS_BYTES", 400)
    reserved: list[int] = []
    body, kind = encode_multipart_formdata([("f", "x" * 100)] * 4 + [("file", ("a", b"x" * 1000))], boundary="b")
    for part in asyncio.run(multipart.read(ask(body, kind, cut=cut), reserved.append)):
        if part.file is not None:
            part.file.close()
    assert sum(reserved) == 400
    body, kind = encode_multipart_formdata([("file", ("a", b"x")), *[("f", "x" * 100)] * 4, ("g", "x")], boundary="b")
    with pytest.raises(TooLarge, match="more than 400 bytes"):
        read(body, kind, cut=cut)


@pytest.mark.parametrize("limit", [multipart.IN_MEMORY, 1000])
def test_nothing_is_left_of_an_upload_whose_client_hung_up(limit, free, monkeypatch, tmp_path):
    monkeypatch.setattr(multipart, "IN_MEMORY", limit)
    monkeypatch.setattr(multipart, "AT_ONCE", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    with pytest.raises(ClientDisconnect):
        read(BODY[:9000], KIND, whole=False)
    if before is not None:
        assert set(os.listdir("/proc/self/fd")) == before


def test_a_length_beside_chunks_is_not_believed(free):
    (part,) = read(*encode_multipart_formdata([("file", ("a", b"x" * 1000))]), encoding="chunked")
    assert not isinstance(part.file, io.BytesIO)
    part.file.close()


def test_a_file_in_tiny_pieces_takes_no_more_memory_than_any(free, monkeypatch):
    held = []
    monkeypatch.setattr(
        multipart._Form,
        "write_waiting",
        lambda self, write=multipart._Form.write_waiting: (held.append(len(self.waiting)), write(self)),
    )
    (part,) = read(*encode_multipart_formdata([("file", ("a", b"x" * 10_000))]), cut=1, length=False)
    assert content(part) == b"x" * 10_000
    assert max(held) <= multipart.AT_ONCE / 512
    part.file.close()


def test_writing_waits_for_no_other_work_and_ends_before_its_files_are_closed(monkeypatch):
    """Though asyncio's own threads are all taken, and though the request is given up twice meanwhile."""
    monkeypatch.setattr(multipart, "AT_ONCE", 1000)
    begun, go_on, ended = threading.Event(), threading.Event(), []

    def slowly(self, write=multipart._Form.write_waiting):
        begun.set()
        assert go_on.wait(10)
        write(self)
        ended.append([part.file.closed for part in self._parts])

    async def run() -> None:
        busy, loop = threading.Event(), asyncio.get_running_loop()
        taken = [loop.run_in_executor(None, busy.wait, 10) for _ in range(64)]
        reading = asyncio.ensure_future(multipart.read(ask(BODY, KIND, length=False), lambda _size: None))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        for _ in range(2):
            reading.cancel()
            await asyncio.sleep(0.01)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert ended == [[False]]
        busy.set()
        await asyncio.gather(*taken)

    monkeypatch.setattr(multipart._Form, "write_waiting", slowly)
    asyncio.run(run())
