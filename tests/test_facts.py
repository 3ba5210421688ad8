"""What is read of a checkpoint's files, whoever wrote them; and which of several files decides."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import MODEL
from test_catalog import nemo

from worker.backends.nemo import vetting
from worker.catalog import facts, find, rows
from worker.catalog.facts import Card
from worker.catalog.places import Places
from worker.config import Settings
from worker.errors import ModelNotFound

WHISPER = {"architectures": ["WhisperForConditionalGeneration"]}
RNNT = "target: nemo.collections.asr.models.EncDecRNNTBPEModel\n"


def folder(path: Path, **files: object) -> Path:
    """A folder with files: JSON, or text as it is. `config__json` is config.json."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / name.replace("__", ".")).write_text(text)
    return path


def test_the_classes_that_have_a_row_are_those_that_may_be_restored():
    """The catalog does not import the backends, which list the classes by their modules."""
    assert {name.rsplit(".", 1)[-1] for name in vetting.MODELS} == set(rows._BY_TARGET)
    encoders = {name.rsplit(".", 1)[-1] for name in vetting.CLASSES if name.endswith("ConformerEncoder")}
    assert encoders == set(rows.ENCODERS)


@pytest.mark.parametrize(
    ("header", "card"),
    [
        ("language: de\nlicense: mit\n", Card(("de",), "mit")),
        ("language:\n- en\n- de-CH\n- German\n", Card(("en", "de"), None)),
        ("language: [no]\n", Card(("no",), None)),  # false, to YAML
        ("language: [en, multilingual]\n", Card((), None)),
        ("license: other\nlicense_name: nvidia-open-model-license\n", Card((), "nvidia-open-model-license")),
        ("license: [a, b]\nlanguage: 7\n", Card()),
        ("language: &a [en, *a]\n", Card()),
        ("language: !!python/object/apply:os.system [true]\n", Card()),
        ("language: ${oc.env:HOME}\n", Card()),
        ("language: !!bool maybe\n", Card()),
        ("language: !!timestamp today\n", Card()),
        ("language: !!int ''\n", Card()),
        (": :\n  - {", Card()),
        ("- a\n", Card()),
    ],
)
def test_the_header_of_a_model_card_is_read_within_bounds(header, card, tmp_path):
    assert facts.of_card(folder(tmp_path, README__md=f"---\n{header}---\n# Title\nlanguage: fr\n")) == card


@pytest.mark.parametrize("text", ["", "# Title\n", "---\nlanguage: de\n", "a\n---\nlanguage: de\n---\n"])
def test_a_text_without_a_header_is_no_card(text, tmp_path):
    assert facts.of_card(folder(tmp_path, README__md=text)) == Card()
    assert facts.of_card(tmp_path / "absent") == Card()


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "[" * 100_000, "\udcff"])
def test_a_configuration_that_cannot_be_read_counts_as_absent(content, tmp_path):
    path = tmp_path / "m"
    path.mkdir()
    (path / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ModelNotFound, match="unknown model"):
        find(str(path))


def test_a_configuration_of_any_size_is_not_read(tmp_path):
    path = folder(tmp_path / "m", config__json=WHISPER)
    with (path / "config.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelNotFound, match="unknown model"):
        find(str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", {"lang_to_id": {"<|de|>": 1, "<|yue|>": 2, "<|transcribe|>": 3, "x": 4}}),
        ("added_tokens.json", {"<|de|>": 1, "<|yue|>": 2, "<|0.02|>": 3}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": "<|de|>"}, "2": {"content": "<|yue|>"}}}),
        (
            "tokenizer.json",
            {"added_tokens": [{"content": "<|de|>"}, {"content": "<|yue|>"}, {"content": "<|nospeech|>"}]},
        ),
    ],
)
def test_the_languages_of_a_whisper_are_its_control_tokens(name, content, tmp_path):
    assert find(str(folder(tmp_path, config__json=WHISPER))).languages == ()
    folder(tmp_path, **{name.replace(".", "__"): content})
    assert find(str(tmp_path)).languages == ("de", "yue")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", {"lang_to_id": 7}),
        ("added_tokens.json", {"added_tokens": 7}),
        ("tokenizer_config.json", {"added_tokens_decoder": 7}),
        ("tokenizer.json", {"added_tokens": [7, {"content": 7}, None]}),
        ("config.json", {**WHISPER, "encoder_layers": "4", "decoder_layers": 4}),
        ("config.json", {**WHISPER, "encoder_layers": [4], "decoder_layers": {"a": 4}}),
    ],
)
def test_a_value_of_another_type_says_nothing(name, content, tmp_path):
    folder(tmp_path, config__json=WHISPER)
    folder(tmp_path, **{name.replace(".", "__"): content})
    row = find(str(tmp_path))
    assert (row.backend, row.languages) == ("whisper", ())


@pytest.mark.parametrize("text", ["x: !!bool maybe\n", "x: !!timestamp today\n", "x: !!int ''\n"])
def test_a_nemo_file_whose_values_do_not_fit_their_tags_counts_as_absent(text, tmp_path):
    nemo(tmp_path / "m.nemo", RNNT + text)
    with pytest.raises(ModelNotFound, match="unknown model"):
        find(str(tmp_path))


@pytest.mark.parametrize(("seconds", "window_sec"), [("10", 10), ("60", 40), ("-1", 40), ("1e-9", 40), (".nan", 40)])
def test_a_canary_has_windows_as_long_as_its_training_clips_if_these_have_a_length(seconds, window_sec, tmp_path):
    text = f"target: EncDecMultiTaskModel\nprompt_format: canary2\ntrain_ds:\n  max_duration: {seconds}\n"
    assert find(nemo(tmp_path / "m.nemo", text)).window_sec == window_sec


@pytest.mark.parametrize("name", ["someone/" + "x" * 300, "x" * 300 + ".nemo", "~nobody-has-this-name/m.nemo"])
def test_a_name_that_no_file_can_have_is_looked_up_like_any_other(name, tmp_path):
    places = Places(model_dir=tmp_path, caches=(tmp_path,))
    if name.endswith(".nemo"):
        assert find(name, places).backend == "parakeet"
    else:
        with pytest.raises(ModelNotFound, match="unknown model"):
            find(name, places)


def test_a_damaged_reference_of_a_cache_counts_as_absent(tmp_path):
    refs = tmp_path / "models--someone--german-asr" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelNotFound, match="unknown model"):
        find("someone/german-asr", Places(caches=(tmp_path,)))


def test_a_nemo_file_decides_before_a_config_that_lies_beside_it(tmp_path):
    path = folder(tmp_path / "m", config__json=WHISPER)
    assert find(str(path)).backend == "whisper"
    nemo(path / "m.nemo", RNNT)
    assert find(str(path)).backend == "parakeet"


def test_a_config_decides_if_the_nemo_file_beside_it_cannot_run(tmp_path):
    path = folder(tmp_path / "m", config__json={"architectures": ["BertModel"]})
    nemo(path / "m.nemo", "target: nemo.collections.asr.models.EncDecRNNTBPEModelWithPrompt\n")
    with pytest.raises(ModelNotFound, match=r"the class EncDecRNNTBPEModelWithPrompt, which .* EncDecRNNTBPEModel, "):
        find(str(path))
    folder(path, config__json=WHISPER)
    assert find(str(path)).backend == "whisper"


def test_a_card_is_about_the_only_nemo_file_of_its_folder(tmp_path):
    path = folder(tmp_path / "m", README__md="---\nlanguage: de\n---\n")
    one = nemo(path / "one.nemo", RNNT)
    assert find(one).languages == find(str(path)).languages == ("de",)
    two = nemo(path / "two.nemo", RNNT)
    for name in (one, two):
        os.utime(name)
        assert find(name).languages == ()


def test_a_parakeet_of_transformers_in_a_repository_is_the_nemo_file_that_lies_beside_it_on_the_hub(tmp_path):
    config = {"architectures": ["ParakeetForTDT"]}
    repository = folder(tmp_path / "someone" / "parakeet-mine", config__json=config)
    row = find("someone/parakeet-mine", Places(model_dir=tmp_path))
    assert (row.backend, row.weights) == ("parakeet", "nemo")
    with pytest.raises(ModelNotFound, match="the architecture ParakeetForTDT"):
        find(str(repository))


def test_a_repository_is_recognized_wherever_its_files_are(tmp_path):
    name = "someone/german-asr"
    with pytest.raises(ModelNotFound, match="unknown model"):
        find(name)
    for places, path in (
        (Places(model_dir=tmp_path / "a"), tmp_path / "a" / "someone" / "german-asr"),
        (Places(model_dir=tmp_path / "b"), tmp_path / "b" / "german-asr"),
        (Places(model_dir=tmp_path / "german-asr"), tmp_path / "german-asr"),
        (Places(caches=(tmp_path / "c",)), tmp_path / "c" / "models--someone--german-asr" / "snapshots" / "abc"),
    ):
        folder(path, config__json=WHISPER)
        assert (find(name, places).id, find(name, places).backend) == (name, "whisper")
        tower = find(name, places)
        assert tower.checkpoint == name


def test_a_file_in_the_folder_of_models_is_recognized(tmp_path):
    (tmp_path / "mine.nemo").write_bytes(MODEL.read_bytes())
    nemo(tmp_path / "other.nemo", "target: EncDecMultiTaskModel\nprompt_format: canary2\n")
    places = Settings(model_dir=tmp_path, model="pocketsphinx").places
    assert (find("mine.nemo", places).backend, find("other.nemo", places).backend) == ("parakeet", "canary")


def test_a_changed_file_is_read_again(tmp_path):
    path = folder(tmp_path / "m", config__json=WHISPER | {"encoder_layers": 4, "decoder_layers": 4})
    assert "translate" in find(str(path)).tasks
    folder(path, config__json=WHISPER | {"encoder_layers": 4, "decoder_layers": 2})
    os.utime(path / "config.json", (1, 1))
    assert "translate" not in find(str(path)).tasks
