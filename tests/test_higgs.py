"""Higgs as scoring uses it: the tower's masked states and a Whisper's text, from tiny checkpoints of the real form."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
from conftest import check_embeddings

pytest.importorskip("transformers", reason="transformers is not installed")
import torch
import transformers
from fixtures import tiny_whisper
from safetensors.torch import save_file

from worker.backends import create
from worker.catalog import find
from worker.config import Settings
from worker.errors import ModelUnavailable
from worker.types import Batch, Clip, Options, Piece

pytestmark = pytest.mark.slow

SIZES = {
    "num_mel_bins": 80,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 48,
    "max_source_positions": 1500,
}
NOISE = np.random.default_rng(0).standard_normal(16_000 * 40).astype(np.float32) * 0.1
CLIPS = [Clip(NOISE[: 16_000 * 3]), Clip(NOISE[5000 : 5000 + 16_000 * 7]), Clip(NOISE[: 16_000 * 35])]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    base = tmp_path_factory.mktemp("higgs")
    whisper = tiny_whisper.save(base / "whisper")
    processor = shutil.copytree(whisper, base / "processor", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    encoder = transformers.AudioFlamingo3Encoder(transformers.AudioFlamingo3EncoderConfig(**SIZES)).eval()
    tensors = {f"audio_tower.{name}": tensor.clone() for name, tensor in encoder.state_dict().items()}
    rows = {}
    for name, config in (("told", {"audio_encoder_config": SIZES}), ("untold", {})):
        folder = base / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        save_file({**tensors, "text_model.weight": torch.zeros(200, 200)}, folder / "model.safetensors")
        rows[name] = dataclasses.replace(
            find("higgs"), id=str(folder), processor=str(processor), transcriber=str(whisper)
        )
    return rows, whisper, encoder


def ask(backend, clips, **options):
    return backend.infer(Batch(tuple(Piece(clip, Options("m", **options)) for clip in clips)))


@pytest.mark.parametrize("kind", ["told", "untold"])
def test_features_are_the_towers_and_text_is_the_transcribers(parts, kind):
    rows, whisper, encoder = parts
    backend = create(rows[kind], Settings(device="cpu"))
    backend.load()
    check_embeddings(functools.partial(ask, backend, task="embed"), CLIPS, width=64, frame_rate=25.0)
    features = transformers.AutoFeatureExtractor.from_pretrained(whisper)(
        CLIPS[0].samples, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt"
    )
    (embedding,) = ask(backend, CLIPS[:1], task="embed")
    with torch.inference_mode():
        expected = encoder(
            features["input_features"], input_features_mask=features["attention_mask"]
        ).last_hidden_state[0]
    assert np.allclose(embedding.values, expected[: len(embedding.values)], atol=1e-4)
    alone = create(find(str(whisper)), Settings(device="cpu"))
    alone.load()
    assert ask(backend, CLIPS[:2], max_new_tokens=9) == ask(alone, CLIPS[:2], max_new_tokens=9)


def test_only_the_tower_is_counted_and_loaded(parts):
    rows, whisper, _ = parts
    backend = create(rows["told"], Settings(device="cpu"))
    whole = sum(file.stat().st_size for file in whisper.glob("*.safetensors"))
    tower = sum(4 * tensor.numel() for tensor in parts[2].state_dict().values())
    assert backend.weight_bytes() == whole + tower


def test_a_missing_part_says_which(parts, tmp_path):
    rows, _, _ = parts
    offline = Settings(device="cpu", hf_hub_offline=True)
    for missing in ({"processor": "no/whisper-such"}, {"transcriber": "no/whisper-such"}):
        with pytest.raises(ModelUnavailable, match="no/whisper-such"):
            create(dataclasses.replace(rows["told"], **missing), offline).load()
    (tmp_path / "config.json").write_text("{}")
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelUnavailable, match="holds no audio tower"):
        create(dataclasses.replace(rows["told"], id=str(tmp_path)), Settings(device="cpu")).load()
