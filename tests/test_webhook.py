"""Webhooks against servers that fail, refuse and redirect; their signatures; restarts between a job's end and its
delivery."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import socket
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tenacity

from worker.errors import RequestError
from worker.jobs import webhook
from worker.jobs.records import Outcome
from worker.jobs.store import JobStore
from worker.jobs.webhook import Webhooks, check

QUICK = tenacity.wait_fixed(0.02)


class Receiver(ThreadingHTTPServer):
    """Answers with the statuses it was given, then with 200; keeps what it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[int] = []
        self.got: list[tuple[str, dict, bytes]] = []
        self.gate = threading.Event()
        self.gate.set()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def log_message(self, *args) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, dict(self.headers), body))
        self.server.gate.wait(10)
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        self.send_response(status)
        if status == 302:
            self.send_header("Location", self.server.url("/elsewhere"))
        self.send_header("Content-Length", "0")
        with contextlib.suppress(OSError):
            self.end_headers()


@pytest.fixture
def receiver():
    with Receiver() as running:
        yield running
        running.shutdown()


@pytest.fixture
def store(tmp_path):
    with contextlib.closing(JobStore(f"sqlite:///{tmp_path}/jobs.db", tmp_path / "uploads")) as made:
        yield made


@contextlib.contextmanager
def sending(store: JobStore, **options):
    sender = Webhooks(store, **{"allow_private": True, "wait": QUICK} | options)
    sender.start()
    try:
        yield sender
    finally:
        sender.stop()


def finished(store: JobStore, url: str):
    job = store.submit("run", {"inputs": ["a.wav"]}, webhook=url)
    store.claim("a", 10)
    store.finish("a", {job.id: Outcome.completed({"results": []})})
    return store.see(job.id).job


def until(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_the_status_is_posted_and_signed(store, receiver):
    job = finished(store, receiver.url("/hook?x=1"))
    with sending(store, secret="geheim"):
        until(lambda: receiver.got)
    [(path, headers, body)] = receiver.got
    assert path == "/hook?x=1"
    assert json.loads(body) == job.status()
    assert headers["Content-Type"] == "application/json"
    at, digest = (part.split("=")[1] for part in headers["X-Aviary-Signature"].split(","))
    assert abs(int(at) - time.time()) < 30
    assert digest == hmac.new(b"geheim", f"{at}.".encode() + body, hashlib.sha256).hexdigest()


def test_without_a_secret_it_is_not_signed(store, receiver):
    finished(store, receiver.url())
    with sending(store, secret=""):
        until(lambda: receiver.got)
    assert "X-Aviary-Signature" not in receiver.got[0][1]


@pytest.mark.parametrize(
    ("statuses", "tries"),
    [
        ([], 1),
        ([204], 1),
        ([500, 429, 408, 503], 5),
        ([500] * 9, 5),
        ([404], 1),
        ([400], 1),
        ([302], 1),
        ([500, 410], 2),
    ],
)
def test_what_may_pass_is_tried_again_and_what_will_not_is_not(store, receiver, statuses, tries):
    receiver.statuses = list(statuses)
    job = finished(store, receiver.url())
    with sending(store):
        until(lambda: len(receiver.got) >= tries)
        until(lambda: statuses[tries:] == receiver.statuses)
        time.sleep(0.15)
    assert [path for path, *_ in receiver.got] == ["/hook"] * tries
    with sending(store):  # it is over, whichever way it ended
        time.sleep(0.15)
    assert len(receiver.got) == tries
    assert store.see(job.id).job == job


def test_a_dead_receiver_changes_nothing_and_holds_up_nobody(store, receiver):
    dead = [finished(store, "http://127.0.0.1:9/") for _ in range(2)]
    finished(store, receiver.url())
    with sending(store, wait=tenacity.wait_fixed(5)):
        until(lambda: receiver.got, 3)
        started = time.monotonic()
    assert time.monotonic() - started < 2  # and stopping does not wait for the waits
    assert [store.see(job.id).job for job in dead] == dead
    assert {job.id for job in store.webhooks_due(60, 10)} == {job.id for job in dead}


@pytest.mark.slow
def test_receivers_that_drip_hold_up_nobody_for_long(store, receiver, monkeypatch):
    monkeypatch.setattr(webhook, "TIMEOUT_SEC", (0.5, 0.5))

    def drip() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, _ = dripping.accept()
                threading.Thread(target=trickle, args=(taken,), daemon=True).start()

    def trickle(taken: socket.socket) -> None:
        with taken, contextlib.suppress(OSError):
            taken.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            for _ in range(200):
                taken.sendall(b"x")
                time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0)) as dripping:
        threading.Thread(target=drip, daemon=True).start()
        for _ in range(4):
            finished(store, f"http://127.0.0.1:{dripping.getsockname()[1]}/")
        finished(store, receiver.url())
        with sending(store):
            until(lambda: receiver.got)


def test_what_was_not_delivered_is_delivered_by_the_next_process(store, receiver):
    receiver.statuses = [500]
    job = finished(store, receiver.url())
    with sending(store, wait=tenacity.wait_fixed(60)):
        until(lambda: receiver.got)
    with sending(store):
        until(lambda: len(receiver.got) == 2)
    assert json.loads(receiver.got[1][2])["id"] == job.id
    assert not store.webhooks_due(60)


def test_a_delivery_whose_process_was_killed_is_taken_up_again(tmp_path, receiver):
    now = [time.time()]
    with contextlib.closing(
        JobStore(f"sqlite:///{tmp_path}/jobs.db", tmp_path / "uploads", clock=lambda: now[0])
    ) as store:
        finished(store, receiver.url())
        assert store.webhooks_due(60)
        with sending(store):
            time.sleep(0.2)
            assert not receiver.got
        now[0] += 61
        with sending(store):
            until(lambda: receiver.got)


def test_one_is_told_once_by_many_threads_and_processes(store, receiver):
    jobs = [finished(store, receiver.url()) for _ in range(20)]
    with sending(store), sending(store):
        until(lambda: len(receiver.got) >= 20)
        time.sleep(0.2)
    assert sorted(json.loads(body)["id"] for *_, body in receiver.got) == sorted(job.id for job in jobs)


def left(tmp_path) -> int:
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        return connection.execute("SELECT count(*) FROM jobs WHERE webhook_at IS NOT NULL").fetchone()[0]


def test_private_addresses_are_not_connected_to(store, receiver, tmp_path):
    port = receiver.server_address[1]
    for host in ("127.0.0.1", "localhost", "0x7f000001", "[::ffff:127.0.0.1]"):
        finished(store, f"http://{host}:{port}/")
    assert left(tmp_path)
    with sending(store, allow_private=False):
        until(lambda: not left(tmp_path))
    assert not receiver.got


@pytest.mark.parametrize(
    "url", ["https://host.example/a?b=c", "http://8.8.8.8:8080/", "https://user:pass@host.example/"]
)
def test_urls_that_may_be_told(url):
    assert check(url, allow_private=False) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "ftp://host/",
        "file:///etc/passwd",
        "http://",
        "http:///a",
        "http://[bad/",
        "http://host:99999/",
        "http://host:0/",
        "http://h\nost/",
        "http://höst/",
        "http://a b/",
        "http://h/" + "x" * 2048,
        5,
        None,
        ["http://host/"],
        "http://host/\0",
    ],
)
def test_urls_that_are_none(url):
    with pytest.raises(RequestError) as caught:
        check(url, allow_private=True)
    assert caught.value.param == "webhook"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "a.localhost", "10.0.0.1", "169.254.169.254", "[::1]", "[fd00::1]"]
)
def test_urls_that_lead_inside(host):
    assert check(f"http://{host}/", allow_private=True)
    with pytest.raises(RequestError, match="ALLOW_PRIVATE_URLS"):
        check(f"http://{host}/", allow_private=False)
