"""The routes of whisper-asr-webservice as its clients send them, against a live server."""

from __future__ import annotations

import io
import json
import re
import urllib.parse
import wave
from pathlib import Path

import httpx
import pytest
import requests
import soundfile
import soxr
from conftest import FIXTURES
from serving import serving

from worker.catalog import MODELS, find
from worker.config import Settings
from worker.errors import Unsupported
from worker.protocol import asr_webservice
from worker.protocol.asr_webservice import Query

WEEK = Path("samples/week.wav")


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    with serving(Settings(model="pocketsphinx", data_dir=tmp_path_factory.mktemp("data"))) as url:
        yield url


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    with serving(Settings(skip_model_load=True, data_dir=tmp_path_factory.mktemp("data"))) as url:
        yield url


def raw_week() -> bytes:
    """The samples of the clip without a header, as `ffmpeg -f s16le -ac 1 -ar 16000` writes them."""
    samples, rate = soundfile.read(WEEK, dtype="float32", always_2d=True)
    mono = soxr.resample(samples.mean(axis=1), rate, 16_000)
    return (mono * 32767).astype("<i2").tobytes()


def send(url: str, route: str = "asr", audio: bytes | None = None, name: str = "week.wav", **query) -> httpx.Response:
    files = {"audio_file": (name, WEEK.read_bytes() if audio is None else audio)}
    return httpx.post(f"{url}/{route}", params=query, files=files, timeout=60)


@pytest.mark.slow
def test_text_is_one_line_a_segment_and_the_default(speaking):
    answer = send(speaking)
    assert answer.status_code == 200
    assert answer.text == "see you next week\n"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["asr-engine"] == "aviary"
    assert answer.headers["content-disposition"] == 'attachment; filename="week.wav.txt"'


@pytest.mark.slow
def test_bazarr_s_request_for_subtitles(speaking):
    """Samples without a header, from `requests`, which names the file after the field."""
    answer = requests.post(
        f"{speaking}/asr",
        params={"task": "transcribe", "language": "en", "output": "srt", "encode": "false", "video_file": "a.mkv"},
        files={"audio_file": raw_week()},
        timeout=60,
    )
    assert answer.status_code == 200
    assert re.fullmatch(rb"1\n00:00:00,\d{3} --> 00:00:01,\d{3}\nsee you next week\n", answer.content)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.slow
def test_a_wav_file_needs_no_encoding_either(speaking):
    assert send(speaking, encode="false").text == "see you next week\n"


@pytest.mark.slow
def test_samples_on_disk_and_half_a_sample_at_the_end(speaking):
    hour = raw_week() + bytes(40 * 32_000 + 1)  # beyond what is kept in memory
    assert send(speaking, audio=hour, encode="false").text.startswith("see you next week")


@pytest.mark.slow
def test_vtt_and_tsv(speaking):
    assert re.fullmatch(
        r"WEBVTT\n\n00:00:00\.\d{3} --> 00:00:01\.\d{3}\nsee you next week\n", send(speaking, output="vtt").text
    )
    assert re.fullmatch(r"start\tend\ttext\n\d+\t\d+\tsee you next week\n", send(speaking, output="tsv").text)


@pytest.mark.slow
def test_json_has_whisper_s_keys_and_is_sent_as_text(speaking):
    answer = send(speaking, output="json", word_timestamps="true", name="wöche 1.wav")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-disposition"] == f'attachment; filename="{urllib.parse.quote("wöche 1.wav")}.json"'
    whole = json.loads(answer.text)
    assert list(whole) == ["language", "segments", "text"]
    assert (whole["language"], whole["text"]) == ("en", "see you next week")
    (segment,) = whole["segments"]
    assert {"id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob"} <= segment.keys()
    assert {"compression_ratio", "no_speech_prob", "words"} <= segment.keys()
    assert [word["word"] for word in segment["words"]] == ["see", "you", "next", "week"]
    assert all(word["start"] < word["end"] and 0 <= word["probability"] <= 1 for word in segment["words"])


@pytest.mark.slow
def test_json_without_word_times(speaking):
    (segment,) = json.loads(send(speaking, output="json").text)["segments"]
    assert segment["words"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"initial_prompt": "words"}, "initial_prompt"),
        ({"vad_filter": "true"}, "vad_filter"),
        ({"diarize": "true", "min_speakers": "2"}, "min_speakers"),
        ({"task": "translate"}, "task"),
        ({"language": "de"}, "language"),
        ({"output": "pdf"}, "output"),
        ({"model": "none-such"}, "model"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(speaking, query, param):
    answer = send(speaking, **query)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


@pytest.mark.slow
def test_empty_options_count_as_absent(speaking):
    assert send(speaking, language="", initial_prompt="").text == "see you next week\n"


@pytest.mark.slow
def test_a_missing_file_and_options_in_the_form_are_refused(speaking):
    missing = httpx.post(f"{speaking}/asr", files={"file": b"x"})
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "file")
    sent = httpx.post(f"{speaking}/asr", files={"audio_file": b"x"}, data={"output": "srt"})
    assert sent.status_code == 400
    assert "query" in sent.json()["error"]["message"]
    assert httpx.post(f"{speaking}/asr", data={"audio_file": "x"}).status_code in (400, 415)


@pytest.mark.slow
def test_lenient_servers_ignore_the_options_and_say_so(tmp_path):
    settings = Settings(model="pocketsphinx", data_dir=tmp_path, unsupported_options="warn")
    with serving(settings) as url:
        answer = send(url, initial_prompt="words", vad_filter="true", diarize="true", min_speakers=2, output="srt")
    assert "see you next week" in answer.text
    warning = urllib.parse.unquote(answer.headers["aviary-warning"])
    assert all(name in warning for name in ("initial_prompt", "vad_filter", "min_speakers"))


@pytest.mark.slow
def test_a_model_that_cannot_detect_the_language_says_which_can(speaking):
    answer = send(speaking, "detect-language")
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.startswith("pocketsphinx cannot detect the spoken language")
    assert "whisper" in message
    assert "parakeet-v2" not in message


@pytest.mark.slow
def test_an_unknown_language_is_null(dry):
    answer = send(dry, "detect-language")
    assert answer.json() == {"detected_language": None, "language_code": None, "confidence": None}


@pytest.mark.slow
def test_the_language_is_what_the_model_found(tmp_path):
    pytest.importorskip("nemo", reason="NeMo is not installed")
    model = str(FIXTURES / "canary-languages.nemo")
    german = sorted((FIXTURES / "german").glob("*.flac"))[0]
    with serving(Settings(model=model, data_dir=tmp_path)) as url:
        found = send(url, "detect-language", german.read_bytes(), encode="true").json()
    assert found == {"detected_language": "german", "language_code": "de", "confidence": None}


@pytest.mark.slow
def test_a_real_whisper_takes_every_option(tmp_path, whisper_tiny_en):
    with serving(Settings(model=str(whisper_tiny_en), data_dir=tmp_path, device="cpu")) as url:
        answer = send(
            url, output="json", word_timestamps="true", initial_prompt="A farewell.", vad_filter="true", language="en"
        )
        subtitles = send(url, output="srt", encode="false", audio=raw_week())
    assert "aviary-warning" not in answer.headers
    whole = json.loads(answer.text)
    assert whole["text"].lower().rstrip(".!") == "see you next week"
    (segment,) = whole["segments"]
    assert [word["word"].lower().strip(".!") for word in segment["words"]] == ["see", "you", "next", "week"]
    assert all(0 < word["probability"] <= 1 for word in segment["words"])
    assert segment["avg_logprob"] < 0
    assert "next week" in subtitles.text


def test_detection_reads_the_first_seconds_only(tmp_path):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(2 * 16000 * 90))
    with serving(Settings(skip_model_load=True, data_dir=tmp_path)) as url:
        assert send(url, "detect-language", buffer.getvalue()).status_code == 200
        audio_sec = httpx.get(f"{url}/stats").json()["audio_sec"]
    assert audio_sec == asr_webservice.DETECTION_SEC


def test_only_models_of_several_languages_detect_one():
    detect = {row.name for row in MODELS if row.detects_language}
    assert {"whisper", "parakeet", "canary", "audio-flamingo"} <= detect
    assert not {"parakeet-v2", "pocketsphinx"} & detect
    with pytest.raises(Unsupported, match="whisper"):
        asr_webservice.detection(find("parakeet-v2"))


def test_speakers_are_in_the_lines_and_the_words():
    query = Query(diarize=True, max_speakers=2)
    payload, ignored = asr_webservice.transcription(query, find("whisper-large"), Settings())
    assert (payload["diarize"], payload["max_speakers"], ignored) == (True, 2, [])
    with pytest.raises(Unsupported, match="whisper"):
        asr_webservice.transcription(query, find("audio-flamingo"), Settings())
    segments = [{"segment": "yes", "speaker": "Speaker 1"}, {"segment": "no", "speaker": "Speaker 2"}]
    assert asr_webservice.text({"text": "yes no", "timestamps": {"segment": segments}}, query) == (
        "Speaker 1: yes\nSpeaker 2: no\n"
    )


@pytest.mark.slow
def test_speakers_reach_every_output(dry):
    assert send(dry, diarize="true").text.startswith("Speaker 1: [dry-run]")
    assert "Speaker 1: [dry-run]" in send(dry, diarize="true", output="srt").text
    whole = send(dry, diarize="true", output="json", word_timestamps="true").json()
    assert {segment["speaker"] for segment in whole["segments"]} == {"Speaker 1", "Speaker 2"}
    assert all(word["speaker"] for segment in whole["segments"] for word in segment["words"])


def test_whisper_takes_every_option():
    query = Query(task="translate", initial_prompt="names", vad_filter=True, word_timestamps=True, output="json")
    payload, ignored = asr_webservice.transcription(query, find("whisper-large"), Settings())
    assert payload == {
        "task": "translate",
        "format": "verbose_json",
        "prompt": "names",
        "timestamps": ["word", "segment"],
        "confidence": True,
    }
    assert ignored == []
    with pytest.raises(Unsupported, match="DETECT_SPEECH"):
        asr_webservice.transcription(query, find("whisper-large"), Settings(detect_speech=False))


def test_a_model_without_times_writes_its_text():
    payload, _ = asr_webservice.transcription(Query(), find("audio-flamingo"), Settings())
    assert "timestamps" not in payload
    assert asr_webservice.text({"text": "one line"}, Query()) == "one line\n"
    assert asr_webservice.text({"text": ""}, Query()) == ""


def test_words_go_to_the_segment_in_which_they_are():
    spans = [{"start": 0.0, "end": 1.0, "text": "a b"}, {"start": 1.0, "end": 2.0, "text": "c"}]
    words = [{"word": name, "start": at, "end": at + 0.4} for name, at in (("a", 0.0), ("b", 0.5), ("c", 1.1))]
    verbose = {"language": "en", "text": "a b c", "segments": spans, "words": words}
    whole = json.loads(asr_webservice.text({"formatted": verbose}, Query(output="json", word_timestamps=True)))
    assert [[word["word"] for word in one["words"]] for one in whole["segments"]] == [["a", "b"], ["c"]]
    assert whole["segments"][0]["words"][0]["probability"] is None
