"""Realtime transcription over a real WebSocket, with OpenAI's own client and with pocketsphinx."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import soundfile
import soxr
from conftest import edits
from serving import serving
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from worker.audio.decode import Decoder
from worker.backends.common import vad
from worker.backends.dry_run import DryRun
from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.http import serve
from worker.entrypoints.http.app import create_app
from worker.entrypoints.http.health_port import HealthPort
from worker.entrypoints.http.realtime.session import Session
from worker.entrypoints.http.realtime.sessions import PENDING
from worker.evaluation.metrics import normalize

ROOT = Path(__file__).parent.parent
TEXTS = json.loads((ROOT / "samples" / "texts.json").read_text())
TRANSCRIPTION = {"intent": "transcription"}
needs_weights = pytest.mark.skipif(not vad.is_available(), reason="needs onnxruntime and silero-vad")


def settings(folder, **values) -> Settings:
    return Settings(data_dir=folder, **{"skip_model_load": True} | values)


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    with serving(settings(tmp_path_factory.mktemp("data"))) as url:
        yield url


@pytest.fixture(scope="module")
def sphinx(tmp_path_factory):
    with serving(settings(tmp_path_factory.mktemp("data"), model="pocketsphinx", skip_model_load=False)) as url:
        yield url


def recording(name: str, rate: int) -> np.ndarray:
    """Samples in [-1, 1]."""
    samples, own = soundfile.read(ROOT / "samples" / name, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), own, rate)


def silence(seconds: float, rate: int) -> np.ndarray:
    return np.zeros(round(seconds * rate), np.float32)


def pcm(samples: np.ndarray) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def mu_law(samples: np.ndarray) -> bytes:
    """G.711, as libsndfile encodes it."""
    file = io.BytesIO()
    soundfile.write(file, samples, 8_000, subtype="ULAW", format="RAW")
    return file.getvalue()


def client(url: str, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key)


def address(url: str, query: str = "intent=transcription") -> str:
    return f"{url.replace('http', 'ws', 1)}/v1/realtime?{query}"


async def speak(connection, data: bytes, size: int = 4801) -> None:
    """Append the audio in pieces that split samples."""
    for at in range(0, len(data), size):
        await connection.input_audio_buffer.append(audio=base64.b64encode(data[at : at + size]).decode())


async def until(connection, kind: str, count: int = 1) -> list:
    """The events up to the count-th one of a kind."""
    events = []
    while sum(event.type.endswith(kind) for event in events) < count:
        events.append(await asyncio.wait_for(connection.recv(), 60))
    return events


def transcripts(events: list) -> list[str]:
    return [event.transcript for event in events if event.type.endswith("transcription.completed")]


def kinds(events: list) -> list[str]:
    return [event.type.rpartition(".")[2] for event in events]


# OpenAI's client


@needs_weights
@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "rate", "encode", "text"),
    [
        ({"type": "audio/pcm", "rate": 24_000}, 24_000, pcm, TEXTS["week.wav"]),
        ({"type": "audio/pcm", "rate": 16_000}, 16_000, pcm, TEXTS["week.wav"]),
        ({"type": "audio/pcmu"}, 8_000, mu_law, "the next week"),  # what pocketsphinx makes of a telephone's band
    ],
)
def test_openai_s_client_gets_the_words_of_two_turns_in_order(sphinx, shape, rate, encode, text):
    async def run() -> list:
        async with client(sphinx).realtime.connect(extra_query=TRANSCRIPTION) as connection:
            await connection.session.update(session={"type": "transcription", "audio": {"input": {"format": shape}}})
            spoken = [silence(0.5, rate), recording("week.wav", rate), silence(1, rate)]
            await speak(connection, encode(np.concatenate(2 * spoken)))
            return await until(connection, "transcription.completed", 2)

    events = asyncio.run(run())
    assert kinds(events[:2]) == ["created", "updated"]
    assert kinds(events).count("speech_started") == kinds(events).count("speech_stopped") == 2
    assert transcripts(events) == [text] * 2
    items = [event.item_id for event in events if event.type.endswith("committed")]
    assert [event.item_id for event in events if event.type.endswith("completed")] == items
    for item in items:
        deltas = [event.delta for event in events if event.type.endswith("delta") and event.item_id == item]
        assert "".join(deltas) == text


@pytest.mark.slow
def test_manual_turns_and_an_interruption(sphinx):
    async def run() -> list:
        async with client(sphinx).realtime.connect(extra_query=TRANSCRIPTION) as connection:
            await connection.session.update(
                session={"type": "transcription", "audio": {"input": {"turn_detection": None}}}
            )
            await speak(connection, pcm(recording("doctor.flac", 24_000)))
            await connection.input_audio_buffer.clear()
            await speak(connection, pcm(recording("week.wav", 24_000)))
            await connection.input_audio_buffer.commit()
            first = await until(connection, "transcription.completed")
            await connection.input_audio_buffer.commit()
            return first + await until(connection, "error")

    events = asyncio.run(run())
    assert kinds(events) == [
        "created", "updated", "cleared", "committed", "added", "done", "delta", "completed", "error",
    ]  # fmt: skip
    assert transcripts(events) == [TEXTS["week.wav"]]
    assert events[-1].error.code == "input_audio_buffer_commit_empty"


# The published weights of a Whisper, and a streaming model


@needs_weights
@pytest.mark.slow
def test_whisper_writes_the_words_of_a_recording_in_order_with_interruptions_and_silence(whisper_tiny_en, tmp_path):
    """The recording has long silences; the client gives up a sentence in the middle, and one connection breaks off."""
    names = ("doctor.flac", "week.wav", "people.mp3")
    rate = 24_000

    def sound(name: str) -> np.ndarray:
        with (ROOT / "samples" / name).open("rb") as file:
            return soxr.resample(np.array(decoder.decode(file).samples), 16_000, rate)

    async def run(url: str) -> list:
        async with client(url).realtime.connect(extra_query=TRANSCRIPTION) as broken:
            await speak(broken, pcm(sound("doctor.flac")), size=24_000)
        async with client(url).realtime.connect(extra_query=TRANSCRIPTION) as connection:
            given_up = np.concatenate([silence(0.5, rate), sound("window.ogg")[: 2 * rate]])
            await speak(connection, pcm(given_up), size=24_000)
            await connection.input_audio_buffer.clear()
            parts = [part for name in names for part in (silence(2.5, rate), sound(name))]
            await speak(connection, pcm(np.concatenate([*parts, silence(4, rate)])), size=9_601)
            return await until(connection, "transcription.completed", len(names))

    decoder = Decoder(Settings())
    try:
        with serving(settings(tmp_path, model=str(whisper_tiny_en), skip_model_load=False, device="cpu")) as url:
            events = asyncio.run(run(url))
    finally:
        decoder.close()
    texts = transcripts(events)
    wrong = [
        edits(*(normalize(text, "whisper", "en").split() for text in (TEXTS[name], text)))
        for name, text in zip(names, texts, strict=True)
    ]
    assert sum(wrong) <= 2, texts
    assert max(wrong) <= 1, texts
    items = [event.item_id for event in events if event.type.endswith("committed")]
    assert [event.item_id for event in events if event.type.endswith("completed")] == items
    for item, text in zip(items, texts, strict=True):
        assert "".join(e.delta for e in events if e.type.endswith("delta") and e.item_id == item) == text


@pytest.fixture(scope="module")
def streaming(tmp_path_factory):
    """A server of a tiny streaming model with chunks of 560 ms, and its engine."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_nemotron

    model = tiny_nemotron.save(tmp_path_factory.mktemp("model"))
    values = {"model": str(model), "skip_model_load": False, "device": "cpu"}
    configured = settings(tmp_path_factory.mktemp("data"), **values)
    sizes: list[int] = []
    with (
        Engine(configured, on_batch=lambda batch, _seconds, _device: sizes.append(len(batch.pieces))) as engine,
        serving(configured, engine) as url,
    ):
        yield url, sizes


async def live(url: str, samples: np.ndarray, turns: int, *, paced: bool) -> tuple[list, list[float], list[float]]:
    """The events of a session of 16 kHz, when each arrived, and when each 100 ms of audio was sent."""
    piece, sent, arrived, events = 1600, [], [], []
    async with client(url).realtime.connect(extra_query=TRANSCRIPTION) as connection:
        shape = {"type": "audio/pcm", "rate": 16_000}
        await connection.session.update(session={"type": "transcription", "audio": {"input": {"format": shape}}})

        async def send() -> None:
            due = time.monotonic()
            for at in range(0, len(samples), piece):
                due += piece / 16_000
                if paced:
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                await speak(connection, pcm(samples[at : at + piece]))
                sent.append(time.monotonic())

        sending = asyncio.create_task(send())
        while kinds(events).count("completed") < turns:
            events.append(await asyncio.wait_for(connection.recv(), 60))
            arrived.append(time.monotonic())
        await sending
    return events, arrived, sent


@needs_weights
@pytest.mark.slow
def test_a_streaming_model_s_deltas_are_its_transcript_however_many_speak(streaming):
    url, sizes = streaming
    samples = np.concatenate([silence(1, 16_000), recording("week.wav", 16_000), silence(1, 16_000)])
    alone, _, _ = asyncio.run(live(url, np.tile(samples, 2), 2, paced=False))
    first, second = transcripts(alone)
    assert first
    assert second
    completed = [event for event in alone if event.type.endswith("completed")]
    for event in completed:
        deltas = [e.delta for e in alone if e.type.endswith("delta") and e.item_id == event.item_id]
        assert len(deltas) > 1
        assert "".join(deltas) == event.transcript

    async def many() -> list[list[str]]:
        found = await asyncio.gather(*(live(url, np.tile(samples, 2), 2, paced=False) for _ in range(12)))
        return [transcripts(events) for events, _, _ in found]

    sizes.clear()
    assert asyncio.run(many()) == [[first, second]] * 12
    assert max(sizes) > 2, "the chunks of the sessions did not share batches"


@needs_weights
@pytest.mark.slow
def test_text_comes_while_the_speaker_talks_within_200_ms_of_its_chunk(streaming):
    url, _ = streaming
    samples = np.concatenate([silence(1, 16_000), *2 * [recording("week.wav", 16_000)], silence(1, 16_000)])
    asyncio.run(live(url, samples, 1, paced=False))  # warms up
    events, arrived, sent = asyncio.run(live(url, samples, 1, paced=True))
    started = next(event for event in events if event.type.endswith("speech_started"))
    assert "delta" in kinds(events[: kinds(events).index("speech_stopped")])
    deltas = [when for event, when in zip(events, arrived, strict=True) if event.type.endswith("delta")]
    begin = started.audio_start_ms / 1000
    # The n-th delta is of the n-th chunk, or of a later one if some chunks have no text, so no wait is underestimated.
    full = [sent[int((begin + 0.56 * number) * 10)] for number in range(1, len(deltas))]
    waits = [when - ready for when, ready in zip(deltas[:-1], full, strict=True)]
    print(f"a delta came {max(waits):.3f} s after its chunk at most, {np.median(waits):.3f} s in the middle")
    assert len(waits) >= 3
    assert np.median(waits) < 0.2


@needs_weights
def test_silence_has_no_turn_and_errors_leave_the_session_open(dry):
    async def run() -> list:
        async with client(dry).realtime.connect(extra_query=TRANSCRIPTION) as connection:
            await speak(connection, pcm(silence(3, 24_000)), size=30_000)
            await connection.send({"type": "response.create"})
            await connection.send({"type": "input_audio_buffer.append", "audio": "?"})
            await connection.session.update(
                session={"type": "transcription", "audio": {"input": {"transcription": {"model": "nobody"}}}}
            )
            await speak(connection, pcm(np.concatenate([recording("week.wav", 24_000), silence(1, 24_000)])))
            return await until(connection, "transcription.completed")

    events = asyncio.run(run())
    assert kinds(events)[:5] == ["created", "error", "error", "error", "speech_started"]
    assert [event.error.code for event in events[1:4]] == ["invalid_request", "invalid_request", "model_not_found"]
    assert transcripts(events)[0].startswith("[dry-run] transcribe of ")


def test_the_last_event_before_an_unexpected_end_has_an_id(dry, monkeypatch):
    monkeypatch.setattr(Session, "receive", lambda *_: 1 / 0)

    async def run() -> tuple[dict, int]:
        async with connect(address(dry)) as socket:
            await socket.recv()
            await socket.send("{}")
            last = json.loads(await socket.recv())
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            return last, closed.value.rcvd.code

    last, code = asyncio.run(run())
    assert (last["type"], last["error"]["type"], code) == ("error", "server_error", 1011)
    assert last["event_id"].startswith("event_")
    assert last["error"]["event_id"] is None


def test_half_a_surrogate_pair_in_an_event_does_not_end_the_session(dry):
    async def run() -> list[dict]:
        async with connect(address(dry)) as socket:
            prompt = {"audio": {"input": {"transcription": {"model": "whisper", "prompt": "\ud800"}}}}
            await socket.send(json.dumps({"type": "session.update", "session": prompt}))
            await socket.send(json.dumps({"type": "\ud800", "event_id": "\ud800"}))
            return [json.loads(await socket.recv()) for _ in range(3)]

    _created, updated, error = asyncio.run(run())
    assert updated["session"]["audio"]["input"]["transcription"]["prompt"] == "\ud800"
    assert error["error"]["event_id"] == "\ud800"


def test_log_probabilities_are_openai_s(dry):
    async def run() -> list:
        async with client(dry).realtime.connect(extra_query=TRANSCRIPTION) as connection:
            await connection.session.update(
                session={
                    "type": "transcription",
                    "include": ["item.input_audio_transcription.logprobs"],
                    "audio": {"input": {"turn_detection": None}},
                }
            )
            await speak(connection, pcm(recording("week.wav", 24_000)))
            await connection.input_audio_buffer.commit()
            return await until(connection, "transcription.completed")

    completed = asyncio.run(run())[-1]
    assert "".join(token.token for token in completed.logprobs).strip() == completed.transcript
    assert completed.logprobs[0].logprob < 0
    assert bytes(completed.logprobs[0].bytes).decode() == completed.logprobs[0].token


# Who may connect


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    with serving(settings(tmp_path_factory.mktemp("data"), api_key="secret", rate_limit="5/minute")) as url:
        yield url


async def first_event(url: str, **options) -> dict:
    async with connect(url, **options) as socket:
        return json.loads(await socket.recv())


def refusal(url: str, **options) -> tuple[int, str]:
    """The status and the error's code."""
    with pytest.raises(InvalidStatus) as refused:
        asyncio.run(first_event(url, **options))
    response = refused.value.response
    return response.status_code, json.loads(response.body)["error"]["code"]


def test_a_key_is_required_in_the_header_or_as_a_subprotocol(guarded):
    assert refusal(address(guarded)) == (401, "invalid_api_key")
    wrong = {"Authorization": "Bearer wrong"}
    assert refusal(address(guarded), additional_headers=wrong) == (401, "invalid_api_key")

    async def browser() -> str | None:
        async with connect(address(guarded), subprotocols=["realtime", "openai-insecure-api-key.secret"]) as socket:
            assert json.loads(await socket.recv())["type"] == "session.created"
            return socket.subprotocol

    assert asyncio.run(browser()) == "realtime"

    async def official() -> str:
        async with client(guarded, "secret").realtime.connect(extra_query=TRANSCRIPTION) as connection:
            return (await connection.recv()).type

    assert asyncio.run(official()) == "session.created"
    right = {"Authorization": "Bearer secret"}
    codes = [asyncio.run(_code(address(guarded), right)) for _ in range(4)]
    assert codes == [101, 101, 101, 429]  # a connection counts as a request


async def _code(url: str, headers: dict[str, str]) -> int:
    try:
        await first_event(url, additional_headers=headers)
    except InvalidStatus as refused:
        return refused.response.status_code
    return 101


def test_a_page_of_another_site_cannot_connect_to_a_server_without_a_key(dry):
    assert refusal(address(dry), origin="https://evil.example") == (403, "forbidden")
    assert refusal(address(dry), additional_headers={"Sec-Fetch-Site": "cross-site"}) == (403, "forbidden")
    assert asyncio.run(first_event(address(dry), origin=dry))["type"] == "session.created"


def test_the_model_of_the_address_is_the_session_s(dry):
    created = asyncio.run(first_event(address(dry, "intent=transcription&model=canary")))
    assert created["session"]["audio"]["input"]["transcription"]["model"] == "canary"
    assert refusal(address(dry, "model=nobody")) == (404, "model_not_found")


def test_other_paths_have_no_websocket(dry):
    for path in ("/v1/models", "/ping", "/no"):
        with pytest.raises(InvalidStatus) as refused:
            asyncio.run(first_event(dry.replace("http", "ws", 1) + path))
        assert refused.value.response.status_code in (403, 404)


def test_the_port_of_health_checks_has_no_sessions(tmp_path):
    sent: list[dict] = []

    async def send(message) -> None:
        sent.append(message)

    app = HealthPort(create_app(settings(tmp_path)), 80)
    scope = {
        "type": "websocket",
        "path": "/v1/realtime",
        "server": ("10.0.0.1", 80),
        "headers": [],
        "extensions": {"websocket.http.response": {}},
    }
    asyncio.run(app(scope, None, send))
    assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 404)


def test_behind_runpod_s_load_balancer_the_server_s_own_key_counts(tmp_path):
    with serving(settings(tmp_path, api_key="secret", runpod_mode="http")) as url:
        runpod = {"Authorization": "Bearer rpa_key"}
        assert refusal(address(url), additional_headers=runpod) == (401, "invalid_api_key")
        both = runpod | {"X-API-Key": "secret"}
        assert asyncio.run(first_event(address(url), additional_headers=both))["type"] == "session.created"


def test_an_upgrade_during_an_earlier_response_closes_the_connection(dry):
    head = b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    head += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"

    async def run() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(dry.rpartition(":")[2]))
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n" + head)
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return answer

    assert b"101 Switching" not in asyncio.run(run())


# Limits


def test_sessions_beyond_the_limit_are_refused_and_ended_ones_make_room(tmp_path):
    with serving(settings(tmp_path, realtime_sessions=2)) as url:

        async def run() -> None:
            async with connect(address(url)) as first, connect(address(url)):
                with pytest.raises(InvalidStatus) as refused:
                    await first_event(address(url))
                assert refused.value.response.status_code == 503
                await first.close()
                await asyncio.sleep(0.1)
                assert (await first_event(address(url)))["type"] == "session.created"

        asyncio.run(run())


class Gated(DryRun):
    """The dry run with a gate before loading and before each batch, which may fail."""

    def __init__(self, model, settings) -> None:
        super().__init__(model, settings)
        self.may_load, self.may_infer, self.fails = threading.Event(), threading.Event(), False

    def load(self) -> None:
        self.may_load.wait(60)

    def infer(self, batch):
        self.may_infer.wait(60)
        if self.fails:
            raise KeyError("a clue for the log")
        return super().infer(batch)


@contextlib.contextmanager
def gated(folder, **values):
    """The URL of a server, and its backend."""
    backends = []
    configured = settings(folder, **values)

    def create(row):
        backends.append(Gated(row, configured))
        return backends[-1]

    with Engine(configured, create_backend=create) as engine, serving(configured, engine, wait=False) as url:
        while not backends:
            time.sleep(0.01)
        try:
            yield url, backends[0]
        finally:
            backends[0].may_load.set()
            backends[0].may_infer.set()


async def say(socket, seconds: float = 0.5) -> None:
    audio = base64.b64encode(bytes(round(48_000 * seconds))).decode()
    await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
    await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))


async def outcomes(socket, count: int = 1) -> list[dict]:
    found: list[dict] = []
    while len(found) < count:
        event = json.loads(await asyncio.wait_for(socket.recv(), 60))
        if event["type"].endswith(("transcription.completed", "transcription.failed")):
            found.append(event)
    return found


MANUAL = json.dumps(
    {"type": "session.update", "session": {"type": "transcription", "audio": {"input": {"turn_detection": None}}}}
)


def test_a_turn_waits_for_the_model_and_for_its_place_in_the_queue(tmp_path):
    with gated(tmp_path, max_queue=1) as (url, backend):

        async def run() -> list[dict]:
            async with connect(address(url)) as one, connect(address(url)) as two:
                for socket in (one, two):
                    await socket.send(MANUAL)
                    await say(socket)
                await asyncio.sleep(0.3)
                assert httpx.get(f"{url}/ping").status_code == 204
                backend.may_load.set()
                await asyncio.sleep(1.5)
                backend.may_infer.set()
                return await outcomes(one) + await outcomes(two)

        assert [event["transcript"] for event in asyncio.run(run())] == ["[dry-run] transcribe of 0.50 s"] * 2


@needs_weights
def test_the_chunks_of_a_streaming_model_wait_for_it_and_are_dropped_with_their_session(tmp_path):
    speech = np.concatenate([silence(0.5, 24_000), recording("week.wav", 24_000), silence(1, 24_000)])

    async def run(url: str, backend: Gated) -> list:
        async with client(url).realtime.connect(extra_query=TRANSCRIPTION) as connection:
            await speak(connection, pcm(speech), size=12_001)
            await until(connection, "committed")
            backend.may_load.set()
            while not httpx.get(f"{url}/stats").json()["inputs"]["in_flight"]:
                await asyncio.sleep(0.02)
            assert httpx.get(f"{url}/stats").json()["inputs"]["in_flight"] == 1
            backend.may_infer.set()
            return await until(connection, "transcription.completed")

    async def leave(url: str, backend: Gated) -> None:
        async with client(url).realtime.connect(extra_query=TRANSCRIPTION) as connection:
            backend.may_infer.clear()
            await speak(connection, pcm(speech), size=12_001)
            await until(connection, "committed")

    with gated(tmp_path, model="nemotron-asr") as (url, backend):
        events = asyncio.run(run(url, backend))
        (text,) = transcripts(events)
        assert text.startswith("[dry-run] ")
        seconds = [float(word) for word in text.split()[1:]]
        assert sum(seconds) == pytest.approx(events[-1].usage.seconds, abs=0.01 * len(seconds)), "audio was lost"
        assert "".join(event.delta for event in events if event.type.endswith("delta")) == text
        asyncio.run(leave(url, backend))
        deadline = time.monotonic() + 10
        while httpx.get(f"{url}/stats").json()["inputs"]["in_flight"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@needs_weights
def test_a_streaming_model_fails_a_turn_whose_chunk_fails_and_serves_the_next_one(tmp_path):
    speech = np.concatenate([silence(0.5, 24_000), recording("week.wav", 24_000), silence(1, 24_000)])

    async def run(url: str, backend: Gated) -> list:
        async with client(url).realtime.connect(extra_query=TRANSCRIPTION) as connection:
            backend.fails = True
            await speak(connection, pcm(speech))
            events = await until(connection, "transcription.failed")
            backend.fails = False
            await speak(connection, pcm(speech))
            return events + await until(connection, "transcription.completed")

    with gated(tmp_path, model="nemotron-asr") as (url, backend):
        backend.may_load.set()
        backend.may_infer.set()
        events = asyncio.run(run(url, backend))
    failed = next(event for event in events if event.type.endswith("failed"))
    assert "clue" not in failed.error.message
    assert transcripts(events)[0].startswith("[dry-run] 0.56")


@needs_weights
def test_a_streaming_model_s_log_probabilities_and_warnings_are_in_the_events(tmp_path):
    async def run(url: str) -> list:
        async with client(url).realtime.connect(extra_query=TRANSCRIPTION) as connection:
            audio = {"input": {"transcription": {"model": "nemotron-asr", "prompt": "Names"}}}
            include = ["item.input_audio_transcription.logprobs"]
            await connection.session.update(session={"type": "transcription", "include": include, "audio": audio})
            await speak(connection, pcm(np.concatenate([recording("week.wav", 24_000), silence(1, 24_000)])))
            return await until(connection, "transcription.completed")

    with serving(settings(tmp_path, model="nemotron-asr", unsupported_options="warn")) as url:
        events = asyncio.run(run(url))
    tokens = [token for event in events if event.type.endswith("delta") for token in event.logprobs]
    assert "".join(token.token for token in tokens) == events[-1].transcript
    assert events[-1].logprobs == tokens
    assert "prompt" in events[-1].warning


@needs_weights
def test_with_several_devices_a_streaming_model_gets_phrases(tmp_path):
    async def run(url: str) -> list:
        async with client(url).realtime.connect(extra_query=TRANSCRIPTION) as connection:
            await speak(connection, pcm(np.concatenate([recording("week.wav", 24_000), silence(1, 24_000)])))
            return await until(connection, "transcription.completed")

    with serving(settings(tmp_path, model="nemotron-asr", device="cpu,cpu")) as url:
        assert transcripts(asyncio.run(run(url)))[0].startswith("[dry-run] transcribe of")


def test_a_turn_that_fails_is_reported_without_details_and_the_session_continues(tmp_path):
    with gated(tmp_path) as (url, backend):
        backend.may_load.set()
        backend.may_infer.set()

        async def run() -> list[dict]:
            async with connect(address(url)) as socket:
                await socket.send(MANUAL)
                backend.fails = True
                await say(socket)
                found = await outcomes(socket)
                backend.fails = False
                await say(socket)
                return found + await outcomes(socket)

        failed, completed = asyncio.run(run())
        assert failed["type"].endswith(".failed")
        assert failed["error"]["type"] == "server_error"
        assert "clue" not in json.dumps(failed)
        assert completed["type"].endswith(".completed")
        assert failed["item_id"] != completed["item_id"]


def test_a_client_that_sends_faster_than_its_audio_is_transcribed_waits_and_loses_nothing(tmp_path):
    with gated(tmp_path) as (url, backend):
        backend.may_load.set()

        async def run() -> int:
            async with connect(address(url)) as socket:
                await socket.send(MANUAL)
                saying = asyncio.create_task(many(socket, 60))
                await asyncio.sleep(1)
                in_flight = httpx.get(f"{url}/stats").json()["inputs"]["in_flight"]
                assert PENDING <= in_flight <= PENDING + 3
                backend.may_infer.set()
                found = await outcomes(socket, 60)
                await saying
                return len({event["item_id"] for event in found})

        async def many(socket, count: int) -> None:
            for _ in range(count):
                await say(socket)

        assert asyncio.run(run()) == 60


@pytest.fixture
def quick_pings(monkeypatch):
    """The server sends a ping each 0.5 s, and waits as long for the pong."""
    configure = serve.config

    def config(*arguments, **options):
        made = configure(*arguments, **options)
        made.ws_ping_interval = made.ws_ping_timeout = 0.5
        return made

    monkeypatch.setattr(serve, "config", config)


def test_a_client_that_waits_for_long_is_not_taken_for_dead(tmp_path, quick_pings):
    """Neither side misses the other's pongs, although the server handles no further event."""
    with gated(tmp_path) as (url, backend):
        backend.may_load.set()

        async def run() -> int:
            async with connect(address(url), max_queue=None, ping_interval=0.5, ping_timeout=0.5) as socket:
                await socket.send(MANUAL)
                for _ in range(3 * PENDING):
                    await say(socket)
                await asyncio.sleep(3)
                backend.may_infer.set()
                return len(await outcomes(socket, 3 * PENDING))

        assert asyncio.run(run()) == 3 * PENDING


def test_a_client_that_sends_more_than_the_server_holds_is_not_taken_for_dead(tmp_path, quick_pings):
    """Its pong waits behind its audio, which the server does not read."""
    with gated(tmp_path) as (url, backend):
        backend.may_load.set()

        async def run() -> int:
            async with connect(address(url), max_queue=None, ping_interval=None) as socket:
                await socket.send(MANUAL)
                saying = asyncio.create_task(many(socket))
                await asyncio.sleep(3)
                assert not saying.done()
                backend.may_infer.set()
                found = await outcomes(socket, 60)
                await saying
                return len(found)

        async def many(socket) -> None:
            for _ in range(60):
                await say(socket, 5)

        assert asyncio.run(run()) == 60


def test_a_client_that_leaves_cancels_its_turns(tmp_path):
    with gated(tmp_path) as (url, backend):
        backend.may_load.set()

        async def run() -> None:
            async with connect(address(url)) as socket:
                await socket.send(MANUAL)
                for _ in range(2 * PENDING):
                    await say(socket)
                while httpx.get(f"{url}/stats").json()["inputs"]["in_flight"] < PENDING:
                    await asyncio.sleep(0.02)
                assert "aviary_realtime_sessions 1.0" in httpx.get(f"{url}/metrics").text

        asyncio.run(run())
        deadline = time.monotonic() + 10
        while httpx.get(f"{url}/stats").json()["inputs"]["in_flight"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "aviary_realtime_sessions 0.0" in httpx.get(f"{url}/metrics").text


def test_a_message_that_is_too_large_closes_the_connection(dry):
    async def run() -> int | None:
        async with connect(address(dry)) as socket:
            with contextlib.suppress(ConnectionClosed):
                await socket.send("x" * (5 << 20))
            with contextlib.suppress(ConnectionClosed):
                async for _event in socket:
                    pass
            return socket.close_code

    assert asyncio.run(run()) == 1009


def test_a_session_outlives_the_timeout_of_idle_connections_and_its_connection_counts(tmp_path):
    with serving(settings(tmp_path, client_timeout_sec=0.5, max_connections=8)) as url:

        async def run() -> None:
            async with contextlib.AsyncExitStack() as stack:
                sockets = [await stack.enter_async_context(connect(address(url))) for _ in range(7)]
                with pytest.raises(InvalidStatus) as refused:
                    await first_event(address(url))
                assert refused.value.response.status_code == 503
                await asyncio.sleep(2)
                for socket in sockets:
                    await socket.recv()
                    await socket.send("{}")
                    assert json.loads(await socket.recv())["type"] == "error"
            await asyncio.sleep(0.2)
            assert (await first_event(address(url)))["type"] == "session.created"

        asyncio.run(run())


def test_a_client_that_does_not_read_is_disconnected(tmp_path):
    with serving(settings(tmp_path, client_timeout_sec=1)) as url:

        async def run() -> None:
            port = int(url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(
                b"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            await reader.readuntil(b"\r\n\r\n")
            reader._transport.pause_reading()
            text = json.dumps({"type": "x" * 1500}).encode()
            frame = b"\x81\xfe" + len(text).to_bytes(2, "big") + bytes(4) + text
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(flood(writer, frame * 20), 40)

        asyncio.run(run())


async def flood(writer: asyncio.StreamWriter, data: bytes) -> None:
    while True:
        writer.write(data)
        await writer.drain()


@needs_weights
@pytest.mark.slow
def test_two_hundred_sessions_lose_nothing_and_the_event_loop_stays_free(tmp_path):
    audio = tmp_path / "audio"
    audio.write_bytes(pcm(np.concatenate([recording("week.wav", 16_000), silence(0.8, 16_000)])))
    app = create_app(settings(tmp_path / "data"))
    ticks: list[tuple[float, float]] = []
    tasks: list[asyncio.Task[None]] = []

    async def tick() -> None:
        """Note by how many seconds each tick is late, and for how many the loop's thread has computed before it."""
        while True:
            due, computed = time.monotonic() + 0.01, time.thread_time()
            await asyncio.sleep(0.01)
            ticks.append((time.monotonic() - due, time.thread_time() - computed))

    @app.get("/tick")
    async def start() -> None:
        tasks.append(asyncio.create_task(tick()))

    def speakers(count: int, turns: int) -> list[dict]:
        command = [sys.executable, ROOT / "tests" / "realtime_clients.py", address(url), str(count), str(turns), audio]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    with serving(settings(tmp_path / "data"), app=app) as url:
        speakers(1, 1)  # imports onnxruntime, which holds the interpreter for 0.1 s, once for each process
        gc.collect()
        gc.freeze()  # as the server does once its model has loaded
        httpx.get(f"{url}/tick")
        found = speakers(200, 4)
        gc.unfreeze()
    late = [seconds for seconds, _ in ticks]
    waits = [wait for session in found for wait in session["waits"]]
    print(f"the event loop was late by {max(late):.3f} s, a transcript by {max(waits):.3f} s at most")
    assert [len(session["texts"]) for session in found] == [4] * 200
    assert all(text.startswith("[dry-run]") for session in found for text in session["texts"])
    # Other tests take the cores and the caches, and left their objects in this process for the garbage collector. So a
    # few ticks may be late; a loop that computes or waits for each event of a client is late in most of them.
    assert sum(computed > 0.05 for _, computed in ticks) <= max(3, len(ticks) / 100)
    assert sum(seconds > 0.05 for seconds in late) <= len(late) / 2
