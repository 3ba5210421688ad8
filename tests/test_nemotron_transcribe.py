"""Nemotron 3.5 Transcribe on a tiny checkpoint of random weights: the real processor, encoders, generation and head."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from conftest import DIGITS, LABELS
from serving import serving

pytest.importorskip("transformers", reason="transformers is not installed")
from fixtures import tiny_transcribe
from test_handler import run
from test_package import ROOT

from worker.backends import create
from worker.backends.nemotron_transcribe import WORD_SEC, NemotronTranscribe, split_words
from worker.catalog import check, find
from worker.config import Settings
from worker.errors import ModelUnavailable, Unsupported
from worker.types import Batch, Clip, Message, Options, Piece, Reply, Transcript

pytestmark = pytest.mark.slow

NAME = "nvidia/NVIDIA-Nemotron-3.5-Transcribe-30B-A4B"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_transcribe.save(tmp_path_factory.mktemp("transcribe"))


@pytest.fixture(scope="module")
def model(folder):
    made = create(find(str(folder)), Settings(device="cpu"))
    assert isinstance(made, NemotronTranscribe)
    made.load()
    yield made
    made.close()


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.concatenate([soundfile.read(DIGITS / name, dtype="float32")[0] for name in list(LABELS)[:3]])


def infer(model, samples: np.ndarray, **options):
    piece = Piece(Clip(samples), Options(model="", **({"max_new_tokens": 12} | options)))
    return model.infer(Batch((piece,)))[0]


def plan(model, monkeypatch, text: str, starts: list[int]):
    """Let the model write `text`, and its head place the start of each of the text's pieces in a frame."""
    monkeypatch.setattr(model, "_read", lambda ids: text)
    pieces = [piece for word in split_words(text) for piece in model._pieces.encode(f" {word}")]
    assert len(pieces) == len(starts)

    def logprobs(states, classes):
        rows = np.full((len(states), len(classes)), -9, np.float32)
        rows[:, classes.index(model._blank)] = -0.1
        for frame, piece in zip(starts, pieces, strict=True):
            rows[frame] = -9
            rows[frame, classes.index(piece)] = -0.1
        return rows

    monkeypatch.setattr(model, "_logprobs", logprobs)


def test_a_transcript_has_text_and_times_within_the_clip(model, samples):
    plain, timed = infer(model, samples), infer(model, samples, timestamps=True)
    assert isinstance(plain, Transcript)
    assert plain.text
    assert plain.text == timed.text
    assert not plain.words
    assert [word.text for word in timed.words] == split_words(timed.text)
    times = [time for word in timed.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= len(samples) / 16_000 + 0.01
    assert all(word.end - word.start <= WORD_SEC + 1e-9 for word in timed.words)
    assert " ".join(segment.text for segment in timed.segments).split() == [word.text for word in timed.words]


def test_a_word_starts_in_the_frame_of_its_first_piece(model, samples, monkeypatch):
    plan(model, monkeypatch, "<spk:0> at <spk:1> be", [2, 4, 10, 60, 65])
    transcript = infer(model, samples, timestamps=True)
    assert transcript.text == "<spk:0> at <spk:1> be"
    assert [word.text for word in transcript.words] == ["at", "be"]
    assert [word.start for word in transcript.words] == pytest.approx([2 * 0.04, 10 * 0.04], abs=0.01)
    assert transcript.words[0].end == transcript.words[1].start
    assert transcript.words[1].end == pytest.approx(10 * 0.04 + WORD_SEC, abs=0.01)


def test_words_that_do_not_fit_have_no_times_and_a_warning(model, monkeypatch):
    monkeypatch.setattr(model, "_read", lambda ids: "many words in a short clip")
    noise = np.random.default_rng(0).normal(0, 0.1, 1600).astype(np.float32)
    transcript = infer(model, noise, timestamps=True)
    assert transcript.text == "many words in a short clip"
    assert not transcript.words
    assert "no times" in transcript.warning
    assert "cut off" in transcript.warning


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<spk:0> Hi, there. <spk:1> Fine.", ["Hi,", "there.", "Fine."]),
        ("<ev:laugh> well", ["well"]),
        ("你好。 3 朋友", ["你", "好", "3", "朋", "友"]),
        ("", []),
    ],
)
def test_words_of_a_text(text, words):
    assert split_words(text) == words


def test_the_head_is_read_in_chunks(model, samples, monkeypatch):
    whole = infer(model, samples, timestamps=True)
    monkeypatch.setattr("worker.backends.nemotron_transcribe.FRAMES_AT_ONCE", 7)
    assert infer(model, samples, timestamps=True) == whole


def test_a_prompt_replaces_the_default_instruction(model, samples, monkeypatch):
    conversations = []
    template = model._processor.apply_chat_template
    monkeypatch.setattr(
        model._processor,
        "apply_chat_template",
        lambda turns, **options: conversations.append((turns, options)) or template(turns, **options),
    )
    default, own = infer(model, samples), infer(model, samples, prompt="Name the speakers.")
    assert default.text != own.text
    texts = [turns[0][0]["content"][0]["text"] for turns, _ in conversations]
    assert texts == [model._processor.default_transcription_prompt, "Name the speakers."]
    assert all(options["enable_thinking"] is False for _, options in conversations)


def test_tags_stay_in_the_text_and_other_control_tokens_do_not(model):
    ids = model._tokenizer.encode("<spk:1> fox<|im_end|><unk><|im_start|>", add_special_tokens=False)
    assert model._read(ids) == "<spk:1> fox"


def test_a_chat_has_the_audio_in_one_turn(model, samples):
    messages = (
        Message("system", "Be brief."),
        Message("user", "One."),
        Message("assistant", "Two."),
        Message("user", "Three?", audio=True),
    )
    reply = infer(model, samples, task="chat", messages=messages)
    assert isinstance(reply, Reply)
    other = infer(model, samples, task="chat", messages=(*messages[:1], replace(messages[1], audio=True)))
    assert reply.prompt_tokens > other.prompt_tokens > 0
    assert reply.completion_tokens <= 12


def test_text_is_streamed(model, samples):
    parts: list[str] = []
    options = Options(model="", max_new_tokens=12)
    [transcript] = model.infer(Batch((Piece(Clip(samples), options, on_text=parts.append),)))
    assert "".join(parts) == transcript.text
    assert len(parts) > 1


def test_silence_has_no_text_and_costs_others_nothing(model, samples):
    options = Options(model="", max_new_tokens=12, timestamps=True)
    clips = [np.zeros(16_000, np.float32), samples]
    silent, spoken = model.infer(Batch(tuple(Piece(Clip(clip), options) for clip in clips)))
    assert silent.text == ""
    assert spoken == infer(model, samples, timestamps=True)


def test_http_the_command_line_and_a_job_transcribe(folder, tmp_path):
    file = DIGITS / next(iter(LABELS))
    values = {"model": str(folder), "device": "cpu", "data_dir": tmp_path, "allowed_paths": (DIGITS,)}
    with serving(Settings(**values)) as url, file.open("rb") as audio:
        form = {
            "response_format": "verbose_json",
            "timestamp_granularities[]": "word",
            "max_new_tokens": "9",
        }
        response = httpx.post(f"{url}/v1/audio/transcriptions", files={"file": audio}, data=form, timeout=60)
        body = response.json()
    assert response.status_code == 200, body
    assert [word["word"] for word in body["words"]] == split_words(body["text"])
    environment = os.environ | {"DEVICE": "cpu", "DATA_DIR": str(tmp_path / "cli"), "MODEL": str(folder)}
    command = [sys.executable, "-m", "worker", "transcribe", str(file), "--max-new-tokens", "9"]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["text"] == body["text"]
    (job,) = run([{"inputs": [str(file)], "max_new_tokens": 9, "timestamps": True}], MODEL=str(folder))
    assert re.search(r"\[\d+\.\d\d-\d+\.\d\d\]", job), job  # the times of a segment


def test_a_device_without_the_memory_is_refused_before_anything_is_downloaded(monkeypatch):
    def download(*arguments):
        raise AssertionError("a download has begun")

    monkeypatch.setattr("worker.backends.common.checkpoints.download", download)
    for dtype, need in (("bfloat16", "63.3 GiB"), ("float32", "126.7 GiB")):
        model = create(find("nemotron-transcribe"), Settings(device="cpu", dtype=dtype, models_memory_gb=24))
        with pytest.raises(ModelUnavailable, match=f"needs {need}.*24.0 GiB are allowed"):
            model.weight_bytes()
    model = create(find("nemotron-transcribe"), Settings(device="cpu", dtype="bfloat16", models_memory_gb=64))
    with pytest.raises(AssertionError, match="a download has begun"):
        model.weight_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized weights"),
        ({"model_type": "whisper"}, "not of Nemotron3_5TranscribeForConditionalGeneration"),
    ],
)
def test_other_checkpoints_are_refused(folder, tmp_path, change, message):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    model = create(find(str(tmp_path)), Settings(device="cpu"))
    with pytest.raises(ModelUnavailable, match=message):
        model.load()


def test_the_row():
    row = find(NAME)
    assert (row.name, row.licence, row.window_sec) == ("nemotron-transcribe", "OpenMDW-1.1", 3600)
    check(row, Options(model=row.id, timestamps=True, prompt="Name the speakers."))
    with pytest.raises(Unsupported, match="control token"):
        check(row, Options(model=row.id, prompt="<|audio|>"))
    with pytest.raises(Unsupported, match="cannot translate"):
        check(row, Options(model=row.id, task="translate"))
    assert find("someone/nemotron-3.5-transcribe-finetuned").backend == row.backend
