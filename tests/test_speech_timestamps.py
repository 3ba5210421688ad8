"""POST /v1/audio/speech/timestamps: the spans of speech in a file, with the fields and the shape of speaches."""

from __future__ import annotations

import base64
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from serving import serving

from worker.backends.common import vad
from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import Cancelled
from worker.types import SAMPLE_RATE, Source

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not vad.is_available(), reason="needs onnxruntime and silero-vad"),
]
WEEK = Path("samples/week.wav")
ROUTE = "/v1/audio/speech/timestamps"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path_factory.mktemp("data"))) as url:
        yield url


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> Path:
    """The clip twice, with two seconds of silence before, between and after."""
    samples, rate = soundfile.read(WEEK, dtype="float32", always_2d=True)
    samples = samples.mean(axis=1)
    pause = np.zeros(2 * rate, np.float32)
    path = tmp_path_factory.mktemp("audio") / "talk.wav"
    soundfile.write(path, np.concatenate([pause, samples, pause, samples, pause]), rate)
    return path


def send(url: str, path: Path, **fields: str) -> httpx.Response:
    return httpx.post(f"{url}{ROUTE}", files={"file": path.read_bytes()}, data=fields, timeout=60)


def test_a_form_gets_a_list_of_spans_in_milliseconds(url, talk):
    spans = send(url, talk, model="silero_vad_v5").json()
    assert len(spans) == 2
    for span, begins in zip(spans, (2000, 5268), strict=True):
        assert span.keys() == {"start", "end"}
        assert all(isinstance(value, int) for value in span.values())
        assert begins <= span["start"] < span["end"] <= begins + 1400


def test_json_gets_the_same(url, talk):
    audio = {"data": base64.b64encode(talk.read_bytes()).decode()}
    for name in ("audio", "file", "input_audio"):
        assert httpx.post(f"{url}{ROUTE}", json={name: audio}).json() == send(url, talk).json()
    twice = httpx.post(f"{url}{ROUTE}", json={"audio": audio, "input_audio": audio})
    assert (twice.status_code, twice.json()["error"]["param"]) == (400, "file")


def test_the_options_change_the_spans(url, talk):
    plain = send(url, talk).json()
    padded = send(url, talk, speech_pad_ms="100").json()
    assert [span["start"] for span in padded] == [span["start"] - 100 for span in plain]
    (whole,) = send(url, talk, min_silence_duration_ms="4000").json()
    assert whole["start"] == plain[0]["start"]
    assert whole["end"] >= plain[1]["end"]
    short = send(url, talk, max_speech_duration_s="0.5").json()
    assert len(short) > 2
    assert all(span["end"] - span["start"] <= 500 for span in short)
    assert send(url, talk, min_speech_duration_ms="5000").json() == []
    assert send(url, talk, max_speech_duration_s="inf").json() == plain


def test_silence_has_no_spans(url, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    assert send(url, tmp_path / "silence.wav").json() == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"threshold": "2"}, "threshold"),
        ({"threshold": "loud"}, "threshold"),
        ({"speech_pad_ms": "-1"}, "speech_pad_ms"),
        ({"max_speech_duration_s": "0"}, "max_speech_duration_s"),
        ({"pads": "1"}, "pads"),
        ({"model": "whisper"}, "model"),
    ],
)
def test_mistakes_are_named(url, talk, fields, param):
    answer = send(url, talk, **fields)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


def test_a_file_that_is_no_audio_is_an_error(url):
    answer = httpx.post(f"{url}{ROUTE}", files={"file": b"no audio at all"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "decode_failed")
    assert httpx.post(f"{url}{ROUTE}", data={"threshold": "0.5"}, files={"x": b""}).status_code == 400


def test_a_path_outside_of_the_allowed_folders_is_refused(url, tmp_path, talk):
    answer = httpx.post(f"{url}{ROUTE}", json={"audio": str(talk)})
    assert answer.json()["error"]["code"] == "source_forbidden"


def test_keys_and_the_queue_apply(tmp_path, talk):
    settings = Settings(skip_model_load=True, data_dir=tmp_path, api_key="secret")
    with serving(settings, wait=False) as url:
        assert send(url, talk).status_code == 401


def test_the_search_runs_beside_the_event_loop_and_counts_as_an_input(tmp_path, talk, monkeypatch):
    inside, go_on = threading.Event(), threading.Event()
    found = vad.speech

    def slow(*args):
        inside.set()
        assert go_on.wait(20)
        return found(*args)

    monkeypatch.setattr(vad, "speech", slow)
    with serving(Settings(skip_model_load=True, data_dir=tmp_path, max_queue=1)) as url:
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(send(url, talk)))
        thread.start()
        assert inside.wait(20)
        began = time.monotonic()
        assert httpx.get(f"{url}/health/live").status_code == 200
        assert time.monotonic() - began < 2
        assert send(url, talk).json()["error"]["code"] == "queue_full"
        go_on.set()
        thread.join(20)
    assert answers[0].status_code == 200


def test_a_canceled_search_stops_and_gives_its_audio_back(tmp_path, talk):
    inside, seen = threading.Event(), threading.Event()

    def examine(clip, stops):
        inside.set()
        deadline = time.monotonic() + 20
        while not stops() and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.set()
        raise Cancelled("stopped")

    settings = Settings(skip_model_load=True, data_dir=tmp_path, allowed_paths=(talk.parent,))
    with Engine(settings) as engine:
        future = engine.examine(Source("path", str(talk)), examine)
        assert inside.wait(20)
        future.cancel()
        assert seen.wait(20)
        deadline = time.monotonic() + 5
        while engine.held_sec and time.monotonic() < deadline:
            time.sleep(0.01)
        assert engine.held_sec == 0
        assert engine.examine(Source("path", str(talk)), lambda clip, _stops: clip.duration_sec).result(20) > 8
