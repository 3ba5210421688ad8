"""The engine on the dry run: everything in its place, whatever was thrown at it, and nothing left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from concurrent.futures import CancelledError
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import encode, tone

from worker.audio import ingest
from worker.backends.base import Backend
from worker.config import Settings
from worker.engine import piece_queue
from worker.engine.engine import Engine
from worker.protocol.request import parse
from worker.types import Failure, Request, Result, Transcript


@pytest.fixture
def settings(tmp_path):
    return Settings(
        skip_model_load=True,
        allowed_paths=(tmp_path,),
        data_dir=tmp_path / "data",
        decode_workers=2,
        fetch_timeout_sec=5,
        max_audio_sec=100,
    )


@pytest.fixture
def slow_address():
    """A URL that answers nothing until the event is set."""
    going = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            going.wait(60)
            with contextlib.suppress(OSError):  # who asked may be gone
                self.send_error(404)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    yield url, going
    going.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def engine(settings, tmp_path):
    with Engine(settings) as made:
        yield made
    assert not list((tmp_path / "data").glob("*"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("ingest", "runner"))]


def ask(engine: Engine, payload: dict, **options):
    return engine.submit(parse(payload, engine.settings), **options).result(60)


class Slow(Backend):
    """A backend that can be held, and tells what it has run."""

    overhead_sec = 100.0

    def __init__(self) -> None:
        self.gate, self.seen = threading.Event(), []

    def load(self) -> None:
        pass

    def infer(self, batch):
        self.gate.wait(10)
        self.seen.append([piece.duration_sec for piece in batch.pieces])
        return [Transcript("") for _ in batch.pieces]

    def close(self) -> None:
        pass


def test_thirty_inputs_seven_of_them_bad_in_seven_ways(engine, tmp_path):
    good = [
        str(encode(tone(tmp_path / "s.wav", 1 + i / 10), tmp_path / f"{i}.{suffix}"))
        for i, suffix in enumerate(["wav", "mp3", "flac", "ogg", "m4a"] * 4 + ["wav"] * 3)
    ]
    noise, empty = tmp_path / "noise.mp3", tmp_path / "empty.wav"
    noise.write_bytes(bytes(range(256)) * 40)
    empty.touch()
    bad = {
        "/etc/passwd": "source_forbidden",
        str(tmp_path / "missing.wav"): "source_not_found",
        str(noise): "decode_failed",
        str(empty): "empty_audio",
        "http://127.0.0.1:1/a.wav": "source_forbidden",
        "gopher://host/a": "invalid_input",
        str(tone(tmp_path / "long.flac", 101)): "too_long",
    }
    inputs = list(good)
    for place, source in zip((0, 4, 9, 13, 20, 25, 29), bad, strict=True):
        inputs.insert(place, source)
    assert len(inputs) == 30
    response = ask(engine, {"inputs": [{"source": source, "id": i} for i, source in enumerate(inputs)]})
    for index, (source, one) in enumerate(zip(inputs, response.results, strict=True)):
        assert one.index == index
        if source in bad:
            assert isinstance(one, Failure)
            assert one.error.code == bad[source]
            assert one.id == index
        else:
            assert isinstance(one, Result)
            assert one.duration_sec == pytest.approx(1 + good.index(source) / 10, abs=0.01)
    assert sum(isinstance(one, Failure) for one in response.results) == 7


def test_an_input_that_appears_twice_is_fetched_once_and_answered_twice(settings, tmp_path):
    hits = []
    body = tone(tmp_path / "a.wav", 1).read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/a.wav"
    with Engine(settings.model_copy(update={"allow_private_urls": True})) as engine:
        response = ask(engine, {"inputs": [url, {"source": url, "timestamps": True}, {"source": url, "id": "again"}]})
    server.shutdown()
    server.server_close()
    assert hits == ["/a.wav"]
    assert [one.duration_sec for one in response.results] == [1.0, 1.0, 1.0]
    assert [one.item.view.timestamps for one in response.results] == [(), ("word", "segment"), ()]


def test_every_result_is_told_as_it_is_done_and_a_listener_that_fails_harms_nobody(engine, tmp_path):
    path, told = str(tone(tmp_path / "a.wav", 1)), []

    def listen(outcome):
        told.append(outcome.index)
        raise RuntimeError

    response = ask(engine, {"inputs": [path, "missing:", str(tmp_path / "b.wav")]}, on_result=listen)
    assert sorted(told) == [0, 1, 2]
    assert len(response.results) == 3


def test_a_request_of_nothing_but_rejected_inputs_is_answered(engine):
    response = ask(engine, {"inputs": [5, {"id": "x"}]})
    assert [one.error.code for one in response.results] == ["invalid_input"] * 2


def test_cancelling_drops_what_is_not_on_the_device(settings, tmp_path):
    model, begun = Slow(), threading.Event()
    infer = model.infer
    model.infer = lambda batch: begun.set() or infer(batch)
    with Engine(settings, create_backend=lambda _row: model) as engine:
        first = engine.submit(parse({"inputs": [str(tone(tmp_path / "first.wav", 1))]}, engine.settings))
        assert begun.wait(10)
        paths = [str(tone(tmp_path / f"{i}.wav", 70 + i)) for i in range(5)]
        future = engine.submit(parse({"inputs": paths}, engine.settings))
        deadline = time.monotonic() + 10
        while not engine.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        assert future.cancel()
        model.gate.set()
        with pytest.raises(CancelledError):
            future.result(5)
        assert isinstance(first.result(10).results[0], Result)
        other = ask(engine, {"inputs": [str(tone(tmp_path / "other.wav", 1))]})
        assert isinstance(other.results[0], Result)
        assert model.seen == [[1.0], [1.0]]
        assert engine._ingest.held_sec == pytest.approx(0, abs=1e-6)


def test_decoded_audio_in_flight_is_bounded_and_all_given_back(settings, tmp_path):
    model, held = Slow(), []
    bounded = settings.model_copy(update={"read_ahead_sec": 20.0})
    paths = [str(tone(tmp_path / f"{i}.wav", 5)) for i in range(20)]
    with Engine(bounded, create_backend=lambda _row: model) as engine:
        future = engine.submit(parse({"inputs": paths}, engine.settings))
        for _ in range(50):
            held.append(engine._ingest.held_sec)
            time.sleep(0.01)
        model.gate.set()
        assert len(future.result(30).results) == 20
        assert max(held) >= 20
        assert max(held) <= 20 + bounded.decode_workers * 5 + 0.1
        assert engine._ingest.held_sec == pytest.approx(0, abs=1e-6)


def test_a_small_request_is_not_held_up_by_a_large_one(settings, tmp_path):
    model = Slow()
    many = [str(tone(tmp_path / f"{i}.m4a.wav", 1 + i % 7)) for i in range(60)]
    small = str(tone(tmp_path / "small.wav", 3.3))
    bounded = settings.model_copy(update={"read_ahead_sec": 20.0})
    with Engine(bounded, create_backend=lambda _row: model) as engine:
        large = engine.submit(parse({"inputs": many}, engine.settings))
        short = engine.submit(parse({"inputs": [small]}, engine.settings))
        model.gate.set()
        assert len(short.result(60).results) == 1
        assert len(large.result(60).results) == 60
    order = [round(duration, 1) for batch in model.seen for duration in batch]
    assert order.index(3.3) < 30


def test_concurrent_requests_share_batches(settings, tmp_path):
    model = Slow()
    model.gate.set()
    path = str(tone(tmp_path / "a.wav", 1))
    with Engine(settings.model_copy(update={"batch_wait_sec": 0.5}), create_backend=lambda _row: model) as engine:
        ask(engine, {"inputs": [path]})
        model.seen.clear()
        futures = [engine.submit(parse({"inputs": [path]}, engine.settings)) for _ in range(16)]
        for future in futures:
            future.result(10)
    assert len(model.seen) < 8


def test_every_task_has_an_answer_in_the_dry_run(engine, tmp_path):
    path = str(tone(tmp_path / "a.wav", 2))
    kinds = {
        task: type(ask(engine, {"task": task, "inputs": [path]}).results[0].output).__name__
        for task in ("transcribe", "translate", "caption", "chat", "embed", "analyze")
    }
    assert kinds == {
        "transcribe": "Transcript",
        "translate": "Transcript",
        "caption": "Caption",
        "chat": "Reply",
        "embed": "Embedding",
        "analyze": "Analysis",
    }


def test_closing_answers_what_was_not_even_read_yet(settings, tmp_path):
    model = Slow()
    paths = [str(tone(tmp_path / f"{i}.wav", 5)) for i in range(20)]
    engine = Engine(settings.model_copy(update={"read_ahead_sec": 10.0}), create_backend=lambda _row: model)
    future = engine.submit(parse({"inputs": paths}, engine.settings))
    time.sleep(0.2)
    model.gate.set()
    engine.close()
    response = future.result(10)
    assert len(response.results) == 20
    assert any(isinstance(one, Failure) and one.error.code == "cancelled" for one in response.results)
    late = engine.submit(parse({"inputs": paths[:1]}, engine.settings)).result(5)
    assert late.results[0].error.code == "cancelled"


def test_closing_waits_for_no_slow_address_and_answers_for_it(settings, slow_address):
    url, _ = slow_address
    engine = Engine(settings.model_copy(update={"allow_private_urls": True, "fetch_timeout_sec": 50}))
    future = engine.submit(parse({"inputs": [f"{url}/{i}" for i in range(20)]}, engine.settings))
    time.sleep(0.3)
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 4
    assert {one.error.code for one in future.result(0).results} == {"cancelled"}


def test_a_request_without_inputs_is_answered(engine):
    assert engine.submit(Request("pocketsphinx", ())).result(5).results == ()


def test_the_last_result_is_told_before_the_request_is_done(engine, tmp_path):
    paths, told = [str(tone(tmp_path / f"{i}.wav", 1)) for i in range(6)], []

    def slow(outcome):
        time.sleep(0.05)
        told.append(outcome.index)

    ask(engine, {"inputs": paths}, on_result=slow)
    assert sorted(told) == list(range(6))


def test_loading_again_starts_no_further_decoders(engine):
    for _ in range(3):
        engine.load("pocketsphinx").result(10)
    assert engine._ingest._decoder._idle.qsize() <= engine.settings.decode_workers


def test_somebody_who_waits_goes_before_the_background(settings, tmp_path):
    model = Slow()
    model.gate.set()
    infer = model.infer
    model.infer = lambda batch: time.sleep(0.02) or infer(batch)
    many = [str(tone(tmp_path / f"{i}.wav", 1)) for i in range(100)]
    one = str(tone(tmp_path / "one.wav", 2))
    bounded = settings.model_copy(update={"read_ahead_sec": 10.0, "batch_max_items": 2})
    with Engine(bounded, create_backend=lambda _row: model) as engine:
        background = engine.submit(dataclasses.replace(parse({"inputs": many}, engine.settings), background=True))
        while len(model.seen) < 3:
            time.sleep(0.01)
        before = len(model.seen)
        ask(engine, {"inputs": [one]})
        assert len(model.seen) - before <= 3, "it overtook what was read already"
        assert [2.0] in model.seen, "and shared its batch with nobody of the background"
        assert not background.done()
        assert len(background.result(30).results) == 100


@pytest.mark.parametrize("somebody_waits", [True, False])
def test_the_background_reads_far_ahead_only_while_nobody_waits(settings, tmp_path, somebody_waits):
    model, one = Slow(), str(tone(tmp_path / "one.wav", 1))
    many = [str(tone(tmp_path / f"{i}.wav", 1)) for i in range(30)]
    bounded = settings.model_copy(update={"read_ahead_sec": 25.0, "batch_max_total_sec": 5.0})
    with Engine(bounded, create_backend=lambda _row: model) as engine:
        waiting = engine.submit(
            dataclasses.replace(parse({"inputs": [one]}, engine.settings), background=not somebody_waits)
        )
        while engine.held_sec < 1:
            time.sleep(0.01)
        background = engine.submit(dataclasses.replace(parse({"inputs": many}, engine.settings), background=True))
        held = []
        while len(held) < 20 or held[-1] != held[-20]:
            time.sleep(0.02)
            held.append(engine.held_sec)
        most = 1 + 5 if somebody_waits else 25
        assert most <= held[-1] <= most + settings.decode_workers
        model.gate.set()
        assert len(waiting.result(10).results) == 1
        assert len(background.result(10).results) == 30


def test_the_background_gets_its_turn_however_many_wait(settings, tmp_path, monkeypatch):
    for module in (ingest, piece_queue):
        monkeypatch.setattr(module, "BACKGROUND_SEC", 0.3)
    model, stop = Slow(), threading.Event()
    model.gate.set()
    infer = model.infer
    model.infer = lambda batch: time.sleep(0.02) or infer(batch)
    path, other = str(tone(tmp_path / "a.wav", 1)), str(tone(tmp_path / "b.wav", 2))
    with Engine(settings.model_copy(update={"batch_max_items": 1}), create_backend=lambda _row: model) as engine:

        def keep_asking():
            while not stop.is_set():
                ask(engine, {"inputs": [path] * 1})

        threads = [threading.Thread(target=keep_asking) for _ in range(8)]
        for thread in threads:
            thread.start()
        background = dataclasses.replace(parse({"inputs": [other]}, engine.settings), background=True)
        try:
            assert len(engine.submit(background).result(10).results) == 1
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_what_waits_for_a_model_to_load_holds_up_no_other(settings, tmp_path):
    gate, quick = threading.Event(), Slow()
    quick.gate.set()

    def create(row):
        if row.name == "parakeet":
            gate.wait(10)
        return quick

    paths = [str(tone(tmp_path / f"{i}.wav", 5)) for i in range(10)]
    with Engine(settings.model_copy(update={"read_ahead_sec": 10.0}), create_backend=create) as engine:
        waiting = engine.submit(parse({"inputs": paths, "model": "parakeet"}, engine.settings))
        time.sleep(0.3)
        assert len(ask(engine, {"inputs": paths[:3], "model": "pocketsphinx"}).results) == 3
        assert not waiting.done()
        gate.set()
        waiting.result(10)


def test_cancelled_requests_leave_a_queue_that_is_full(settings, tmp_path):
    model = Slow()
    paths = [str(tone(tmp_path / f"{i}.wav", 5)) for i in range(30)]
    with Engine(settings.model_copy(update={"read_ahead_sec": 5.0}), create_backend=lambda _row: model) as engine:
        first = engine.submit(parse({"inputs": paths}, engine.settings))
        while engine.held_sec < 5:
            time.sleep(0.01)
        futures = [engine.submit(parse({"inputs": paths}, engine.settings)) for _ in range(20)]
        for future in futures:
            future.cancel()
        assert sum(map(len, engine._ingest._turns.values())) <= 1
        model.gate.set()
        assert len(first.result(30).results) == 30


def test_slow_addresses_keep_no_file_from_its_decoder(settings, tmp_path, slow_address):
    url, going = slow_address
    with Engine(settings.model_copy(update={"allow_private_urls": True, "fetch_timeout_sec": 30})) as engine:
        slow = engine.submit(parse({"inputs": [f"{url}/{i}" for i in range(settings.decode_workers)]}, engine.settings))
        time.sleep(0.2)
        assert isinstance(ask(engine, {"inputs": [str(tone(tmp_path / "a.wav", 1))]}).results[0], Result)
        assert not slow.done()
        going.set()
        slow.result(20)
