"""Sources → open files, against servers that are slow, break off, lie and redirect, and a real S3 API."""

from __future__ import annotations

import base64
import contextlib
import errno
import gzip
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import child
from worker.audio import download, fetch
from worker.audio.fetch import Fetcher
from worker.config import Settings
from worker.errors import (
    Cancelled,
    DecodeFailed,
    DiskFull,
    EmptyAudio,
    FetchFailed,
    InputError,
    SourceForbidden,
    SourceNotFound,
    TooLarge,
)
from worker.types import S3Access, Source

BODY = bytes(range(256)) * 400


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hits: list[str] = []
        self.sent = 0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.hits.append(path)
        count = self.server.hits.count(path)
        if path == "/ok":
            self.reply(200, BODY)
        elif path == "/empty":
            self.reply(200)
        elif path in ("/404", "/403", "/410", "/500"):
            self.reply(int(path[1:]))
        elif path == "/busy":
            self.reply(429, Retry_After="0") if count == 1 else self.reply(503) if count == 2 else self.reply(200, BODY)
        elif path == "/cut":
            self.reply(200, BODY[:1000], Content_Length=str(len(BODY)))
        elif path == "/cut-once":
            self.reply(200, BODY[:1000], Content_Length=str(len(BODY))) if count == 1 else self.reply(200, BODY)
        elif path == "/lies-short":
            self.reply(200, BODY, Content_Length="1000")
        elif path == "/gzip":
            self.reply(200, gzip.compress(BODY), Content_Encoding="gzip")
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(10_000):
                self.wfile.write(BODY)
        elif path == "/drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(600):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        elif path in ("/drip-head", "/drip-chunk"):
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nX: "
                if path == "/drip-head"
                else b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"
            )
            for _ in range(600):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif path == "/silent":
            time.sleep(30)
        elif path == "/to-much":
            self.send_response(302)
            self.send_header("Location", "/ok")
            self.end_headers()
            for _ in range(1_000):
                self.wfile.write(BODY)
                self.server.sent += len(BODY)
        elif path == "/loop":
            self.reply(302, Location="/loop")
        elif path == "/moved":
            self.reply(307, Location="/ok")
        elif path == "/to-file":
            self.reply(302, Location="file:///etc/passwd")
        elif path == "/to-metadata":
            self.reply(302, Location="http://169.254.169.254/latest/")
        else:
            self.reply(404)

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()


@pytest.fixture
def server():
    with Server() as running:
        yield running
        running.shutdown()


@pytest.fixture
def settings(tmp_path):
    return Settings(
        data_dir=tmp_path / "data",
        allowed_paths=(tmp_path / "allowed",),
        allow_private_urls=True,
        fetch_timeout_sec=20,
        max_audio_bytes=1_000_000,
    )


@pytest.fixture(autouse=True)
def nothing_left(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "allowed").mkdir()
    yield
    assert not list((tmp_path / "data").glob("*"))
    assert len(os.listdir("/proc/self/fd")) <= before + 12  # sessions keep a few connections alive, files none


def read(settings: Settings, location: str, kind="url", **options) -> bytes:
    with Fetcher(settings).open(Source(kind, location, **options)) as file:
        assert file.tell() == 0
        return file.read()


@pytest.mark.parametrize("path", ["/ok", "/busy", "/cut-once", "/gzip", "/moved"])
def test_gets_the_bytes(server, settings, path):
    assert read(settings, server.url(path)) == BODY


def test_a_server_that_lies_about_its_length_gets_what_it_promised(server, settings):
    assert read(settings, server.url("/lies-short")) == BODY[:1000]


@pytest.mark.parametrize(
    ("path", "error", "retryable", "hits"),
    [
        ("/404", SourceNotFound, False, 1),
        ("/410", SourceNotFound, False, 1),
        ("/403", FetchFailed, False, 1),
        ("/500", FetchFailed, True, 4),
        ("/cut", FetchFailed, True, 4),
        ("/empty", EmptyAudio, False, 1),
        ("/loop", FetchFailed, False, 6),
        ("/to-file", SourceForbidden, False, 1),
        ("/endless", TooLarge, False, 1),
    ],
)
def test_failures_are_told_apart(server, settings, path, error, retryable, hits, monkeypatch):
    monkeypatch.setattr(download, "_BACK_OFF", lambda _state: 0.01)
    with pytest.raises(error) as caught:
        read(settings, server.url(path + "?signature=SECRET"))
    assert type(caught.value) is error
    assert caught.value.retryable is retryable
    assert "SECRET" not in caught.value.message
    assert len(server.hits) == hits


@pytest.mark.parametrize("path", ["/drip", "/drip-head", "/drip-chunk", "/silent"])
def test_a_drip_does_not_outlast_the_deadline(server, settings, path):
    started = time.monotonic()
    with pytest.raises(FetchFailed, match="FETCH_TIMEOUT_SEC"):
        read(settings.model_copy(update={"fetch_timeout_sec": 1.0}), server.url(path))
    assert time.monotonic() - started < 3


def test_nobody_there(settings, monkeypatch):
    monkeypatch.setattr(download, "_BACK_OFF", lambda _state: 0.01)
    with pytest.raises(FetchFailed, match="could not be read") as caught:
        read(settings, "http://127.0.0.1:9/a.wav")
    assert caught.value.retryable


@pytest.mark.parametrize("path", ["/drip", "/drip-head", "/silent"])
def test_cancelling_stops_a_download(server, settings, path):
    started = time.monotonic()
    with pytest.raises(Cancelled):
        Fetcher(settings).open(Source("url", server.url(path)), cancelled=lambda: time.monotonic() - started > 0.3)
    assert time.monotonic() - started < 2


def test_a_redirect_s_body_is_not_read(server, settings):
    assert read(settings, server.url("/to-much")) == BODY
    assert server.sent < 50 * len(BODY)  # what fits into the sockets' buffers


def test_private_addresses_are_refused_and_not_connected_to(server, settings):
    guarded = settings.model_copy(update={"allow_private_urls": False})
    with pytest.raises(SourceForbidden, match="ALLOW_PRIVATE_URLS"):
        read(guarded, server.url("/ok"))
    assert not server.hits


def test_a_redirect_to_the_metadata_address_is_refused(server, settings, monkeypatch):
    real = download.safe_http.is_public
    monkeypatch.setattr(download.safe_http, "is_public", lambda address: address == "127.0.0.1" or real(address))
    with pytest.raises(SourceForbidden):
        read(settings.model_copy(update={"allow_private_urls": False}), server.url("/to-metadata"))


@pytest.mark.parametrize("url", ["http://", "http:///a", "http://[bad/a", "http://host:99999/", "http://a..b/"])
def test_a_bad_url_is_an_error_of_ours(settings, url, monkeypatch):
    monkeypatch.setattr(download, "_BACK_OFF", lambda _state: 0.01)
    with pytest.raises((FetchFailed, InputError)):
        read(settings, url)


def test_paths_inside_only(settings, tmp_path):
    inside, outside = tmp_path / "allowed" / "a.wav", tmp_path / "b.wav"
    inside.write_bytes(BODY)
    outside.write_bytes(BODY)
    (tmp_path / "allowed" / "link.wav").symlink_to(outside)
    assert read(settings, str(inside), "path") == BODY
    assert read(settings, inside.as_uri(), "path") == BODY
    for path in (
        str(outside),
        str(tmp_path / "allowed" / "link.wav"),
        str(tmp_path / "allowed" / ".." / "b.wav"),
        "/etc/passwd",
        "/no/such/file",
        f"/proc/self/root{outside}",
    ):
        with pytest.raises(SourceForbidden, match="ALLOWED_PATHS"):
            read(settings, path, "path")
    assert read(settings, str(outside), "path", trusted=True) == BODY


def test_what_is_no_regular_file(settings, tmp_path):
    folder = tmp_path / "allowed"
    os.mkfifo(folder / "fifo")
    for name, error in (
        ("missing", SourceNotFound),
        ("fifo", SourceForbidden),
        ("", SourceForbidden),
        ("a\0b", SourceNotFound),
    ):
        with pytest.raises(error):
            read(settings, f"{folder}/{name}", "path")
    (folder / "empty").touch()
    with pytest.raises(EmptyAudio):
        read(settings, str(folder / "empty"), "path")
    (folder / "large").write_bytes(b"x" * 1_000_001)
    with pytest.raises(TooLarge):
        read(settings, str(folder / "large"), "path")


@given(st.binary(min_size=1, max_size=300), st.booleans(), st.booleans())
def test_data_uris_give_back_what_was_encoded(body, urlsafe, padded):
    text = (base64.urlsafe_b64encode if urlsafe else base64.b64encode)(body).decode()
    if not padded:
        text = text.rstrip("=")
    assert read(Settings(), f"data:audio/wav;base64,{text}", "data") == body


def test_data_uris_that_are_none(settings):
    for text, error in (
        ("data:audio/wav;base64,@@@@", DecodeFailed),
        ("data:audio/wav;base64,", EmptyAudio),
        ("data:nothing", DecodeFailed),
        ("data:;base64," + "A" * 1_400_000, TooLarge),
    ):
        with pytest.raises(error):
            read(settings, text, "data")
    assert read(settings, "data:,a%20b", "data") == b"a b"


@given(st.text("aé%4=20 ", max_size=60), st.integers(3, 9))
def test_percent_encoding_in_pieces_decodes_as_in_one(text, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "_PIECE_CHARS", piece)
        assert b"".join(fetch._unquoted(f"data:,{text}", 6)) == unquote_to_bytes(text)


@given(st.binary(min_size=1, max_size=60), st.integers(3, 9), st.booleans(), st.data())
def test_base64_in_pieces_decodes_as_in_one(body, piece, percent, data):
    text = base64.b64encode(body).decode()
    at = data.draw(st.integers(0, len(text)))
    text = f"{text[:at]} \n{text[at:]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "_PIECE_CHARS", piece)
        assert read(Settings(), f"data:;base64,{quote(text) if percent else text}", "data") == body


@pytest.mark.parametrize("text", ["QQ==QQ==", "QUJD=QUJD", "QQ=" + "=" * 70_000 + "QUJD", "QUJDR", "\ud800", "é"])
def test_base64_that_goes_on_after_its_padding_or_breaks_off_is_refused(settings, text):
    with pytest.raises(DecodeFailed, match="not base64"):
        read(settings, f"data:;base64,{text}", "data")


def test_the_limit_on_size_holds_for_the_decoded_bytes(settings):
    assert len(read(settings, "data:," + "%41" * 1_000_000, "data")) == 1_000_000
    for text in ("data:," + "%41" * 1_000_001, "data:," + "A" * 1_000_001, "data:;base64," + "%41" * 1_400_000):
        with pytest.raises(TooLarge):
            read(settings, text, "data")


@pytest.mark.parametrize(("head", "unit"), [("data:,", "%41"), ("data:;base64,", "QUJD"), ("data:;base64,", "%51")])
def test_a_large_data_uri_takes_little_memory_and_leaves_time_to_other_threads(tmp_path, head, unit):
    """The parent of the measured process would count as its memory, so a process of its own starts it."""
    program = f"""
import resource, sys, threading, time
from worker.audio.fetch import Fetcher
from worker.config import Settings
from worker.types import Source

fetcher = Fetcher(Settings(data_dir={str(tmp_path)!r}))
fetcher.open(Source("data", "data:,x")).close()
source = Source("data", {head!r} + {unit!r} * (10_000_000 // {len(unit)} // 4 * 4))
done, longest = threading.Event(), [0.0]
def tick():
    last = time.monotonic()
    while not done.is_set():
        time.sleep(0.001)
        longest[0], last = max(longest[0], time.monotonic() - last), time.monotonic()
thread = threading.Thread(target=tick)
thread.start()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = fetcher.open(source).seek(0, 2)
done.set()
thread.join()
print(size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, longest[0])
"""
    launcher = "import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', sys.argv[1]], text=True))"
    printed = subprocess.check_output([sys.executable, "-c", launcher, program], text=True, cwd=child.ROOT)
    size, memory, longest = map(float, printed.split())
    assert size >= 10_000_000 / len(unit) * 0.74
    assert memory <= 30_000_000, "besides the URI itself"
    assert longest < 1


@pytest.mark.parametrize("size", [100, 1_000_000])
def test_a_full_disk_is_told_as_such_and_a_download_not_tried_again(server, settings, monkeypatch, size):
    class FullDisk(io.FileIO):
        def write(self, _data) -> int:
            raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Fetcher, "_temporary", lambda _self: io.BufferedRandom(FullDisk(os.memfd_create("full"), "r+")))
    for location, kind in (("data:," + "A" * size, "data"), (server.url("/ok"), "url")):
        with pytest.raises(DiskFull) as caught:
            read(settings, location, kind)
        assert (caught.value.code, caught.value.status, caught.value.retryable) == ("disk_full", 507, True)
    assert len(server.hits) == 1


def test_a_small_disk_that_fills_up_is_told_as_such(settings, tmp_path):
    disk = tmp_path / "data"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=False).returncode:
        pytest.skip("this user cannot mount a disk")
    try:
        with pytest.raises(DiskFull):
            read(settings, "data:," + "A" * 900_000, "data")
        assert read(settings, "data:,abc", "data") == b"abc"
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.fixture(scope="module")
def s3_server():
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(s3_server):
    import boto3

    client = boto3.client(
        "s3", endpoint_url=s3_server, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
    )
    client.create_bucket(Bucket="clips")
    client.put_object(Bucket="clips", Key="a folder/ä.wav", Body=BODY)
    return s3_server


def test_s3_with_the_worker_s_credentials(settings, bucket):
    mine = settings.model_copy(
        update={
            "bucket_endpoint_url": bucket,
            "bucket_access_key_id": "k",
            "bucket_secret_access_key": "s",
            "allow_private_urls": False,
        }
    )
    assert read(mine, "s3://clips/a folder/ä.wav", "s3") == BODY
    with pytest.raises(SourceNotFound):
        read(mine, "s3://clips/missing.wav", "s3")


def test_s3_with_the_job_s_credentials_does_not_reach_private_endpoints(settings, bucket):
    access = S3Access(bucket, "k", "s")
    assert read(settings, "s3://clips/a folder/ä.wav", "s3", s3=access) == BODY
    with pytest.raises(SourceForbidden):
        read(settings.model_copy(update={"allow_private_urls": False}), "s3://clips/a folder/ä.wav", "s3", s3=access)


@pytest.mark.parametrize(
    ("endpoint", "location"), [("minio:9000", "s3://clips/a.wav"), ("https://s3.example", "s3://a b/c")]
)
def test_s3_that_cannot_be_is_told_as_such(settings, endpoint, location):
    with pytest.raises(InputError, match="name or endpoint cannot be used"):
        read(settings, location, "s3", s3=S3Access(endpoint, "k", "s"))


def test_s3_without_credentials_says_which_to_set(settings, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(FetchFailed, match="BUCKET_ACCESS_KEY_ID"):
        read(settings, "s3://clips/a.wav", "s3")


@pytest.mark.parametrize("kind", [tempfile.TemporaryFile, io.BytesIO])
def test_an_upload_that_is_read_twice_at_once_is_read_whole_each_time(settings, kind):
    """As a scored recording is, for its text and for its features."""
    with kind() as upload:
        upload.write(BODY)
        upload.flush()
        source, fetcher = Source("file", "upload:0", file=upload), Fetcher(settings)
        with fetcher.open(source) as one, fetcher.open(source) as other:
            assert one.read(1000) == other.read(1000) == BODY[:1000]
            assert one.read() == other.read() == BODY[1000:]
            upload.close()
            one.seek(0)
            assert one.read() == BODY
    with pytest.raises(Cancelled):
        fetcher.open(source)


@pytest.mark.parametrize("kind", [tempfile.TemporaryFile, io.BytesIO])
def test_an_upload_of_nothing_says_so(settings, kind):
    with kind() as upload, pytest.raises(EmptyAudio):
        Fetcher(settings).open(Source("file", "upload:0", file=upload))


def test_audio_in_memory_is_written_when_it_is_read_and_left_to_nobody(settings):
    written = []

    def write(file):
        written.append(file)
        file.write(BODY)

    source, fetcher = Source("memory", "input 0", write=write), Fetcher(settings)
    assert not written
    with fetcher.open(source) as one, fetcher.open(source) as other:
        assert one.read(1000) == other.read(1000) == BODY[:1000]
        assert one.read() == other.read() == BODY[1000:]
    assert len(written) == 2
    assert all(file.closed for file in written)


def test_audio_in_memory_that_is_empty_or_cannot_be_written_says_so(settings):
    written = []

    def refuse(file):
        written.append(file)
        raise InputError("not audio")

    with pytest.raises(InputError, match="not audio"):
        Fetcher(settings).open(Source("memory", "input 0", write=refuse))
    with pytest.raises(EmptyAudio):
        Fetcher(settings).open(Source("memory", "input 0", write=written.append))
    assert all(file.closed for file in written)


def test_an_allowed_folder_may_be_a_link_that_is_changed(settings, tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").write_bytes(name.encode())
    current = tmp_path / "current"
    current.symlink_to(tmp_path / "old")
    linked = settings.model_copy(update={"allowed_paths": (current,)})
    assert read(linked, str(current / "a.wav"), "path") == b"old"
    current.unlink()
    current.symlink_to(tmp_path / "new")
    assert read(linked, str(current / "a.wav"), "path") == b"new"
    with pytest.raises(SourceForbidden):
        read(linked, str(tmp_path / "old" / "a.wav"), "path")
