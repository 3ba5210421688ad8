"""OpenAI's own client against a live server: every format, streams, every error as its typed exception."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import soundfile
from conftest import DIGITS, tone
from serving import serving

from worker.config import Settings

pytestmark = pytest.mark.slow

WEEK = "samples/week.wav"
WORDS = ["see", "you", "next", "week"]
DATA = base64.b64encode((DIGITS / "00.flac").read_bytes()).decode()


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A server that really hears."""
    with serving(Settings(model="pocketsphinx", data_dir=tmp_path_factory.mktemp("data"))) as url:
        yield client(url)


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """A server whose every model is the dry run's."""
    with serving(Settings(skip_model_load=True, data_dir=tmp_path_factory.mktemp("data"))) as url:
        yield client(url)


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


def ask(server: openai.OpenAI, **options):
    with open(WEEK, "rb") as file:
        return server.audio.transcriptions.create(file=file, **{"model": "pocketsphinx"} | options)


def test_json(speaking):
    answer = ask(speaking)
    assert answer.text == "see you next week"
    assert answer.usage.type == "duration"
    assert answer.usage.seconds == pytest.approx(1.268)


def test_verbose_json_with_words_and_segments(speaking):
    answer = ask(speaking, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert [word.word for word in answer.words] == WORDS
    assert [segment.text for segment in answer.segments] == ["see you next week"]
    assert answer.duration == pytest.approx(1.268)
    assert answer.language == "en"
    assert all(word.start < word.end for word in answer.words)


def test_the_language_of_verbose_json_is_never_null(dry):
    """The dry run transcribes nothing, so it knows the language only if the request names it."""
    for options, language in (
        ({}, "und"),
        ({"language": "de"}, "de"),
        ({"language": ""}, "und"),
        ({"language": "German"}, "de"),
    ):
        answer = ask(dry, model="parakeet", response_format="verbose_json", **options)
        assert answer.language == language
        known = answer.model_dump(exclude={"segments"})  # numbers of segments that the model does not report are null
        openai.types.audio.TranscriptionVerbose.model_validate(known, strict=True)


def test_lines_of_subtitles_have_the_limits_of_the_request(speaking):
    answer = ask(speaking, response_format="vtt", extra_body={"max_line_width": 8, "max_line_count": 1})
    assert re.findall(r"-->.*\n(.*)", answer) == ["see you", "next", "week"]
    assert ask(speaking, response_format="srt", extra_body={"max_line_width": 8}).split("\n")[2:4] == [
        "see you",
        "next",
    ]
    with pytest.raises(openai.BadRequestError, match="max_line_width"):
        ask(speaking, response_format="srt", extra_body={"max_line_width": 0})


def test_tsv_has_milliseconds(speaking):
    assert re.fullmatch(r"start\tend\ttext\n\d{3}\t\d{4}\tsee you next week\n", ask(speaking, response_format="tsv"))


def ask_call(server: openai.OpenAI, tmp_path, **options):
    """Ask for a call of two: one channel says what the sample says, and the other is silent."""
    audio = np.zeros((16_000 * 2, 2), np.int16)
    mono, _rate = soundfile.read(Path(WEEK).with_name("doctor.flac"), dtype="int16")
    audio[:, 1] = mono[: len(audio)]
    soundfile.write(tmp_path / "call.wav", audio, 16_000)
    with (tmp_path / "call.wav").open("rb") as file:
        return server.audio.transcriptions.create(
            file=file, model="pocketsphinx", extra_body={"channels": "split"}, **options
        )


def test_diarized_json_has_the_segments_with_their_speakers(speaking, tmp_path):
    answer = ask_call(speaking, tmp_path, response_format="diarized_json")
    assert type(answer) is openai.types.audio.TranscriptionDiarized
    openai.types.audio.TranscriptionDiarized.model_validate(answer.model_dump(), strict=True)
    assert {segment.speaker for segment in answer.segments} == {"Channel 2"}
    assert " ".join(segment.text for segment in answer.segments) == answer.text
    assert all(segment.start < segment.end for segment in answer.segments)
    assert len({segment.id for segment in answer.segments}) == len(answer.segments)
    assert answer.duration == 2.0
    assert answer.usage.seconds == 4.0, "two channels"
    with pytest.raises(openai.BadRequestError, match="diarized_json requires speakers"):
        ask(speaking, response_format="diarized_json")


def test_a_diarized_stream_has_an_event_for_each_segment(speaking, tmp_path):
    answer = ask_call(speaking, tmp_path, response_format="diarized_json")
    *events, done = list(ask_call(speaking, tmp_path, response_format="diarized_json", stream=True))
    segments = [event for event in events if event.type == "transcript.text.segment"]
    assert [segment.model_dump() for segment in segments] == [segment.model_dump() for segment in answer.segments]
    for segment in segments:
        openai.types.audio.transcription_text_segment_event.TranscriptionTextSegmentEvent.model_validate(
            segment.model_dump(), strict=True
        )
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == answer.text
    assert (done.type, done.text) == ("transcript.text.done", answer.text)
    with pytest.raises(openai.BadRequestError, match="diarized_json requires speakers"):
        ask(speaking, response_format="diarized_json", stream=True)


def test_verbose_json_has_segments_unasked(speaking):
    answer = ask(speaking, response_format="verbose_json")
    assert [segment.text for segment in answer.segments] == ["see you next week"]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("text", "see you next week"),
        ("srt", "1\n00:00:00,130 --> 00:00:01,130\nsee you next week\n"),
        ("vtt", "WEBVTT\n\n00:00:00.130 --> 00:00:01.130\nsee you next week\n"),
    ],
)
def test_plain_formats(speaking, form, expected):
    assert ask(speaking, response_format=form) == expected


def test_a_stream_ends_with_the_whole_text(speaking):
    events = list(ask(speaking, stream=True))
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == "see you next week"
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == "see you next week"


def test_a_long_clip_streams_as_its_windows_are_done(dry, tmp_path):
    with tone(tmp_path / "long.wav", 100).open("rb") as file:
        events = list(dry.audio.transcriptions.create(file=file, model="canary", language="en", stream=True))
    deltas = [event.delta for event in events[:-1]]
    assert len(deltas) >= 3, "one for each window of 40 s"
    assert "".join(deltas) == events[-1].text


def test_translations(dry):
    with open(WEEK, "rb") as file:
        answer = dry.audio.translations.create(file=file, model="whisper-large")
    assert answer.text.startswith("[dry-run]")


def chat(*parts):
    return [{"role": "user", "content": list(parts)}]


TEXT = {"type": "text", "text": "What is said?"}
AUDIO = {"type": "input_audio", "input_audio": {"data": DATA, "format": "flac"}}


def test_chat(dry):
    answer = dry.chat.completions.create(model="music-flamingo", messages=chat(AUDIO, TEXT))
    assert answer.choices[0].message.content.startswith("[dry-run]")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_says_the_same_and_counts(dry):
    whole = dry.chat.completions.create(model="music-flamingo", messages=chat(AUDIO, TEXT))
    chunks = list(
        dry.chat.completions.create(
            model="music-flamingo", messages=chat(AUDIO, TEXT), stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage
    assert chunks[0].choices[0].delta.role == "assistant"


def test_models(dry):
    listed = dry.models.list().data
    assert "nvidia/parakeet-tdt-0.6b-v3" in [model.id for model in listed]
    assert dry.models.retrieve("nvidia/canary-1b-v2").id == "nvidia/canary-1b-v2"
    assert dry.models.retrieve("canary").id == "nvidia/canary-1b-v2"
    with pytest.raises(openai.NotFoundError):
        dry.models.retrieve("nobody/nothing")


def test_captions_embeddings_and_analyze(dry):
    http = httpx.Client(base_url=str(dry.base_url), timeout=60)
    body = {"model": "music-flamingo", "audio": {"data": DATA}}
    assert http.post("audio/captions", json=body | {"style": "brief"}).json()["caption"].startswith("[dry-run]")
    floats = http.post("audio/embeddings", json=body).json()
    coded = http.post("audio/embeddings", json=body | {"encoding_format": "base64"}).json()
    values = np.frombuffer(base64.b64decode(coded["embedding"]), "<f4").reshape(coded["shape"])
    np.testing.assert_allclose(values, floats["embedding"], rtol=1e-6)
    both = http.post("audio/analyze", json=body).json()
    assert both["caption"]
    assert both["shape"] == floats["shape"]
    with open(WEEK, "rb") as file:
        upload = http.post("audio/captions", files={"file": file}, data={"model": "music-flamingo"})
    assert upload.json()["caption"].startswith("[dry-run]")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"model": "nobody/nothing"}, openai.NotFoundError, "is not available here"),
        ({"model": "/etc/passwd.nemo"}, openai.NotFoundError, "is not available here"),
        ({"temperature": 0.5}, openai.BadRequestError, "does not accept temperature"),
        ({"response_format": "diarized_json"}, openai.BadRequestError, "format"),
        ({"model": "audio-flamingo", "include": ["logprobs"]}, openai.BadRequestError, "does not accept include"),
        ({"language": "xx"}, openai.BadRequestError, "unsupported language"),
        ({"timestamp_granularities": ["minute"]}, openai.BadRequestError, "word, segment, char"),
    ],
)
def test_what_cannot_be_is_refused_by_name(speaking, options, error, says):
    with pytest.raises(error, match=re.escape(says)) as caught:
        ask(speaking, **options)
    assert caught.value.body.keys() == {"message", "type", "param", "code"}


def test_a_file_that_is_no_audio(speaking):
    with pytest.raises(openai.BadRequestError) as caught:
        speaking.audio.transcriptions.create(file=b"no audio at all" * 100, model="pocketsphinx")
    assert caught.value.code == "decode_failed"
    with pytest.raises(openai.BadRequestError) as streamed:  # before the first event, an error is like any other
        list(speaking.audio.transcriptions.create(file=b"no audio at all" * 100, model="pocketsphinx", stream=True))
    assert streamed.value.code == "decode_failed"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"x", "text/plain", 415),
        (b"--x\r\n", "multipart/form-data; boundary=y", 400),
        (b"x", "multipart/form-data", 400),
        (b"", "application/json", 400),
        (json.dumps({"audio": {"path": "x"}}).encode(), "application/json", 400),
    ],
)
def test_bodies_that_are_none(speaking, content, kind, status):
    answer = httpx.post(f"{speaking.base_url}audio/transcriptions", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_verbose_json_says_nothing_that_the_model_does_not(speaking):
    (segment,) = ask(speaking, response_format="verbose_json").segments
    for name in ("tokens", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob"):
        assert getattr(segment, name) is None, name
    assert segment.seek == round(100 * segment.start)
    assert not hasattr(segment, "confidence")


def test_confidence_is_ours_to_add(speaking):
    plain = ask(speaking, extra_body={"confidence": True})
    verbose = ask(
        speaking,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        extra_body={"confidence": True},
    )
    assert 0 < plain.confidence < 1
    assert verbose.confidence == plain.confidence
    words = [word.confidence for word in verbose.words]
    assert verbose.segments[0].confidence == pytest.approx(sum(words) / len(words), abs=1e-4)
    assert sum(words) / len(words) == pytest.approx(plain.confidence, abs=1e-4)  # pocketsphinx's tokens are words
    assert words == [round(word, 4) for word in words]


def spelled(logprobs) -> str:
    return b"".join(bytes(map(int, token.bytes)) for token in logprobs).decode()


def test_log_probabilities(speaking):
    answer = ask(speaking, include=["logprobs"])
    assert [token.token for token in answer.logprobs] == ["see", " you", " next", " week"]
    assert all(token.logprob <= 0 for token in answer.logprobs)
    assert spelled(answer.logprobs) == answer.text
    raw = httpx.post(
        f"{speaking.base_url}audio/transcriptions",
        json={"model": "pocketsphinx", "audio": {"data": DATA}, "include": ["logprobs"]},
    ).json()
    assert "".join(token["token"] for token in raw["logprobs"]) == raw["text"]


def test_a_stream_with_log_probabilities_has_those_of_each_delta(speaking):
    *deltas, done = ask(speaking, include=["logprobs"], stream=True)
    assert [event.delta for event in deltas] == ["see", " you", " next", " week"]
    assert [token for event in deltas for token in (t.token for t in event.logprobs)] == [e.delta for e in deltas]
    assert spelled(done.logprobs) == done.text == "see you next week"


@pytest.mark.parametrize(("field", "value"), [("include", ["logprobs"]), ("confidence", True)])
def test_a_model_that_cannot_say_names_those_that_can(speaking, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(speaking, model="audio-flamingo", extra_body={field: value})
    assert caught.value.param == field
    assert "Models that do: parakeet" in caught.value.message


def test_what_else_openai_can_include_is_refused(speaking):
    with pytest.raises(openai.BadRequestError, match="include must be"):
        ask(speaking, extra_body={"include": ["loudness"]})


@pytest.mark.parametrize("route", ["transcriptions", "translations", "captions", "embeddings", "analyze"])
def test_a_body_without_audio_is_refused_by_the_name_of_the_field(dry, route):
    form = httpx.post(f"{dry.base_url}audio/{route}", files={"model": (None, "pocketsphinx")})
    body = httpx.post(f"{dry.base_url}audio/{route}", json={})
    for answer, name in ((form, "file"), (body, "audio")):
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == name
        assert answer.json()["error"]["message"].startswith(f"{name} is missing")
