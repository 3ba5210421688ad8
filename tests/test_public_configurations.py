"""Some fifty public checkpoints are recognized by the keys of their files, in any place and under any name."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import FIXTURES

from worker.catalog import LANGUAGES, MODELS, find
from worker.catalog.places import Places
from worker.config import Settings
from worker.errors import ModelNotFound
from worker.protocol.request import parse

TABLE = yaml.safe_load((FIXTURES / "public_configurations.yaml").read_text())
PUBLIC: dict[str, dict[str, Any]] = {model["name"]: model for model in TABLE["models"]}
RUNNING = {name: model for name, model in PUBLIC.items() if "refused" not in model["expect"]}
TOKENS = {"whisper-99": LANGUAGES[:-1], "whisper-100": LANGUAGES}


def tokens(value: Any) -> list[str]:
    return [f"<|{code}|>" for code in TOKENS[value]]


def write(folder: Path, model: dict[str, Any]) -> Path:
    """The files of a public checkpoint, without weights: only the keys that decide."""
    folder.mkdir(parents=True)
    if "nemo" in model:
        write_nemo(folder / f"{model['name'].split('/')[1]}.nemo", **model["nemo"])
    if "config" in model:
        (folder / "config.json").write_text(json.dumps(model["config"]))
    if generation := dict(model.get("generation", {})):
        if "lang_to_id" in generation:
            generation["lang_to_id"] = {token: i for i, token in enumerate(tokens(generation["lang_to_id"]))}
        (folder / "generation_config.json").write_text(json.dumps(generation))
    if "tokens" in model:
        added = {token: i for i, token in enumerate(["<|startoftranscript|>", *tokens(model["tokens"])])}
        (folder / "added_tokens.json").write_text(json.dumps(added))
    if "card" in model:
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump(model['card'])}---\n# A model\n")
    return folder


def write_nemo(path: Path, target: str, encoder: str, langs: list[str] | None = None, **keys: Any) -> None:
    context = {key: keys.pop(key) for key in list(keys) if key.startswith("att_context")}
    config = {
        "target": target,
        "encoder": {"_target_": f"nemo.collections.asr.modules.{encoder}", **context},
        "tokenizer": {"type": "agg", "langs": {code: {"type": "bpe"} for code in langs}} if langs else {"type": "bpe"},
        **keys,
    }
    with tarfile.open(path, "w") as archive:
        member, content = tarfile.TarInfo("./model_config.yaml"), yaml.safe_dump(config, sort_keys=False).encode()
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def snapshot(cache: Path, model: dict[str, Any]) -> Places:
    """The checkpoint in a hub cache, as huggingface_hub stores it."""
    repository = cache / f"models--{model['name'].replace('/', '--')}"
    write(repository / "snapshots" / "abc", model)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    return Places(caches=(cache,))


def expected(model: dict[str, Any]) -> dict[str, Any]:
    """The fields of the row, as the row has them."""
    fields = {key: value for key, value in model["expect"].items() if key != "listed"}
    values = {key: TOKENS.get(value, value) if isinstance(value, str) else value for key, value in fields.items()}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def test_every_value_of_the_table_has_a_source():
    assert len(PUBLIC) == len(TABLE["models"]) > 40
    for name, model in PUBLIC.items():
        assert set(model["from"]) <= set(TABLE["sources"]), name


@pytest.mark.parametrize("name", RUNNING)
def test_a_folder_is_recognized_by_its_files(name, tmp_path):
    """Its own name says nothing."""
    folder = write(tmp_path / "models" / "m", RUNNING[name])
    row = find(str(folder))
    assert row.id == str(folder)
    assert {field: getattr(row, field) for field in expected(RUNNING[name])} == expected(RUNNING[name])


@pytest.mark.parametrize("name", RUNNING)
def test_a_repository_in_a_cache_is_recognized_by_its_files(name, tmp_path):
    for given in {name, "someone/m"} - {model.id for model in MODELS}:
        model = RUNNING[name] | {"name": given}
        row = find(given, snapshot(tmp_path / given, model))
        assert row.id == given
        assert {field: getattr(row, field) for field in expected(model)} == expected(model)


@pytest.mark.parametrize("name", [name for name, model in PUBLIC.items() if "refused" in model["expect"]])
def test_what_cannot_run_is_refused_with_what_was_found_and_what_is_supported(name, tmp_path):
    model = PUBLIC[name]
    places = snapshot(tmp_path, model)
    folder = str(next((tmp_path).glob("*/snapshots/abc")))
    supported = "EncDecRNNTBPEModel|ConformerEncoder" if "nemo" in model else "WhisperForConditionalGeneration"
    for given in (name, folder):
        with pytest.raises(ModelNotFound, match=supported) as caught:
            find(given, places)
        assert model["expect"]["refused"] in caught.value.message
        assert "does not run" in caught.value.message


@pytest.mark.parametrize("name", [name for name, model in PUBLIC.items() if model["expect"].get("listed")])
def test_the_rows_of_the_catalog_agree_with_the_files(name, tmp_path):
    """The catalog's own rows are right without files, and say no more than the files."""
    listed, read = find(name), find(str(write(tmp_path / "m", PUBLIC[name])))
    for field in ("backend", "tasks", "target_languages", "timestamps", "options", "window_sec", "max_sec", "weights"):
        assert getattr(listed, field) == getattr(read, field), field
    assert read.languages in ((), listed.languages)


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("nvidia/parakeet-tdt_ctc-0.6b-ja", "ja"),
        ("nvidia/parakeet-ctc-0.6b-Vietnamese", "vi"),
        ("primeline/parakeet-primeline", "de"),
        ("nvidia/stt_de_fastconformer_hybrid_large_pc", "de"),
        ("distil-whisper/distil-large-v3.5", "en"),
    ],
)
def test_the_language_of_a_checkpoint_is_accepted_before_and_after_its_download(name, language, tmp_path):
    settings = Settings(allowed_models=(name,), hf_hub_cache=tmp_path)
    body = {"audio": "https://example.com/a.wav", "model": name, "language": language}
    assert parse(body, settings).items[0].options.language == language
    snapshot(tmp_path, PUBLIC[name])
    assert parse(body, settings).items[0].options.language == language


def test_a_language_that_the_checkpoint_lacks_is_refused_once_its_files_are_here(tmp_path):
    name = "nvidia/parakeet-tdt_ctc-0.6b-ja"
    settings = Settings(allowed_models=(name,), hf_hub_cache=tmp_path)
    body = {"audio": "https://example.com/a.wav", "model": name, "language": "en"}
    parse(body, settings)
    snapshot(tmp_path, PUBLIC[name])
    with pytest.raises(Exception, match=f"unsupported language 'en'; {name} supports ja"):
        parse(body, settings)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nvidia/multitalker-parakeet-streaming-0.6b-v1", "EncDecMultiTalkerRNNTBPEModel"),
    ],
)
def test_a_name_that_resembles_another_family_is_refused_before_a_download(name, found):
    with pytest.raises(ModelNotFound, match=f"{found}, which this version does not run"):
        find(name)
