"""The audio tower out of a checkpoint: only its tensors are read, wherever they lie."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
import torch
import transformers
from safetensors.torch import save_file

from worker.backends.common import audio_tower
from worker.errors import ModelUnavailable

pytestmark = pytest.mark.slow

CONFIG = transformers.AudioFlamingo3EncoderConfig(
    num_mel_bins=80, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return transformers.AudioFlamingo3Encoder(CONFIG).eval()


def same(one, other) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("prefix", ["audio_tower.", "model.audio_tower."])
def test_one_file(tmp_path, encoder, prefix):
    tensors = {prefix + name: value.clone() for name, value in encoder.state_dict().items()}
    save_file({**tensors, "language_model.weight": torch.zeros(300, 300)}, tmp_path / "model.safetensors")
    assert same(encoder, audio_tower.load_tower(tmp_path, CONFIG, torch.float32, torch.device("cpu")))
    assert audio_tower.tower_bytes(tmp_path) == 4 * sum(value.numel() for value in encoder.state_dict().values())
    assert audio_tower.shapes(tmp_path)["conv1.weight"] == [16, 80, 3]


def test_several_files_of_which_only_those_with_the_tower_are_opened(tmp_path, encoder):
    tensors = {f"audio_tower.{name}": value.clone() for name, value in encoder.state_dict().items()}
    names = list(tensors)
    save_file({name: tensors[name] for name in names[:7]}, tmp_path / "a.safetensors")
    save_file({name: tensors[name] for name in names[7:]}, tmp_path / "b.safetensors")
    places = {name: "a.safetensors" if i < 7 else "b.safetensors" for i, name in enumerate(names)}
    index = {"weight_map": {**places, "language_model.weight": "never-downloaded.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(encoder, audio_tower.load_tower(tmp_path, CONFIG, torch.float32, torch.device("cpu")))


def test_a_tower_of_another_shape_or_none_is_refused(tmp_path, encoder):
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelUnavailable, match="holds no audio tower"):
        audio_tower.tower_bytes(tmp_path)
    save_file({"audio_tower.conv1.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelUnavailable, match="is not an AudioFlamingo3Encoder"):
        audio_tower.load_tower(tmp_path, CONFIG, torch.float32, torch.device("cpu"))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"model\.safetensors is missing"):
        audio_tower.tower_bytes(tmp_path)


@pytest.mark.parametrize(
    "samples", [0, 1, 400, 16_000, audio_tower.WINDOW, audio_tower.WINDOW + 1, 3 * audio_tower.WINDOW + 500]
)
def test_any_length_has_about_25_states_a_second(encoder, samples):
    features = transformers.WhisperFeatureExtractor(feature_size=80)
    with torch.inference_mode():
        (states,) = audio_tower.states(encoder, features, [np.zeros(samples, np.float32)])
    assert states.dtype == np.float32
    assert states.shape[1] == 16
    assert len(states) == pytest.approx(samples / 640, abs=1)
    assert len(states) >= 1


def test_windows_do_not_depend_on_how_many_run_at_once(encoder, monkeypatch):
    features = transformers.WhisperFeatureExtractor(feature_size=80)
    samples = np.random.default_rng(0).standard_normal(5 * audio_tower.WINDOW // 2).astype(np.float32)
    clips = [samples, samples[:9000], samples[5 : audio_tower.WINDOW + 5]]
    with torch.inference_mode():
        together = audio_tower.states(encoder, features, clips)
        monkeypatch.setattr(audio_tower, "WINDOWS_AT_ONCE", 1)
        for one, other in zip(audio_tower.states(encoder, features, clips), together, strict=True):
            assert np.allclose(one, other, atol=1e-5)
