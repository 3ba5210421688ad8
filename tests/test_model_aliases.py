"""MODEL_ALIASES: other names of models, at every entry point."""

from __future__ import annotations

import asyncio
import json
import typing

import httpx
import openai
import pytest
from openai.types import AudioModel
from openai.types.realtime import AudioTranscription
from serving import serving

from worker import load_model
from worker.config import OPENAI_MODELS, Settings
from worker.engine.engine import Engine
from worker.entrypoints import cli
from worker.entrypoints.runpod import RunpodWorker
from worker.errors import ConfigError, ModelNotFound
from worker.protocol.model_names import aliases, find_model
from worker.protocol.openai import models
from worker.protocol.request import parse

WEEK = "samples/week.wav"
CANARY = "nvidia/canary-1b-v2"


def test_every_name_in_openai_s_client_is_known():
    names = _literals(AudioModel) | _literals(AudioTranscription.model_fields["model"].annotation)
    assert names == set(OPENAI_MODELS)


def _literals(kind) -> set[str]:
    parts = typing.get_args(kind)
    return set(parts) if typing.get_origin(kind) is typing.Literal else set().union(*map(_literals, parts))


@pytest.mark.parametrize("name", OPENAI_MODELS)
def test_openai_s_names_mean_the_default_model(name):
    assert find_model(name, Settings(model="pocketsphinx")).id == "pocketsphinx"
    assert find_model(name, Settings(model="canary"), trusted=True).id == CANARY
    assert parse({"model": name, "inputs": [WEEK]}, Settings(model="canary")).model == CANARY


def test_a_value_replaces_openai_s_names(monkeypatch):
    monkeypatch.setenv("MODEL_ALIASES", "fast=parakeet-ctc-0.6b, house = default,")
    settings = Settings(model="canary")
    assert settings.model_aliases == {"fast": "parakeet-ctc-0.6b", "house": "default"}
    assert aliases(settings) == {"fast": "nvidia/parakeet-ctc-0.6b", "house": CANARY}
    with pytest.raises(ModelNotFound, match="'whisper-1' is not available here"):
        find_model("whisper-1", settings)


def test_the_models_that_load_at_start_may_be_aliases(tmp_path):
    settings = Settings(
        model="pocketsphinx",
        models="whisper-1,fast",
        model_aliases="whisper-1=default,fast=canary",
        skip_model_load=True,
        data_dir=tmp_path,
    )
    assert settings.start_models == ("pocketsphinx", "pocketsphinx", "canary")
    with serving(settings) as url:
        rows = {row["id"]: row for row in httpx.get(f"{url}/v1/models").json()["data"]}
    assert rows[CANARY]["loaded"]
    assert rows["pocketsphinx"]["loaded"]


def test_off_and_the_empty_value(monkeypatch):
    monkeypatch.setenv("MODEL_ALIASES", "off")
    assert Settings().model_aliases == {}
    monkeypatch.setenv("MODEL_ALIASES", "")
    assert tuple(Settings().model_aliases) == OPENAI_MODELS


@pytest.mark.parametrize(("name", "text"), [("a.yaml", "fast: canary\n"), ("a.json", '{"fast": "canary"}')])
def test_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert Settings(model_aliases=str(tmp_path / name)).model_aliases == {"fast": "canary"}
    config = tmp_path / "settings.yaml"
    config.write_text("model_aliases: {fast: canary}\n")
    assert Settings.of(config).model_aliases == {"fast": "canary"}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("parakeet=canary", "parakeet is a model of the catalog"),
        ("nvidia/canary-1b-v2=parakeet", "is a model of the catalog"),
        ("=canary", "alias=model"),
        ("fast=", "alias=model"),
        ("no-such-file.yaml", "nor a file that can be read"),
    ],
)
def test_an_alias_hides_no_model(value, says):
    with pytest.raises(ConfigError, match=says) as caught:
        Settings(model_aliases=value)
    assert caught.value.message.startswith("MODEL_ALIASES=")


def test_openai_s_names_hide_no_model_either():
    assert Settings(model_aliases=dict(Settings().model_aliases)).model_aliases


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "list.yaml").write_text("[canary]")
    with pytest.raises(ConfigError, match="must contain aliases"):
        Settings(model_aliases=str(tmp_path / "list.yaml"))


def test_an_alias_is_allowed_if_what_it_means_is():
    settings = Settings(
        model="parakeet",
        allowed_models=("canary",),
        model_aliases="a=canary,b=whisper,c=evil/parakeet-x,d=default",
    )
    assert aliases(settings) == {"a": CANARY, "d": "nvidia/parakeet-tdt-0.6b-v3"}
    with pytest.raises(ModelNotFound, match="model 'b', which means 'whisper', is not available here"):
        find_model("b", settings)


def test_an_alias_that_ends_in_diarize_asks_for_speakers():
    def diarizes(settings: Settings | None = None, **payload) -> bool:
        (item,) = parse({"inputs": [WEEK], **payload}, settings or Settings()).items
        return item.options.diarize

    assert diarizes(model="gpt-4o-transcribe-diarize")
    assert not diarizes(model="gpt-4o-transcribe")
    assert not diarizes(model="gpt-4o-transcribe-diarize", diarize=False)
    assert diarizes(Settings(model_aliases="mine-diarize=canary"), model="mine-diarize")
    with pytest.raises(ModelNotFound, match="not available here"):
        find_model("gpt-4o-transcribe-diarize", Settings(model_aliases="off"))


@pytest.mark.parametrize("variable", ["MODEL", "MODEL_NAME"])
def test_an_alias_of_the_default_model_chooses_none(monkeypatch, variable):
    monkeypatch.setenv(variable, "whisper-1")
    assert Settings().default_model == Settings.model_fields["parakeet_model"].default
    monkeypatch.setenv("MODEL_ALIASES", "whisper-1=canary")
    assert Settings().default_model == "canary"


def test_the_list_of_models_has_them_with_what_they_mean():
    listed = {row["id"]: row for row in models(Settings(model="canary"))["data"]}
    assert listed["whisper-1"]["root"] == CANARY
    assert listed["whisper-1"]["tasks"] == listed[CANARY]["tasks"]
    assert listed[CANARY]["root"] == CANARY
    assert "whisper-1" not in [row["id"] for row in models(Settings(model_aliases="off"))["data"]]


def test_the_handler_takes_them():
    settings = Settings(skip_model_load=True, model="canary")
    with Engine(settings) as engine:
        worker = RunpodWorker(settings, engine)
        answer = asyncio.run(worker.handle({"id": "x", "input": {"model": "whisper-1", "inputs": [WEEK]}}))
        assert answer["model"] == CANARY
        routed = {"openai_route": "/v1/audio/transcriptions", "openai_input": {"model": "gpt-transcribe", "file": WEEK}}
        assert asyncio.run(worker.handle({"id": "x", "input": routed}))["text"]
        listed = asyncio.run(worker.handle({"id": "x", "input": {"openai_route": "/v1/models"}}))["data"]
        assert ("whisper-1", CANARY) in [(row["id"], row["root"]) for row in listed]


def test_the_python_api_and_the_command_line_take_them(monkeypatch, capsysbinary):
    monkeypatch.setenv("SKIP_MODEL_LOAD", "1")
    monkeypatch.setenv("MODEL", "canary")
    with load_model(model="whisper-1") as bundle:
        assert bundle.model == CANARY
        assert bundle.transcribe(WEEK).output.text
    assert cli.main(["transcribe", WEEK, "--model", "whisper-1", "--format", "json"]) == 0
    assert json.loads(capsysbinary.readouterr().out)["model"] == CANARY


@pytest.mark.slow
def test_openai_s_client_and_stored_jobs_take_them(tmp_path):
    settings = Settings(skip_model_load=True, model="canary", data_dir=tmp_path)
    with serving(settings) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        for streams in (False, True):
            with open(WEEK, "rb") as file:
                raw = client.audio.transcriptions.with_raw_response.create(
                    file=file, model="gpt-4o-transcribe", stream=streams
                )
            assert raw.headers["OpenAI-Model"] == CANARY
        assert client.models.retrieve("whisper-1").root == CANARY
        assert {"whisper-1", CANARY} <= {model.id for model in client.models.list()}
        sync = httpx.post(f"{url}/runsync", json={"input": {"model": "whisper-1", "inputs": [WEEK]}}).json()
        assert sync["output"]["model"] == CANARY
        with open(WEEK, "rb") as file:
            assert httpx.post(f"{url}/transcribe", files={"file": file}, data={"model": "whisper-1"}).status_code == 200


def test_the_advice_of_a_message_survives_a_long_name():
    for name in ("x" * 100_000, f"{'x' * 100_000}-diarize"):
        with pytest.raises(ModelNotFound, match=r"use one of|Use a model without") as caught:
            find_model(name, Settings())
        assert len(caught.value.message) < 1500
