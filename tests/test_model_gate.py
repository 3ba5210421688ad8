"""Requests may use only models that the operator named: at the handler, over HTTP, by proxy and in stored jobs."""

from __future__ import annotations

import asyncio
import shutil

import httpx
import pytest
from conftest import MODEL
from serving import serving

from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.runpod import RunpodWorker
from worker.entrypoints.tasks import Tasks
from worker.errors import ModelNotFound
from worker.protocol.model_names import find_model
from worker.protocol.request import parse

WEEK = "samples/week.wav"
EVIL = "evil/parakeet-x"


def bodies(name: str) -> list[dict]:
    """Every form of a payload that names a model."""
    routed = {"openai_route": "/v1/audio/transcriptions", "openai_input": {"model": name, "file": WEEK}}
    return [
        {"model": name, "inputs": [WEEK]},
        {"input": {"model": name, "inputs": [WEEK]}},
        {"task": "embed", "model": name, "inputs": [WEEK]},
        {"task": "evaluate", "model": name, "inputs": [{"source": WEEK, "text": "see you next week"}]},
        routed,
        {"task": "score", **routed},
        {"task": "evaluate", **routed},
        {
            "openai_route": "/v1/chat/completions",
            "openai_input": {
                "model": name,
                "messages": [{"role": "user", "content": [{"type": "audio", "audio": WEEK}]}],
            },
        },
    ]


@pytest.fixture
def checkpoint(tmp_path):
    """A real checkpoint, whose path no operator named."""
    return str(shutil.copy(MODEL, tmp_path / "parakeet-x.nemo"))


@pytest.mark.parametrize("number", range(len(bodies(EVIL))))
def test_the_handler_loads_no_model_that_the_operator_did_not_name(checkpoint, number):
    settings = Settings(skip_model_load=True)
    with Engine(settings) as engine:
        worker = RunpodWorker(settings, engine)
        for name in (EVIL, checkpoint):
            answer = asyncio.run(worker.handle({"id": "x", "input": bodies(name)[number]}))
            assert answer["code"] == "model_not_found", answer
        assert not engine.models


@pytest.mark.parametrize("number", range(len(bodies(EVIL))))
def test_no_route_loads_one_either(tmp_path, number):
    settings = Settings(skip_model_load=True, data_dir=tmp_path)
    with serving(settings) as url:
        for route in ("/runsync", "/run"):
            answer = httpx.post(f"{url}{route}", json={"input": bodies(EVIL)[number]})
            assert "is not available here" in answer.text, answer.text
        assert EVIL not in httpx.get(f"{url}/health").json()["models"]


def test_a_stored_job_is_held_to_the_settings_of_the_process_that_runs_it():
    settings = Settings(skip_model_load=True)
    with Engine(settings) as engine, pytest.raises(ModelNotFound):
        Tasks(settings, engine).prepare({"model": EVIL, "inputs": [WEEK]}, background=True)


def test_what_the_operator_names_may_be_used(checkpoint):
    for settings in (
        Settings(model=checkpoint),
        Settings(models=(checkpoint,)),
        Settings(allowed_models=(checkpoint,)),
        Settings(allowed_models=("*",)),
    ):
        assert find_model(checkpoint, settings).id == checkpoint
    assert find_model("parakeet", Settings()).name == "parakeet"
    with pytest.raises(ModelNotFound, match="ALLOWED_MODELS"):
        find_model("whisper", Settings(allowed_models=("parakeet",)))
    assert parse({"model": checkpoint, "inputs": [WEEK]}, Settings(), trusted=True).model == checkpoint
