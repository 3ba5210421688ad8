"""The client against live servers, a server that fails first, and a stand-in for Runpod's API."""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import tone
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from runpod_api import Api, endpoint, scripted
from serving import serving

from worker import errors
from worker.client import AsyncClient, Client, Transcribed, audio, runpod, transport
from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.http import responses
from worker.entrypoints.runpod import RunpodWorker

WEEK = "samples/week.wav"
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    with serving(Settings(model="pocketsphinx", data_dir=tmp_path_factory.mktemp("data"))) as url:
        yield url


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path_factory.mktemp("data"))) as url:
        yield url


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(transport, "FIRST_WAIT_SEC", 0.01)
    monkeypatch.setattr(runpod, "FIRST_POLL_SEC", 0.01)


@pytest.fixture(scope="module")
def stage():
    """A scripted server, whose answers each test gives, a client that asks once, a patient one, and one that takes it
    for Runpod."""
    with (
        scripted(None) as server,
        Client(server.url, retries=0) as client,
        Client(server.url) as patient,
        Client(f"{server.url}/v2/ep1", "key") as endpoint,
    ):
        server.client, server.patient, server.endpoint = client, patient, endpoint
        yield server


def in_turn(*answers):
    left = iter(answers)
    return lambda *_: next(left)


SPOKEN = (200, {}, {"text": "so", "usage": {"seconds": 1.0}})


def problem(error: errors.AviaryError):
    answer = responses.response(error)
    return (
        answer.status_code,
        {k: v for k, v in answer.headers.items() if k in ("retry-after", "x-should-retry")},
        bytes(answer.body),
    )


# Against the server

EXAMPLE = """
client = Client(base_url="http://localhost:8000")

# Generate caption
result = client.caption("song.wav", style="detailed")
print(result.caption)

# Extract embeddings
result = client.embed("song.wav")
print(result.embedding.shape)  # (num_frames, 1536)

# Combined analysis
result = client.analyze("song.wav")
print(result.caption)
print(result.embedding.shape)
"""

ASYNC_SEED = """
import asyncio

async def main():
    async with AsyncClient(base_url="http://localhost:8000") as client:
        # Single request
        result = await client.analyze("song.wav")

        # Batch processing with concurrency
        audio_files = ["song1.wav", "song2.wav", "song3.wav"]
        async for path, result in client.batch_analyze(
            audio_files,
            output_dir="embeddings/",
            concurrency=16
        ):
            if not isinstance(result, Exception):
                print(f"{path}: {result.caption[:50]}...")

asyncio.run(main())
"""


def test_the_first_clients_examples_work(dry, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("song", "song1", "song2"):
        tone(tmp_path / f"{name}.wav", 1)
    for code in (EXAMPLE, ASYNC_SEED):
        exec(code.replace("http://localhost:8000", dry), {"Client": Client, "AsyncClient": AsyncClient})
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["[dry-run] caption of 1.00 s", "(25, 1280)", "[dry-run] analyze of 1.00 s", "(25, 1280)"]
    assert sorted(lines[4:]) == [f"song{n}.wav: [dry-run] analyze of 1.00 s..." for n in (1, 2)], "song3 is missing"
    assert sorted(path.name for path in Path("embeddings").iterdir()) == ["song1.npy", "song2.npy"]
    assert np.load("embeddings/song1.npy").shape == (25, 1280)


@pytest.mark.slow
def test_real_words_of_every_kind_of_input(speaking):
    samples, rate = soundfile.read(WEEK, dtype="float32")
    with Client(speaking) as client:
        for given, options in (
            (WEEK, {}),
            (Path(WEEK), {}),
            (Path(WEEK).read_bytes(), {}),
            (samples, {"sample_rate": rate}),
            ((samples * 32767).astype(np.int16), {"sample_rate": rate}),
            (Path(WEEK).resolve().as_uri(), {}),
        ):
            result = client.transcribe(given, **options)
            assert result.text == "see you next week"
            assert result.duration == pytest.approx(1.268, abs=0.001)
            assert (result.language, result.words, result.model) == ("en", (), "pocketsphinx")
        timed = client.transcribe(WEEK, timestamps=True)
    assert [word.text for word in timed.words] == ["see", "you", "next", "week"]
    assert [segment.text for segment in timed.segments] == ["see you next week"]
    assert timed.language == "en"
    assert all(word.start < word.end for word in timed.words)


def test_both_clients_say_the_same(dry):
    turns = [
        {"role": "user", "content": "Hm?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "So?"},
    ]
    calls = [
        ("transcribe", (WEEK,), {"timestamps": True, "language": "en", "punctuation": False, "model": "canary"}),
        ("caption", (WEEK,), {"style": "brief", "temperature": 0.5, "model": "music-flamingo"}),
        ("embed", (WEEK,), {"pooling": "mean"}),
        ("analyze", (WEEK,), {}),
        ("chat", (WEEK, "What is it?"), {"max_new_tokens": 7, "model": "music-flamingo"}),
        ("chat", (WEEK, turns), {}),
    ]

    async def ask_all():
        async with AsyncClient(dry) as client:
            return [await getattr(client, name)(*args, **options) for name, args, options in calls]

    with Client(f"{dry}/v1/") as client:
        ours = [getattr(client, name)(*args, **options) for name, args, options in calls]
    for (name, *_), mine, other in zip(calls, ours, asyncio.run(ask_all()), strict=True):
        assert repr(mine) == repr(other)
        assert f"[dry-run] {name} of 1.27 s" in repr(mine) or name == "embed"
    assert ours[2].embedding.shape == (1280,)
    assert ours[3].embedding.dtype == np.float32


@pytest.mark.parametrize("several", [["a.wav"], ("a.wav",), iter(["a.wav"]), np.array(["a.wav", "b.wav"])])
def test_a_list_is_refused_with_the_method_that_takes_it(several):
    with Client() as client, pytest.raises(errors.InputError, match="use batch_transcribe"):
        client.transcribe(several)


def test_an_unknown_option_is_named_before_anything_is_sent():
    with Client("http://127.0.0.1:9") as client, pytest.raises(errors.RequestError) as caught:
        client.transcribe(np.zeros(9), sampling_rate=16_000)
    assert caught.value.message.startswith(
        "transcribe has no option sampling_rate. Did you mean sample_rate? Its options"
    )


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_help_shows_the_options_of_a_call(kind):
    methods = ["transcribe", "caption", "embed", "analyze", "chat", "score", "batch_transcribe", "batch_analyze"]
    for name in methods:
        shown = inspect.signature(getattr(kind, name)).parameters
        assert {"model", "sample_rate"} <= set(shown), name
        assert not [one for one in shown.values() if one.kind is one.VAR_KEYWORD], name
        assert "\n    sample_rate: The sample rate" in getattr(kind, name).__doc__


def test_results_and_clients_show_themselves(dry):
    with Client(dry) as client:
        result = client.transcribe(WEEK, timestamps=True)
        assert result.to_dict()["text"] == result.text
        assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
        assert f">{result.text}</span>" in result._repr_html_()
        assert repr(result).startswith("Transcribed(")
        caption = client.caption(WEEK, model="music-flamingo")
        assert caption.text == caption.caption
        assert f"embedding=<float32 {client.embed(WEEK).embedding.shape}>" in repr(client.embed(WEEK))
        assert repr(client) == f"Client(URL('{dry}'))"
    with Client("http://me:hidden@host", "secret") as client:
        assert "hidden" not in repr(client)
        assert "secret" not in repr(client)


@pytest.mark.parametrize(
    ("given", "options", "kind"),
    [
        ("missing.wav", {}, errors.SourceNotFound),
        (".", {}, errors.InputError),
        (b"", {}, errors.EmptyAudio),
        (b"no audio at all" * 100, {}, errors.DecodeFailed),
        ("gopher://host/a", {}, errors.InputError),
        ("https://127.0.0.1/a.wav", {}, errors.SourceForbidden),
        ("file:///etc/hostname", {}, errors.SourceForbidden),
        (WEEK, {"language": "xx"}, errors.Unsupported),
        (WEEK, {"stile": "x"}, errors.RequestError),
        (WEEK, {"model": "nobody/nothing"}, errors.ModelNotFound),
        (WEEK, {"sample_rate": 8000}, errors.InputError),
        (np.zeros(9), {}, errors.InputError),
        (np.zeros((900, 900)), {"sample_rate": 8000}, errors.InputError),
        (np.zeros((2, 3, 900)), {"sample_rate": 8000}, errors.InputError),
        (np.zeros(0), {"sample_rate": 8000}, errors.EmptyAudio),
        (np.zeros(9, np.uint8), {"sample_rate": 8}, errors.InputError),
    ],
)
def test_what_cannot_be_is_an_error_of_the_workers(speaking, given, options, kind):
    with Client(speaking) as client, pytest.raises(kind) as caught:
        client.transcribe(given, **options)
    assert type(caught.value) is kind


def test_a_key_is_sent_and_its_lack_is_told(tmp_path):
    with serving(Settings(skip_model_load=True, api_key="k1,k2", data_dir=tmp_path)) as url:
        with Client(url, "k2") as client:
            assert client.transcribe(WEEK).text
        with Client(url) as client, pytest.raises(errors.Unauthorized):
            client.transcribe(WEEK)


def test_a_base_url_that_is_none():
    for wrong in ("localhost:8000", "ftp://host", "http://"):
        with pytest.raises(errors.RequestError, match="base_url"):
            Client(wrong)


@given(
    arrays(
        st.sampled_from([np.float32, np.int16, np.int32]).map(np.dtype),
        array_shapes(min_dims=1, max_dims=2, max_side=40),
        elements=None,
    ),
    st.integers(1, 192_000),
)
@settings(max_examples=60, deadline=None)
def test_arrays_are_sent_exactly(samples, rate):
    one_channel = samples.ndim == 1 or 1 in samples.shape
    if not one_channel and samples.shape[0] == samples.shape[1]:
        with pytest.raises(errors.InputError, match=r"\(channels, samples\)"):
            audio.wav(samples, rate)
        return
    read, told = soundfile.read(io.BytesIO(audio.wav(samples, rate)), dtype=samples.dtype.name)
    assert told == rate
    channels_last = samples.reshape(-1) if one_channel else samples if len(samples) == max(samples.shape) else samples.T
    np.testing.assert_array_equal(read, channels_last)


@pytest.mark.parametrize("kind", [np.float32, np.int16, np.int32])
def test_channels_are_the_shorter_axis_as_in_the_python_api(kind):
    stereo = np.arange(1800).reshape(900, 2).astype(kind)
    for array in (stereo, stereo.T):
        samples, _ = soundfile.read(io.BytesIO(audio.wav(array, 16_000)), dtype=np.dtype(kind).name)
        np.testing.assert_array_equal(samples, stereo)


@pytest.mark.parametrize("ask", [lambda c, path: c.transcribe(path), lambda c, path: c.chat(path, "What?")])
def test_a_large_file_is_never_in_memory(tmp_path, ask):
    path = tmp_path / "large.wav"
    with path.open("wb") as file:
        file.truncate(48 << 20)
    sizes = []

    def answer(_method, _path, headers, _body):
        sizes.append(int(headers["content-length"]))
        return problem(errors.TooLong("so long"))

    with scripted(answer) as server, Client(server.url) as client:
        tracemalloc.start()
        try:
            with pytest.raises(errors.TooLong):
                ask(client, path)
            assert tracemalloc.get_traced_memory()[1] < 12 << 20
        finally:
            tracemalloc.stop()
    assert sizes[0] > 48 << 20


def test_the_header_of_a_transcription_names_its_model(stage):
    stage.answer = lambda *_: (200, {"OpenAI-Model": "/data/m%C3%BC.nemo"}, SPOKEN[2])
    assert stage.client.transcribe(WEEK).model == "/data/mü.nemo"
    stage.answer = lambda *_: SPOKEN
    assert stage.client.transcribe(WEEK).model is None


# Errors and retries


def every(cls):
    return {cls}.union(*(every(sub) for sub in cls.__subclasses__()))


@pytest.mark.parametrize(
    "kind",
    sorted(
        (
            cls
            for cls in every(errors.AviaryError)
            if cls.__module__ == "worker.errors" and "code" in vars(cls) and cls is not errors.AviaryError
        ),
        key=lambda cls: cls.__name__,
    ),
)
def test_every_error_arrives_as_it_was_raised(stage, kind):
    stage.answer = lambda *_: problem(kind("it is so"))
    with pytest.raises(kind) as caught:
        stage.client.transcribe(WEEK)
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.status, caught.value.retryable) == (
        "it is so",
        kind.status,
        kind.retryable,
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.NotReadable("it is so"), errors.RequestError),
        (errors.JobFailed("it is so", code="too_long", retryable=False), errors.TooLong),
    ],
)
def test_an_error_without_a_code_of_its_own_arrives_as_the_owner_of_its_code(stage, error, kind):
    stage.answer = lambda *_: problem(error)
    with pytest.raises(kind, match="it is so") as caught:
        stage.client.transcribe(WEEK)
    assert (type(caught.value), caught.value.code) == (kind, error.code)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.RequestError),
        (401, errors.Unauthorized),
        (403, errors.Unauthorized),
        (404, errors.RequestError),
        (413, errors.TooLarge),
        (418, errors.RequestError),
        (429, errors.RateLimited),
        (500, errors.InternalError),
        (502, errors.InternalError),
        (503, errors.Busy),
    ],
)
@pytest.mark.parametrize(
    "body", [b"<html>", {"error": "text"}, {"error": {"code": "teapot", "message": "short"}}, {"detail": 1}, [1]]
)
def test_unknown_errors_go_by_their_status(stage, status, kind, body):
    stage.answer = lambda *_: (status, {}, body)
    with pytest.raises(errors.AviaryError) as caught:
        stage.client.transcribe(WEEK)
    assert type(caught.value) is kind
    assert caught.value.status == status


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b"<html>"),
        (200, {}, []),
        (200, {}, {}),
        (200, {}, {"text": "a", "words": 7}),
        (302, {"Location": "/"}, b""),
    ],
)
def test_answers_of_something_else(stage, answer):
    stage.answer = lambda *_: answer
    with pytest.raises(errors.AviaryError):
        stage.client.transcribe(WEEK)


FAILS_FIRST = [
    problem(errors.QueueFull("full")),
    problem(errors.StillLoading("loading")),
    (503, {}, b"<html>"),
    (502, {}, b""),
    (429, {}, b""),
    None,
]


@pytest.mark.parametrize("first", FAILS_FIRST)
@pytest.mark.parametrize("given", [WEEK, "https://host/a.mp3"])
def test_it_is_sent_again_whole(stage, first, given):
    sizes = []

    def answer(_method, _path, headers, _body):
        sizes.append(headers["content-length"])
        return first if len(sizes) < 3 else SPOKEN

    async def ask():
        async with AsyncClient(stage.url) as client:
            return await client.transcribe(given)

    stage.answer = answer
    assert stage.patient.transcribe(given).text == "so"
    assert len(sizes) == 3
    sizes.clear()
    assert asyncio.run(ask()).text == "so"
    assert len(sizes) == 3
    assert len(set(sizes)) == 1


def test_a_request_that_was_too_slow_for_the_server_is_not_sent_again():
    with (
        scripted(lambda *_: problem(errors.DeadlineExceeded("late"))) as server,
        Client(server.url) as client,
        pytest.raises(errors.DeadlineExceeded),
    ):
        client.transcribe(WEEK)
    assert len(server.seen) == 1


def test_retry_after_is_honoured_and_retries_end():
    busy = problem(errors.QueueFull("full", retry_after_sec=1))
    with scripted(in_turn(busy, SPOKEN)) as server, Client(server.url) as client:
        started = time.monotonic()
        client.transcribe(WEEK)
        assert time.monotonic() - started >= 1
    with (
        scripted(lambda *_: problem(errors.RateLimited("no", retry_after_sec=1e6))) as server,
        Client(server.url) as client,
    ):
        with pytest.raises(errors.RateLimited) as caught:
            client.transcribe(WEEK)
        assert caught.value.retry_after_sec == 1e6
        assert len(server.seen) == 1, "nobody waits for days"
    with (
        scripted(lambda *_: problem(errors.StillLoading("loading"))) as server,
        Client(server.url, retries=2) as client,
    ):
        with pytest.raises(errors.StillLoading):
            client.transcribe(WEEK)
        assert len(server.seen) == 3


@pytest.mark.parametrize(
    "error",
    [
        errors.RequestError,
        errors.SourceNotFound,
        errors.TooLong,
        errors.DecodeFailed,
        errors.FetchFailed,
        errors.InternalError,
        errors.OutOfMemory,
        errors.ModelUnavailable,
    ],
)
def test_what_would_fail_again_is_not_sent_again(stage, error):
    stage.answer = lambda *_: problem(error("no"))
    stage.seen.clear()
    with pytest.raises(error):
        stage.patient.transcribe(WEEK)
    assert len(stage.seen) == 1


def test_nobody_there():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    with Client(url) as client, pytest.raises(errors.ServerUnreachable, match=url):
        client.transcribe(WEEK)


def test_an_answer_that_does_not_come_is_not_asked_for_twice():
    def answer(*_):
        time.sleep(0.5)
        return SPOKEN

    with scripted(answer) as server, Client(server.url, timeout=0.2) as client:
        with pytest.raises(errors.DeadlineExceeded):
            client.transcribe(WEEK)
        assert len(server.seen) == 1


# Batches


class Crowd:
    """Counts how many are in at a time."""

    def __init__(self):
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, *_):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.02)
        with self.lock:
            self.now -= 1
        return SPOKEN


def test_a_batch_is_bounded_lazy_and_takes_errors_in_place():
    taken = []

    def audios():
        for number in range(40):
            taken.append(number)
            yield b"missing" if number != 7 else b""

    async def ask():
        async with AsyncClient(server.url) as client:
            return [pair async for pair in client.batch_transcribe(audios(), concurrency=5)]

    crowd = Crowd()
    with scripted(crowd) as server:
        with Client(server.url) as client:
            both = client.batch_transcribe(audios(), concurrency=5)
            next(both)
            assert len(taken) <= 6
            pairs = [*both]
        assert len(pairs) == 39
        assert crowd.most == 5
        pairs = asyncio.run(ask())
    assert crowd.most == 5
    assert len(pairs) == 40
    assert [type(result) for audio, result in pairs if not audio] == [errors.EmptyAudio]
    assert sum(isinstance(result, Transcribed) for _, result in pairs) == 39


def test_whatever_one_of_a_batch_raises_stays_in_its_place(dry, tmp_path):
    song = tone(tmp_path / "song.wav", 1)
    (tmp_path / "file").touch()

    async def ask(audios, folder):
        async with AsyncClient(dry) as client:
            return [pair async for pair in client.batch_analyze(audios, folder)]

    with Client(dry) as client:
        for batch in (lambda *given: list(client.batch_analyze(*given)), lambda *given: asyncio.run(ask(*given))):
            found = dict(batch([None, song], None))
            assert isinstance(found[None], TypeError)
            assert found[song].caption
            found = dict(batch([song, b""], tmp_path / "file" / "out"))
            assert isinstance(found[song], OSError)
            assert isinstance(found[b""], errors.EmptyAudio)


@pytest.mark.parametrize("concurrency", [0, -1])
def test_a_batch_of_no_concurrency_is_refused(concurrency):
    async def ask():
        async with AsyncClient() as client:
            async for _ in client.batch_transcribe([b"audio"], concurrency):
                pass

    with pytest.raises(ValueError, match="concurrency must be at least 1"):
        asyncio.run(ask())
    with Client() as client, pytest.raises(ValueError, match="concurrency must be at least 1"):
        list(client.batch_transcribe([b"audio"], concurrency))


def test_a_batch_that_is_given_up_stops_asking():
    async def ask():
        async with AsyncClient(server.url) as client:
            batch = client.batch_transcribe(endless(), concurrency=3)
            async for _ in batch:
                break
            await batch.aclose()

    def endless():
        while True:
            yield b"audio"

    with scripted(Crowd()) as server:
        asyncio.run(ask())
        time.sleep(0.1)
        assert len(server.seen) <= 6
        with Client(server.url) as client:
            for _ in client.batch_transcribe(endless(), concurrency=3):
                break
        time.sleep(0.1)
        assert len(server.seen) <= 12


def test_embeddings_of_one_name_do_not_overwrite_each_other(dry, tmp_path):
    paths = [tone(tmp_path / f"{folder}-{name}", seconds) for folder, name, seconds in [("a", "x.wav", 1)]]
    for folder, seconds in (("p", 2), ("q", 3)):
        (tmp_path / folder).mkdir()
        paths.append(tone(tmp_path / folder / "a-x.wav", seconds))
    paths.append(tone(tmp_path / "a-x-2.wav", 4))
    with Client(dry) as client:
        found = dict(client.batch_analyze(paths, tmp_path / "out", concurrency=2))
    assert len(list((tmp_path / "out").iterdir())) == 4
    for path, seconds in zip(paths, (1, 2, 3, 4), strict=True):
        assert len(np.load(found[path].embedding_path)) == 25 * seconds


# Runpod


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    configured = Settings(skip_model_load=True, data_dir=tmp_path_factory.mktemp("data"))
    with Engine(configured) as engine:
        yield RunpodWorker(configured, engine)


def test_a_runpod_endpoint_answers_as_a_server_does(door, dry):
    api = Api(door)
    calls = [
        ("transcribe", (WEEK,), {"timestamps": True, "language": "en"}),
        ("transcribe", (WEEK,), {"language": "en"}),
        ("transcribe", (WEEK,), {}),
        ("caption", (WEEK,), {}),
        ("embed", (WEEK,), {}),
        ("analyze", (WEEK,), {"pooling": "mean"}),
        ("chat", (WEEK, "What?"), {}),
    ]

    async def ask_all():
        async with AsyncClient(api_url, "secret") as client:
            return [await getattr(client, name)(*args, **options) for name, args, options in calls]

    with endpoint(api) as server, Client(server.url, "secret") as client, Client(dry) as direct:
        api_url = server.url
        for (name, args, options), other in zip(calls, asyncio.run(ask_all()), strict=True):
            mine, theirs = getattr(client, name)(*args, **options), getattr(direct, name)(*args, **options)
            assert repr(mine) == repr(other)
            for field in ("text", "language", "caption", "words", "segments", "finish_reason"):
                assert getattr(mine, field, None) == getattr(theirs, field, None)
            if hasattr(mine, "embedding"):
                np.testing.assert_array_equal(mine.embedding, theirs.embedding)
        for given, kind in ((b"no audio" * 99, errors.DecodeFailed), ("gopher://x", errors.InputError)):
            with pytest.raises(kind):
                client.transcribe(given)
        with pytest.raises(errors.ModelNotFound):
            client.transcribe(WEEK, model="nobody/")
    assert set(api.keys) == {"Bearer secret"}
    assert not api.cancelled


def test_runpod_takes_an_endpoints_id():
    with Client.runpod("abc", "key", retries=1) as client:
        assert client._calls.target.base == "https://api.runpod.ai/v2/abc"


def test_a_job_that_nobody_waits_for_is_cancelled(door):
    api = Api(door, ["IN_QUEUE"] * 1000)

    async def give_up():
        async with AsyncClient(server.url, "key") as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.transcribe(WEEK), 0.3)

    with endpoint(api) as server:
        asyncio.run(give_up())
        assert api.cancelled == ["job-0-u1"]
        with Client(server.url, "key", timeout=0.3) as client, pytest.raises(errors.DeadlineExceeded):
            client.transcribe(WEEK)
    assert api.cancelled == ["job-0-u1", "job-1-u1"]


def test_what_runpod_cannot_carry_is_not_sent(tmp_path):
    path = tmp_path / "large.wav"
    with path.open("wb") as file:
        file.truncate(8_000_000)
    with endpoint(lambda *_: None) as server, Client(server.url, "key") as client:
        with pytest.raises(errors.TooLarge, match="give a URL"):
            client.transcribe(path)
        assert not server.seen


@pytest.mark.parametrize(
    ("job", "kind", "says"),
    [
        ({"status": "COMPLETED"}, errors.ResultTooLarge, "bucket"),
        ({"status": "COMPLETED", "output": {}}, errors.ResultTooLarge, "10 MB"),
        ({"status": "CANCELLED"}, errors.Cancelled, "was canceled"),
        ({"status": "TIMED_OUT"}, errors.DeadlineExceeded, "execution"),
        ({"status": "FAILED", "error": json.dumps({"error_message": "boom"})}, errors.InternalError, "boom"),
        ({"status": "FAILED", "error": "x", "output": {"code": "queue_full"}}, errors.QueueFull, "x"),
        ({"status": "FAILED"}, errors.InternalError, "no reason"),
        ({"status": "WAT"}, errors.InternalError, "WAT"),
        ({}, errors.InternalError, "None"),
        ({"status": "COMPLETED", "output": [1]}, errors.ResultTooLarge, "10 MB"),
        ({"status": "COMPLETED", "output": {"results": [7]}}, errors.InternalError, "not one of Aviary"),
    ],
)
def test_how_jobs_end(stage, job, kind, says):
    stage.answer = lambda *_: (200, {}, {"id": "j", **job})
    with pytest.raises(kind, match=says):
        stage.endpoint.transcribe(WEEK)


@pytest.mark.parametrize("status", [500, 504])
def test_a_status_that_fails_is_asked_for_again_and_a_job_is_not_started_again(status):
    answers = [
        (200, {}, {"id": "j", "status": "IN_QUEUE"}),
        (status, {}, {"error": "not now"}),
        (200, {}, {"id": "j", "status": "RUNNING"}),
        (200, {}, {"id": "j", "status": "COMPLETED", "output": {"model": "m", "results": [{"text": "so"}]}}),
    ]
    with endpoint(in_turn(*answers)) as server, Client(server.url, "key") as client:
        assert client.transcribe(WEEK).text == "so"
    refused = in_turn((status, {}, {"error": "not now"}))
    with (
        endpoint(refused) as server,
        Client(server.url, "key") as client,
        pytest.raises(errors.InternalError, match="not now"),
    ):
        client.transcribe(WEEK)


def test_a_result_in_the_bucket_is_fetched_without_the_key():
    keys = []

    def answer(method, path, headers, _body):
        keys.append((path, headers.get("Authorization")))
        if path == "/bucket/result.json":
            return 200, {}, {"model": "m", "results": [{"index": 0, "text": "long", "duration_sec": 2.0}]}
        url = server.url.replace("/v2/ep1", "/bucket/result.json")
        return 200, {}, {"id": "j", "status": "COMPLETED", "output": {"result_url": url}}

    with endpoint(answer) as server, Client(server.url, "secret") as client:
        result = client.transcribe(WEEK)
    assert (result.text, result.model, result.duration) == ("long", "m", 2.0)
    assert keys == [("/v2/ep1/run", "Bearer secret"), ("/bucket/result.json", None)]


# Scores


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    """A server and an endpoint with the same reference clip and a tiny Whisper."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    from fixtures import tiny_whisper

    folder = tmp_path_factory.mktemp("scores")
    tiny_whisper.save(folder / "models" / "whisper-small", positions=80, seed=3)
    (folder / "clips").mkdir()
    shutil.copy(WEEK, folder / "clips" / "week_1.wav")
    (folder / "config.json").write_text(
        json.dumps(
            {
                "models": [
                    {"key": key, "type": "whisper", "model_id": "openai/whisper-small"} for key in ("first", "other")
                ],
                "video_clip_dir": "clips",
                "cache_dir": "cache",
                "target_sampling_rate": 16000,
            }
        )
    )
    configured = Settings(
        model="whisper-small",
        model_dir=folder / "models",
        device="cpu",
        hf_hub_offline=True,
        audio_score_config=folder / "config.json",
        data_dir=folder / "data",
        allow_private_urls=True,
    )
    with (
        Engine(configured) as engine,
        serving(configured) as url,
        endpoint(Api(RunpodWorker(configured, engine), ())) as ours,
    ):
        yield {"server": url, "endpoint": ours.url}


@pytest.fixture(scope="module")
def hosted():
    """The URL of a recording."""

    class File(BaseHTTPRequestHandler):
        def do_GET(self):
            data = Path(WEEK).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), File) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/week.wav"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["server", "endpoint"])
def test_scores_of_every_kind_of_input(scorers, hosted, way):
    samples, rate = soundfile.read(WEEK, dtype="float32")
    with Client(scorers[way]) as client:
        for given, options in (
            (WEEK, {}),
            (Path(WEEK).read_bytes(), {}),
            (samples, {"sample_rate": rate}),
            (hosted, {}),
            (Path(WEEK).resolve().as_uri(), {"model": "other"}),
        ):
            scored = client.score(given, uid="week", cid="1", **options)
            assert scored.model == options.get("model", "first")
            assert (scored.sim_score, scored.audio_sim_score, scored.text_sim_score) == pytest.approx(
                (1, 1, 1), abs=1e-5
            )
        assert client.score(np.zeros(rate, np.float32), uid="week", cid="1", sample_rate=rate).audio_sim_score < 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("way", ["server", "endpoint"])
@pytest.mark.parametrize(
    ("given", "options", "kind"),
    [
        (WEEK, {"cid": "2"}, errors.ClipNotFound),
        (WEEK, {"model": "third"}, errors.RequestError),
        (WEEK, {"language": "en"}, errors.RequestError),
        (b"no audio" * 99, {}, errors.DecodeFailed),
        ("file:///etc/hostname", {}, errors.SourceForbidden),
        ("gopher://host/a", {}, errors.InputError),
    ],
)
def test_a_score_that_cannot_be_is_an_error_of_the_workers(scorers, way, given, options, kind):
    with Client(scorers[way]) as client, pytest.raises(kind) as caught:
        client.score(given, **{"uid": "week", "cid": "1"} | options)
    assert type(caught.value) is kind


def test_the_client_loads_nothing_of_the_worker():
    code = (
        "import sys, worker.client; heavy = {'torch', 'nemo', 'fastapi', 'runpod', 'pydantic', 'worker.engine.engine', "
        "'worker.config'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
