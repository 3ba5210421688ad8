"""Checkpoints of transformers run no code of their author's: no Python files, no pickles, no class of their choice."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
from pathlib import Path

import pytest

from worker.backends import create
from worker.backends.common import pretrained
from worker.catalog import find
from worker.config import Settings
from worker.errors import ModelUnavailable

pytest.importorskip("transformers", reason="transformers is not installed")
import torch
import transformers
from fixtures import tiny_flamingo, tiny_whisper

ROOT = Path(__file__).parent.parent
CODE = """
import os, transformers
os.mkdir(os.environ["PRETRAINED_TEST"])
class Evil: pass
class Config(transformers.PretrainedConfig): model_type = "evil"
class Model(transformers.WhisperForConditionalGeneration): pass
class Features(transformers.WhisperFeatureExtractor): pass
class Processor(transformers.WhisperProcessor): pass
class Words(transformers.WhisperTokenizerFast): pass
"""


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["PRETRAINED_TEST"],)


@pytest.fixture
def pwned(tmp_path, monkeypatch) -> Path:
    """The folder that exists once code of a checkpoint has run."""
    monkeypatch.setenv("PRETRAINED_TEST", str(tmp_path / "pwned"))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    return tmp_path / "pwned"


@pytest.fixture
def whisper(tmp_path) -> Path:
    return tiny_whisper.save(tmp_path / "whisper")


@pytest.fixture
def flamingo(tmp_path) -> Path:
    return tiny_flamingo.save(tmp_path / "flamingo")


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | values))


def load(folder: Path) -> None:
    create(find(str(folder)), Settings(device="cpu")).load()


def test_from_pretrained_is_called_in_one_place():
    calls = [
        path.name for path in (ROOT / "worker").rglob("*.py") if re.search(r"from_pretrained\(\w", path.read_text())
    ]
    assert calls == ["pretrained.py"]


def with_code(folder: Path) -> None:
    """Python files, and names of their classes wherever transformers looks for such."""
    (folder / "evil.py").write_text(CODE)
    auto = {
        "AutoConfig": "evil.Config",
        "AutoModel": "evil.Model",
        "AutoModelForSpeechSeq2Seq": "evil.Model",
        "AutoFeatureExtractor": "evil.Features",
        "AutoProcessor": "evil.Processor",
        "AutoTokenizer": ["evil.Words", "evil.Words"],
    }
    for name in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        change(folder / name, auto_map=auto)


@pytest.mark.parametrize("make", [tiny_whisper.save, tiny_flamingo.save])
def test_code_beside_classes_of_transformers_is_ignored(tmp_path, pwned, make):
    folder = make(tmp_path / "x")
    with_code(folder)
    load(folder)
    assert not pwned.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "evil"},
        {"processor_class": "Processor", "feature_extractor_type": "Features"},
        {"tokenizer_class": "Words"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_code_that_a_flamingo_requires_is_not_run(flamingo, pwned, values):
    """Where transformers has a class that fits as well, the checkpoint loads with that."""
    with_code(flamingo)
    for name in ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        change(flamingo / name, **values)
    with contextlib.suppress(Exception):
        load(flamingo)
    assert not pwned.exists()


def test_the_reason_is_the_code(flamingo, pwned):
    with_code(flamingo)
    change(flamingo / "config.json", model_type="evil")
    with pytest.raises(ModelUnavailable, match="requires Python code of its own, which Aviary does not run"):
        load(flamingo)
    assert not pwned.exists()


def test_other_errors_keep_their_words(tmp_path):
    with pytest.raises((ValueError, OSError)) as caught:
        pretrained.load(transformers.AutoConfig, tmp_path)
    assert not isinstance(caught.value, ModelUnavailable)


@pytest.mark.parametrize("name", ["RagRetriever", "AutoModel", "pipeline", "LlamaForCausalLM", None])
def test_a_flamingo_names_its_own_class_or_none(flamingo, name):
    change(flamingo / "config.json", architectures=[name] if name else None)
    row = find("nvidia/audio-flamingo-3-hf")  # a repository's class is not known before it is loaded
    made = create(row, Settings(device="cpu", model_dir=flamingo.parent))
    flamingo.rename(flamingo.parent / "audio-flamingo-3-hf")
    with pytest.raises(ModelUnavailable, match=f"is a checkpoint of {name or 'no class'}, not of AudioFlamingo3"):
        made.load()


def pickled(file: Path) -> None:
    saved = io.BytesIO()
    torch.save({"a": Evil()}, saved)
    file.write_bytes(saved.getvalue())


@pytest.mark.parametrize("index", [False, True])
def test_a_checkpoint_with_pickled_weights_alone_is_refused(whisper, pwned, index):
    (whisper / "model.safetensors").unlink()
    pickled(whisper / "pytorch_model.bin")
    if index:
        change(whisper / "pytorch_model.bin.index.json", metadata={}, weight_map={"a": "pytorch_model.bin"})
    with pytest.raises(ModelUnavailable, match=r"lacks model\.safetensors"):
        load(whisper)
    with pytest.raises(OSError, match="safetensors"):
        pretrained.load_model(
            transformers.WhisperForConditionalGeneration, whisper, device=torch.device("cpu"), dtype=torch.float32
        )
    assert not pwned.exists()


@pytest.mark.parametrize(
    "name", ["evil.bin", "../evil.safetensors", "/tmp/evil.safetensors", "a/b.safetensors", "*", 5]
)
def test_an_index_names_safetensors_of_the_folder_alone(whisper, pwned, name):
    (whisper / "model.safetensors").unlink()
    pickled(whisper / "evil.bin")
    change(whisper / "model.safetensors.index.json", metadata={}, weight_map={"model.a": name})
    with pytest.raises(ModelUnavailable, match="as a weight file"):
        load(whisper)
    assert not pwned.exists()


def test_a_pickle_named_safetensors_is_not_unpickled(whisper, pwned):
    for content in (pickle.dumps(Evil()), None):
        if content:
            (whisper / "model.safetensors").write_bytes(content)
        else:
            pickled(whisper / "model.safetensors")
        with pytest.raises(Exception, match=r"(?i)header|safetensors"):
            load(whisper)
        assert not pwned.exists()


def test_shards_still_load(whisper):
    os.rename(whisper / "model.safetensors", whisper / "model-00001-of-00001.safetensors")
    from safetensors import safe_open

    with safe_open(whisper / "model-00001-of-00001.safetensors", framework="pt") as opened:
        index = {"metadata": {}, "weight_map": dict.fromkeys(opened.keys(), "model-00001-of-00001.safetensors")}
    (whisper / "model.safetensors.index.json").write_text(json.dumps(index))
    load(whisper)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="not Linux")
def test_weights_of_the_right_precision_are_not_copied(whisper):
    """Before they move to a device, they are the pages of the file."""
    model = pretrained.load_model(
        transformers.WhisperForConditionalGeneration, whisper, device=torch.device("cpu"), dtype=torch.float32
    )
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [
        range(*(int(end, 16) for end in line[0].split("-"))) for line in lines if line[-1].startswith(str(whisper))
    ]
    assert mapped
    assert all(any(p.data_ptr() in pages for pages in mapped) for p in model.parameters())
    assert not model.training
