"""NeMo's fields of a manifest's lines: read, honored by the tiny Canary, or refused by name."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import soundfile
from conftest import DIGITS, FIXTURES, LABELS

from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import InputError, RequestError, Unsupported
from worker.evaluation import evaluate, read_manifest
from worker.manifest import process, with_engine
from worker.protocol import nemo_manifest

CANARY = str(FIXTURES / "canary-digits.nemo")


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"lang": "", "source_lang": None, "pnc": ""}, {}),
        ({"lang": "de"}, {"language": "de"}),
        ({"source_lang": "de", "lang": "de"}, {"language": "de"}),
        (
            {"source_lang": "German", "lang": "de-AT", "taskname": "asr", "target_lang": "DE"},
            {"language": "de", "target_language": "de"},
        ),
        ({"source_lang": "en", "target_lang": "de", "lang": "de"}, {"language": "en", "target_language": "de"}),
        ({"source_lang": "en", "target_lang": "de", "taskname": "ast"}, {"language": "en", "target_language": "de"}),
        ({"source_lang": "de", "taskname": "asr"}, {"language": "de", "target_language": "de"}),
        ({"pnc": "no"}, {"punctuation": False}),
        ({"pnc": True}, {"punctuation": True}),
    ],
)
def test_fields_are_options(fields, options):
    assert nemo_manifest.options(fields) == options


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"lang": 5}, "lang"),
        ({"lang": "de", "source_lang": "en"}, "lang"),
        ({"taskname": "diarize"}, "taskname"),
        ({"taskname": "asr", "source_lang": "en", "target_lang": "de"}, "taskname"),
        ({"taskname": "ast", "source_lang": "en"}, "taskname"),
        ({"pnc": "maybe"}, "pnc"),
    ],
)
def test_fields_without_a_meaning_are_refused_by_name(fields, param):
    with pytest.raises(InputError, match=param) as caught:
        nemo_manifest.options(fields)
    assert caught.value.param == param


def test_a_line_wins_over_the_run_and_asks_no_option_that_only_names_the_default():
    own = {"language": "de", "target_language": "de", "punctuation": True}
    assert nemo_manifest.override({}, own) == {"language": "de"}
    assert nemo_manifest.override({"language": "en", "target_language": "en", "punctuation": False}, own) == own


def test_only_an_option_of_the_line_concerns_the_line_alone():
    with pytest.raises(InputError, match="target_lang of the line: no"), nemo_manifest.naming({"target_language": "x"}):
        raise Unsupported("no", param="target_language")
    with pytest.raises(RequestError), nemo_manifest.naming({"target_language": "x"}):
        raise Unsupported("no", param="language")


@pytest.fixture(scope="module")
def dry():
    with Engine(Settings(skip_model_load=True, model="pocketsphinx", warmup=False)) as engine:
        yield engine


def test_duration_alone_selects_the_beginning(tmp_path, dry):
    soundfile.write(tmp_path / "a.wav", np.zeros(32_000, np.float32), 16_000)
    lines = [{"audio_filepath": "a.wav", "duration": seconds} for seconds in (0.5, 1.98, 5)]
    summary = process(write(tmp_path / "m.jsonl", *lines), tmp_path / "out.jsonl", with_engine(dry, "transcribe"))
    texts = [row["pred_text"] for row in rows(summary.output)]
    assert texts == [f"[dry-run] transcribe of {seconds} s" for seconds in ("0.50", "2.00", "2.00")]


def test_a_duration_that_cannot_be_honored_is_refused_by_name(tmp_path, dry):
    soundfile.write(tmp_path / "a.wav", np.zeros(32_000, np.float32), 16_000)
    location = "data:audio/wav;base64," + base64.b64encode((tmp_path / "a.wav").read_bytes()).decode()
    lines = [{"url": location, "duration": seconds} for seconds in (0.5, 2.0)]
    summary = process(write(tmp_path / "m.jsonl", *lines), tmp_path / "out.jsonl", with_engine(dry, "transcribe"))
    short, whole = rows(summary.output)
    assert short["error"]["message"].startswith("duration is 0.5 s, but the audio has 2 s")
    assert "pred_text" in whole


def test_an_evaluation_reads_segments_and_all_fields(tmp_path, dry):
    soundfile.write(tmp_path / "a.wav", np.zeros(32_000, np.float32), 16_000)
    segments = ({"offset": 0.5, "duration": 0.25}, {"offset": 1.5}, {"duration": 0.75}, {"offset": 2.5})
    lines = [{"audio_filepath": "a.wav", "text": "x"} | segment for segment in segments]
    corpus = read_manifest(write(tmp_path / "m.jsonl", *lines))
    *read, past = evaluate(dry, corpus, trusted=True)["details"]
    assert [(one["file"], one["duration_sec"]) for one in read] == [
        ("a.wav at 0.5 s", 0.25),
        ("a.wav at 1.5 s", 0.5),
        ("a.wav", 0.75),
    ]
    assert past["error"]["code"] == "empty_audio"
    for fields in ({"taskname": "diarize"}, {"offset": -1}, {"pnc": 7}):
        wrong = write(tmp_path / "wrong.jsonl", {"audio_filepath": "a.wav", "text": "x", **fields})
        with pytest.raises(RequestError, match=rf"line 1: .*{next(iter(fields))}"):
            read_manifest(wrong)


@pytest.fixture(scope="module")
def canary():
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
    with Engine(Settings(model=CANARY, device="cpu", warmup=False)) as engine:
        yield engine


@pytest.fixture
def mixed(tmp_path):
    """A manifest of one clip in several languages, with German labels where the text is German."""
    from fixtures.train_canary import translated

    fields = (
        {"source_lang": "en", "target_lang": "en", "taskname": "asr", "pnc": "no"},
        {"source_lang": "en", "target_lang": "de", "taskname": "ast", "pnc": "no"},
        {"source_lang": "en", "target_lang": "de", "pnc": "yes"},
        {"lang": "en", "pnc": "yes"},
    )
    return [
        {
            "audio_filepath": str(DIGITS / "00.flac"),
            "text": translated(LABELS["00.flac"], one.get("target_lang", "en"), one["pnc"] == "yes"),
            **one,
        }
        for one in fields
    ]


@pytest.mark.slow
def test_each_line_of_a_manifest_of_mixed_languages_has_its_own(tmp_path, canary, mixed):
    wrong = {"audio_filepath": str(DIGITS / "00.flac"), "source_lang": "fr"}
    manifest = write(tmp_path / "m.jsonl", *mixed, wrong)
    *good, bad = rows(process(manifest, tmp_path / "out.jsonl", with_engine(canary, "transcribe")).output)
    assert [row["pred_text"] for row in good] == [line["text"] for line in mixed]
    assert len({row["pred_text"] for row in good}) == 4
    assert bad["error"]["message"].startswith("lang or source_lang of the line: unsupported language 'fr'")


@pytest.mark.slow
def test_an_evaluation_of_mixed_languages(tmp_path, canary, mixed):
    for number, line in enumerate(mixed):
        (tmp_path / f"{number}.flac").symlink_to(line["audio_filepath"])
        line["audio_filepath"] = f"{number}.flac"
    report = evaluate(canary, read_manifest(write(tmp_path / "m.jsonl", *mixed)), trusted=True)
    assert [detail["pred"] for detail in report["details"]] == [line["text"] for line in mixed]
    assert report["summary"]["wer"] == 0
