"""OpenAI's JSON through the handler, in the dry run."""

from __future__ import annotations

import asyncio
import base64

import pytest
from conftest import DIGITS

from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.runpod import RunpodWorker

DATA = base64.b64encode((DIGITS / "00.flac").read_bytes()).decode()


@pytest.fixture(scope="module")
def door():
    settings = Settings(skip_model_load=True, runpod_webhook_get_job=None)
    with Engine(settings) as engine:
        yield RunpodWorker(settings, engine)


def ask(door: RunpodWorker, route: str, body=None):
    return asyncio.run(door.handle({"id": "j", "input": {"openai_route": route, "openai_input": body}}))


def chat(*parts, **options):
    return {"messages": [{"role": "user", "content": list(parts)}], **options}


AUDIO = {"type": "input_audio", "input_audio": {"data": DATA, "format": "flac"}}
TEXT = {"type": "text", "text": "What is said?"}


def test_models(door):
    listed = ask(door, "/v1/models")
    assert listed["object"] == "list"
    assert "nvidia/parakeet-tdt-0.6b-v3" in [model["id"] for model in listed["data"]]


def test_chat(door):
    answer = ask(door, "/v1/chat/completions", chat(AUDIO, TEXT, max_tokens=50, temperature=0))
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"].startswith("[dry-run]")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] >= 1


def test_transcriptions(door):
    body = {"audio": {"data": DATA}, "language": "en"}
    assert ask(door, "/v1/audio/transcriptions", body)["text"].startswith("[dry-run]")
    wordy = body | {"response_format": "verbose_json", "timestamp_granularities": ["word"]}
    verbose = ask(door, "/v1/audio/transcriptions", wordy)
    assert verbose["words"]
    assert ask(door, "/v1/audio/transcriptions", body | {"response_format": "srt"}).startswith("1\n00:00:00,000 --> ")


@pytest.mark.parametrize(
    ("route", "field"), [("captions", "caption"), ("embeddings", "embedding"), ("analyze", "embedding")]
)
def test_the_other_routes(door, route, field):
    assert field in ask(door, f"/v1/audio/{route}", {"audio": {"data": DATA}})


@pytest.mark.parametrize(
    ("route", "body", "names"),
    [
        ("/v1/completions", {}, "/v1/chat/completions"),
        ("/v1/chat/completions", chat(TEXT), "exactly one audio"),
        ("/v1/chat/completions", chat(AUDIO, AUDIO), "exactly one audio"),
        ("/v1/chat/completions", chat(AUDIO, stream=True), "stream"),
        ("/v1/chat/completions", chat(AUDIO, tools=[]), "tools"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", chat(AUDIO, model="parakeet"), "cannot chat"),
        ("/v1/chat/completions", None, "openai_input"),
        ("/v1/audio/transcriptions", {"audio": {}}, "url or data"),
        ("/v1/audio/transcriptions", {}, "audio"),
        ("/v1/audio/transcriptions", {"audio": {"data": "@@"}}, "base64"),
        ("/v1/audio/transcriptions", {"audio": {"data": DATA}, "file": "b.wav"}, "either audio or file"),
        ("/v1/chat/completions", {"messages": [{"content": [5]}]}, "part"),
    ],
)
def test_what_is_wrong_is_an_error_that_says_so(door, route, body, names):
    answer = ask(door, route, body)
    assert isinstance(answer["error"], str)
    assert names in answer["error"]
