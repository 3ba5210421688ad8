"""Settings: names and defaults that users know, and errors that say what is allowed."""

from __future__ import annotations

import asyncio
import json

import pytest

import handler
import worker as runner
from worker.config import Settings
from worker.entrypoints import cli, runpod
from worker.entrypoints.cli import serve
from worker.errors import ConfigError


def test_the_earlier_defaults():
    made = Settings()
    assert (made.short_max_sec, made.batch_max_items) == (600, 16)
    assert made.batch_max_total_sec == 1200
    assert made.default_model == "nvidia/parakeet-tdt-0.6b-v3"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("DTYPE", "int8", "bfloat16"),
        ("DEVICE", "tpu", "cuda"),
        ("BATCH_MAX_ITEMS", "0", "greater than or equal to 1"),
        ("SHORT_MAX_SEC", "long", "number"),
        ("LOG_LEVEL", "LOUD", "INFO"),
    ],
)
def test_a_value_that_is_not_allowed_is_an_error_that_names_the_allowed(monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name) as caught:
        Settings()
    assert says in str(caught.value)


def test_which_model_is_the_default(monkeypatch):
    for name in ("PARAKEET_MODEL", "MODEL_NAME", "MODEL"):
        monkeypatch.setenv(name, name)
        assert Settings().default_model == name


@pytest.fixture
def checkpoint(tmp_path):
    """A folder that is a checkpoint itself, in one that is a folder of checkpoints."""
    own = tmp_path / "mine"
    own.mkdir()
    (own / "config.json").write_text('{"architectures": ["WhisperForConditionalGeneration"]}')
    return own


def test_a_model_dir_that_is_a_checkpoint_is_the_default_model(checkpoint, tmp_path, monkeypatch):
    assert Settings(model_dir=checkpoint).default_model == str(checkpoint)
    assert Settings(model_dir=tmp_path).default_model == "nvidia/parakeet-tdt-0.6b-v3"  # a folder of checkpoints
    monkeypatch.setenv("MODEL_DIR", str(checkpoint))
    assert Settings.of(model="parakeet").default_model == "parakeet"
    for name in ("PARAKEET_MODEL", "MODEL_NAME", "MODEL"):
        with monkeypatch.context() as named:
            named.setenv(name, "pocketsphinx")
            assert Settings.of().default_model == "pocketsphinx"
            assert Settings.of(model_dir=checkpoint).default_model == str(checkpoint)  # a flag, over the environment
            assert Settings.of(model_dir=tmp_path).default_model == "pocketsphinx"
    served = Settings().model_dump(mode="json")
    monkeypatch.delenv("MODEL_DIR")
    assert Settings(**served).default_model == str(checkpoint), "so a server's other processes are told"


def test_every_door_has_the_same_model(checkpoint, monkeypatch, tmp_path, capsysbinary):
    monkeypatch.setenv("MODEL_DIR", str(checkpoint))
    monkeypatch.setenv("SKIP_MODEL_LOAD", "1")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    found = {}
    door = runpod.RunpodWorker()
    monkeypatch.setattr(handler, "_worker", door)
    found["handler"] = asyncio.run(handler.handler({"id": "a", "input": {"inputs": ["samples/week.wav"]}}))["model"]
    door.engine.close()
    with runner.load_model() as bundle:
        found["python"] = bundle.model
    assert cli.main(["transcribe", "samples/week.wav"]) == 0
    found["command line"] = json.loads(capsysbinary.readouterr().out)["model"]
    monkeypatch.setattr(serve, "serve", lambda settings: found.update(server=settings.default_model) or 0)
    assert cli.main(["serve"]) == 0
    assert found == dict.fromkeys(("handler", "python", "command line", "server"), str(checkpoint))


def test_a_model_dir_that_is_not_there_is_told_at_start(tmp_path):
    with pytest.raises(ConfigError, match=r"MODEL_DIR=.+no such folder"):
        Settings(model_dir=tmp_path / "none")
    assert Settings(model_dir=tmp_path / "none", skip_model_load=True).model_dir


def test_workers_may_be_one_for_each_gpu(monkeypatch):
    monkeypatch.setenv("WORKERS", "auto")
    assert Settings().workers == 0
    assert Settings.of(workers="3").workers == 3
    with pytest.raises(ConfigError, match="WORKERS='many' is not allowed"):
        Settings(workers="many")
