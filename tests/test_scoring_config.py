"""config.json of scoring: the documented one is read as it is, and a mistake is told with its file and field."""

from __future__ import annotations

import copy
import json

import pytest

from worker.config import Settings
from worker.errors import ConfigError
from worker.scoring.config import ScoreConfig

DOCUMENTED = {
    "models": [
        {"key": "whisper-small", "type": "whisper", "model_id": "openai/whisper-small"},
        {
            "key": "higgs-audio-v2",
            "type": "higgs_audio",
            "model_id": "bosonai/higgs-audio-v2-understanding-3B",
            "processor_id": "openai/whisper-large-v3-turbo",
            "transcriber_id": "openai/whisper-small",
        },
    ],
    "video_clip_dir": "../video_clip",
    "cache_dir": "./cache",
    "target_sampling_rate": 16000,
}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "video_clip").mkdir()
    (tmp_path / "server").mkdir()
    path = tmp_path / "server" / "config.json"
    path.write_text(json.dumps(DOCUMENTED))
    return path


def test_the_documented_file_is_read_and_its_folders_are_those_beside_it(file, tmp_path):
    config = ScoreConfig.read(file, Settings())
    assert [entry.key for entry in config.models] == ["whisper-small", "higgs-audio-v2"]
    assert config.models[1].transcriber_id == "openai/whisper-small"
    assert (config.video_clip_dir, config.cache_dir) == (tmp_path / "video_clip", tmp_path / "server" / "cache")


@pytest.mark.parametrize("name", ["AUDIO_SCORE_MODEL_KEYS", "AUDIO_SCORE_MODEL_KEY"])
def test_the_models_may_be_limited_to_some(file, monkeypatch, name):
    monkeypatch.setenv(name, "higgs-audio-v2")
    assert [entry.key for entry in ScoreConfig.read(file, Settings()).models] == ["higgs-audio-v2"]
    monkeypatch.setenv(name, "higgs-audio-v2, whisper-small")
    assert [entry.key for entry in ScoreConfig.read(file, Settings()).models] == ["whisper-small", "higgs-audio-v2"]
    monkeypatch.setenv(name, "whisper")
    with pytest.raises(ConfigError, match=r"AUDIO_SCORE_MODEL_KEYS='whisper'.+whisper-small, higgs-audio-v2"):
        ScoreConfig.read(file, Settings())


def test_the_other_settings_have_the_documented_defaults():
    made = Settings()
    assert (made.audio_score_max_batch_size, made.audio_score_max_batch_wait_ms) == (8, 10)
    assert made.audio_score_disable_cache_flush is False
    assert (made.audio_score_server_socket, made.audio_score_server_host, made.audio_score_server_port) == (
        None,
        None,
        None,
    )


def change(place: str, value: object) -> dict:
    """The documented file with another value, or without it (...)."""
    made = copy.deepcopy(DOCUMENTED)
    *way, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    inner = made
    for part in way:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return made


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("models.0.type", "wisper", r"models\[0\]\.type: .+'whisper', 'higgs_audio' or 'model'"),
        ("models.0.modelid", "x", r"models\[0\]\.modelid is not a field; the fields are key, type, model_id"),
        ("models.0.model_id", ..., r"models\[0\]\.model_id: Field required"),
        ("models.1.processor_id", ..., r"models\[1\]: processor_id is required"),
        ("models.1.transcriber_id", ..., r"models\[1\]: transcriber_id is required"),
        ("models.0.processor_id", "x", r"models\[0\]: processor_id is for type higgs_audio only"),
        ("models.0.key", "../outside", r"models\[0\]\.key"),
        ("models.1.key", "whisper-small", r"models: key 'whisper-small' occurs twice"),
        ("models", [], "models"),
        ("models", {}, "models"),
        (
            "video_dir",
            "x",
            "video_dir is not a field; the fields are models, video_clip_dir, cache_dir, target_sampling_rate",
        ),
        ("video_clip_dir", "../none", "video_clip_dir: no such folder: .+none"),
        ("cache_dir", 5, "cache_dir"),
        ("target_sampling_rate", 48000, "target_sampling_rate: 48000 .+ 16000 Hz"),
        ("target_sampling_rate", "16000", "target_sampling_rate: .+integer"),
    ],
)
def test_a_mistake_names_the_file_and_the_field(file, place, value, says):
    file.write_text(json.dumps(change(place, value)))
    with pytest.raises(ConfigError, match=rf"config\.json: {says}"):
        ScoreConfig.read(file, Settings())


def test_no_json_and_no_file_are_told_as_such(file):
    file.write_text("{models: []}")
    with pytest.raises(ConfigError, match=r"config\.json: Invalid JSON"):
        ScoreConfig.read(file, Settings())
    file.unlink()
    with pytest.raises(ConfigError, match=r"config\.json: No such file"):
        ScoreConfig.read(file, Settings())
