"""Weights on disk are found before anything is downloaded."""
from __future__ import annotations

import pytest

from worker import config, weights
from worker.config import Settings
from worker.errors import ModelUnavailable

NAME = "nvidia/parakeet-tdt-0.6b-v3"


def snapshot(hub, revision="abc", main="abc"):
    folder = hub / "models--nvidia--parakeet-tdt-0.6b-v3"
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(main)
    path = folder / "snapshots" / revision / "parakeet-tdt-0.6b-v3.nemo"
    path.touch()
    return path


@pytest.fixture(autouse=True)
def nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "VOLUME", tmp_path / "volume")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_each_place_is_looked_into(tmp_path):
    in_home = snapshot(tmp_path / "home" / ".cache" / "huggingface" / "hub")
    assert weights.nemo_file(NAME, Settings(hf_hub_offline=True)) == in_home
    on_volume = snapshot(tmp_path / "volume" / "huggingface-cache" / "hub")
    assert weights.nemo_file(NAME, Settings(hf_hub_offline=True)) == on_volume
    in_hf_home = snapshot(tmp_path / "hf" / "hub")
    assert weights.nemo_file(NAME, Settings(hf_hub_offline=True, hf_home=tmp_path / "hf")) == in_hf_home
    (tmp_path / "models" / "parakeet-tdt-0.6b-v3").mkdir(parents=True)
    in_folder = tmp_path / "models" / "parakeet-tdt-0.6b-v3" / "parakeet-tdt-0.6b-v3.nemo"
    in_folder.touch()
    assert weights.nemo_file(NAME, Settings(hf_hub_offline=True, model_dir=tmp_path / "models")) == in_folder


def test_the_revision_that_main_names_wins(tmp_path):
    hub = tmp_path / "hf" / "hub"
    snapshot(hub, "aaa", main="bbb")
    (hub / "models--nvidia--parakeet-tdt-0.6b-v3" / "refs" / "main").unlink()
    newer = snapshot(hub, "bbb", main="bbb")
    assert weights.nemo_file(NAME, Settings(hf_home=tmp_path / "hf")) == newer


def test_nowhere_and_offline_says_where_it_looked(tmp_path):
    (tmp_path / "hf" / "hub").mkdir(parents=True)
    with pytest.raises(ModelUnavailable, match="HF_HUB_OFFLINE"):
        weights.nemo_file(NAME, Settings(hf_hub_offline=True, hf_home=tmp_path / "hf"))
