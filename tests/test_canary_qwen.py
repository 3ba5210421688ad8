"""Canary-Qwen on a tiny checkpoint of random weights, and against NeMo's own SALM where peft is installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from conftest import DIGITS, LABELS
from serving import serving

pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
import torch
from fixtures import tiny_canary_qwen
from test_handler import run

from worker.backends import create
from worker.backends.canary_qwen import CanaryQwen, language_model
from worker.catalog import check, find
from worker.config import Settings
from worker.errors import ModelUnavailable, Unsupported
from worker.types import Batch, Clip, Options, Piece, Transcript

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_canary_qwen.save(tmp_path_factory.mktemp("canary_qwen"))


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [soundfile.read(DIGITS / name, dtype="float32")[0] for name in list(LABELS)[:5]]


def load(folder: Path, **values) -> CanaryQwen:
    made = create(find(str(folder)), Settings(device="cpu", **values))
    assert isinstance(made, CanaryQwen)
    made.load()
    return made


@pytest.fixture(scope="module")
def model(folder):
    made = load(folder)
    yield made
    made.close()


def transcribe(model, clips: list[np.ndarray], **options) -> list[Transcript]:
    options = Options("m", **({"max_new_tokens": 12} | options))
    return model.infer(Batch(tuple(Piece(Clip(clip), options) for clip in clips)))


def record_ids(model, monkeypatch) -> list[list[int]]:
    found: list[list[int]] = []
    read = model._read
    monkeypatch.setattr(model, "_read", lambda ids: found.append(ids) or read(ids))
    return found


def test_the_tokens_are_those_of_nemo(folder, model, clips, monkeypatch):
    pytest.importorskip("peft", reason="peft, which NeMo's SALM requires, is not installed")
    from nemo.collections.speechlm2.models import SALM

    config = tiny_canary_qwen.config(str(folder / "llm_backbone"))
    reference = SALM(config | {"pretrained_weights": False}).eval()
    from safetensors.torch import load_model

    load_model(reference, folder / "model.safetensors", strict=False)
    reference.perception.preprocessor.featurizer.dither = 0.0
    prompt = [[{"role": "user", "content": f"Transcribe the following: {tiny_canary_qwen.TAG}"}]]
    expected = []
    for clip in clips:
        audio = {"audios": torch.from_numpy(clip)[None], "audio_lens": torch.tensor([len(clip)])}
        with torch.inference_mode():
            ids = reference.generate(json.loads(json.dumps(prompt)), **audio, max_new_tokens=12, do_sample=False)
        expected.append(ids[0].tolist())
    found = record_ids(model, monkeypatch)
    transcribe(model, clips)
    ends = set(model._ends)
    assert found == [[token for token in row if token not in ends] for row in expected]


def test_transcripts_are_english_and_generated(model, clips):
    transcripts = transcribe(model, clips)
    assert len({transcript.text for transcript in transcripts}) > 2
    assert all(transcript.language == "en" and not transcript.words for transcript in transcripts)
    assert all(transcript.tokens_generated <= 12 for transcript in transcripts)
    assert any("max_new_tokens" in (transcript.warning or "") for transcript in transcripts)


def test_silence_has_no_text(model, clips):
    silent, spoken = transcribe(model, [np.zeros(16_000, np.float32), clips[0]])
    assert silent.text == ""
    assert [spoken] == transcribe(model, clips[:1])


def test_text_is_streamed(model, clips):
    parts: list[str] = []
    [transcript] = model.infer(Batch((Piece(Clip(clips[0]), Options("m", max_new_tokens=12), on_text=parts.append),)))
    assert "".join(parts) == transcript.text


def test_the_lora_is_added_to_the_weight_that_it_adapts():
    generator = torch.Generator().manual_seed(0)
    weight, lower, upper = (torch.randn(*shape, generator=generator) for shape in ((6, 4), (2, 4), (6, 2)))
    layer = "llm.base_model.model.model.layers.0.self_attn.q_proj"
    found = language_model(
        {
            "embed_tokens.weight": lower,
            f"{layer}.base_layer.weight": weight,
            f"{layer}.lora_A.default.weight": lower,
            f"{layer}.lora_B.default.weight": upper,
            "perception.proj.weight": weight,
        },
        2.0,
    )
    x = torch.randn(4, generator=generator)
    assert set(found) == {"model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "lm_head.weight"}
    torch.testing.assert_close(
        found["model.layers.0.self_attn.q_proj.weight"] @ x, weight @ x + 2.0 * (upper @ (lower @ x))
    )


def test_the_lora_changes_the_text(folder, model, clips, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    change(tmp_path, lambda config: config["lora"].update(lora_alpha=0))
    other = load(tmp_path)
    assert [one.text for one in transcribe(other, clips)] != [one.text for one in transcribe(model, clips)]


def change(folder: Path, edit) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda config: config["perception"]["encoder"].update(_target_="os.system"), "names 'os.system' at encoder"),
        (lambda config: config["perception"]["encoder"].update(_partial_=True), "encoder._partial_"),
        (lambda config: config["perception"].pop("preprocessor"), "no class at perception.preprocessor"),
        (lambda config: config["perception"]["modality_adapter"].update(_target_="a.Qformer"), "IdentityConnector"),
        (lambda config: config.update(prompt_format="phi"), "prompt format"),
        (lambda config: config["lora"].update(use_dora=True), "LoRA with other settings"),
        (lambda config: config["lora"].update(r=0), "without a rank"),
        (lambda config: config["perception"]["encoder"].update(n_layers=3), "do not match its configuration"),
    ],
)
def test_other_checkpoints_are_refused(folder, tmp_path, edit, message):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    change(tmp_path, edit)
    with pytest.raises(ModelUnavailable, match=message):
        load(tmp_path)


def test_the_language_models_folder_is_that_of_the_row_and_never_of_the_checkpoint(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "salm")
    change(tmp_path / "salm", lambda config: config.update(pretrained_llm="someone/else"))
    shutil.rmtree(tmp_path / "salm" / "llm_backbone")
    (tmp_path / "models").mkdir()
    values = {"model_dir": tmp_path / "models", "hf_hub_offline": True}
    with pytest.raises(ModelUnavailable, match=r"Qwen/Qwen3-1\.7B is in no cache"):
        load(tmp_path / "salm", **values)
    shutil.copytree(folder / "llm_backbone", tmp_path / "models" / "Qwen" / "Qwen3-1.7B")
    load(tmp_path / "salm", **values).close()


def test_another_language_model_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    change(tmp_path / "llm_backbone", lambda config: config.update(model_type="qwen2"))
    with pytest.raises(ModelUnavailable, match="is qwen2, not qwen3"):
        load(tmp_path)


def test_http_and_a_job_transcribe(folder, tmp_path):
    file = DIGITS / next(iter(LABELS))
    values = {"model": str(folder), "device": "cpu", "data_dir": tmp_path, "allowed_paths": (DIGITS,)}
    with serving(Settings(**values)) as url, file.open("rb") as audio:
        response = httpx.post(
            f"{url}/v1/audio/transcriptions",
            files={"file": audio},
            data={"language": "en", "max_new_tokens": "9"},
            timeout=60,
        )
    assert response.status_code == 200, response.text
    assert response.json()["text"]
    (job,) = run([{"inputs": [str(file)], "max_new_tokens": 9}], MODEL=str(folder))
    assert "input 0" in job


def test_the_row(folder):
    row = find("nvidia/canary-qwen-2.5b")
    assert (row.name, row.backend, row.languages, row.window_sec) == ("canary-qwen", "canary_qwen", ("en",), 40)
    assert find(str(folder)).backend == find("someone/canary-qwen-mine").backend == row.backend
    assert find("someone/canary-mine").backend == "canary"
    with pytest.raises(Unsupported, match="cannot return timestamps"):
        check(row, Options(row.id, timestamps=True))
    with pytest.raises(Unsupported, match="unsupported language 'de'"):
        check(row, Options(row.id, language="de"))
