"""One row a model: names are found, checkpoints on disk are looked into, and what a model cannot do is refused with
who can."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import MODEL

from worker.backends import create
from worker.backends.base import Backend
from worker.catalog import LANGUAGES, MODELS, check, find, is_repository, language_code
from worker.catalog.rows import FLAMINGO_CONTROL_TOKENS
from worker.config import Settings
from worker.errors import ModelNotFound, Unsupported
from worker.types import Message, Options

ROOT = Path(__file__).resolve().parent.parent


def nemo(path: Path, config: str) -> str:
    with tarfile.open(path, "w") as archive:
        entry, content = tarfile.TarInfo("./model_config.yaml"), config.encode()
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return str(path)


def folder(path: Path, architecture: str, **config: int) -> str:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"architectures": [architecture], **config}))
    return str(path)


def test_names_are_unique_and_found():
    names = [name for model in MODELS for name in (model.id, *model.aliases)]
    assert len(names) == len(set(names))
    assert all(find(name) in MODELS for name in names)


@pytest.mark.parametrize("model", {model.backend: model for model in MODELS}.values(), ids=lambda model: model.backend)
def test_every_row_names_a_backend_that_exists(model):
    """Backends import their heavy libraries when they load, so every one can be made on any machine."""
    assert isinstance(create(model, Settings()), Backend)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("someone/parakeet-tdt-0.6b-finetuned", "parakeet"),
        ("someone/canary-1b-mine", "canary"),
        ("someone/whisper-large-v3-swedish", "whisper"),
        ("nvidia/audio-flamingo-next-think-hf", "flamingo"),
        ("/not/there/canary.nemo", "canary"),
        ("/not/there/model.nemo", "parakeet"),
    ],
)
def test_other_names_of_a_family_are_known_by_their_name(name, backend):
    row = find(name)
    assert (row.id, row.backend) == (name, backend)


def test_checkpoints_on_disk_say_what_they_are(tmp_path):
    canary = "target: nemo.collections.asr.models.aed_multitask_models.EncDecMultiTaskModel\nprompt_format: canary{}\n"
    assert find(str(MODEL)).backend == "parakeet"
    assert find(nemo(tmp_path / "a.nemo", canary.format(2))).timestamps
    assert find(nemo(tmp_path / "b.nemo", canary.format(""))).timestamps is False
    assert find(str(tmp_path)).backend == "canary"
    assert find(str(tmp_path)).window_sec == 40
    trained = "train_ds:\n  batch_size: 4\n  max_duration: {}\ntest_ds:\n  max_duration: 7\n"
    assert find(nemo(tmp_path / "c.nemo", canary.format(2) + trained.format(12.5))).window_sec == 12.5
    assert find(nemo(tmp_path / "d.nemo", canary.format(2) + trained.format(100))).window_sec == 40


def test_a_nemo_file_shows_whether_it_can_detect_the_spoken_language(tmp_path):
    config = "target: nemo.collections.asr.models.EncDecMultiTaskModel\nprompt_format: canary2\n"
    for name, more, default in (
        ("a", "", None),
        ("b", "use_loss_mask_for_prompt: false\n", None),
        ("c", "use_loss_mask_for_prompt: true\n", "en"),
    ):
        assert find(nemo(tmp_path / f"{name}.nemo", config + more)).default_language == default
    with pytest.raises(Unsupported, match="does not detect the spoken language"):
        check(find(str(tmp_path / "c.nemo")), Options("m", task="translate"))


def test_the_letters_of_a_vocabulary_do_not_say_which_language_it_is(tmp_path):
    config = "target: nemo.collections.asr.models.EncDecRNNTBPEModel\njoint:\n  vocabulary:\n  - {}\n"
    for token in ("▁the", "▁ö", "ж", "λ"):
        assert find(nemo(tmp_path / f"{ord(token[-1])}.nemo", config.format(token))).languages == ()


def test_folders_of_other_families_are_known_by_their_architecture(tmp_path):
    assert find(folder(tmp_path / "x", "AudioFlamingo3ForConditionalGeneration")).max_sec == 600
    assert find(folder(tmp_path / "y", "MusicFlamingoForConditionalGeneration")).max_sec == 1200
    assert find(folder(tmp_path / "z", "WhisperForConditionalGeneration")).backend == "whisper"
    tower = find(f"{tmp_path / 'x'}:audio_tower")
    assert (tower.tasks, tower.part) == (("embed",), "audio_tower")


def test_a_distilled_whisper_on_disk_is_known_by_its_few_decoder_layers(tmp_path):
    whisper = "WhisperForConditionalGeneration"
    assert "translate" in find(folder(tmp_path / "turbo" / "a", whisper, encoder_layers=32, decoder_layers=32)).tasks
    for name in (
        folder(tmp_path / "b", whisper, encoder_layers=32, decoder_layers=4),
        folder(tmp_path / "turbo-x", whisper),
    ):
        assert find(name).tasks == ("transcribe", "embed")
        assert "target_language" not in find(name).options


def test_the_row_says_which_flamingo_is_asked_about_music(tmp_path):
    """Audio Flamingo Next is of Music Flamingo's class, and a model of all sounds."""
    music = "MusicFlamingoForConditionalGeneration"
    for name in ("music-flamingo", "music-flamingo-2511", "someone/music-flamingo-mine", folder(tmp_path / "x", music)):
        assert find(name).music
    for name in (
        "audio-flamingo-3",
        "audio-flamingo-next",
        "nvidia/audio-flamingo-next-think-hf",
        folder(tmp_path / "music" / "y", "AudioFlamingo3ForConditionalGeneration"),
        folder(tmp_path / "models--nvidia--audio-flamingo-next-hf" / "snapshots" / "abc", music),
    ):
        assert not find(name).music
    assert find(str(tmp_path / "models--nvidia--audio-flamingo-next-hf" / "snapshots" / "abc")).max_sec == 1800


def test_a_file_that_changes_is_looked_into_again(tmp_path):
    path = tmp_path / "a.nemo"
    assert find(str(path)).backend == "parakeet"
    nemo(path, "target: EncDecMultiTaskModel\nprompt_format: canary2\n")
    assert find(str(path)).backend == "canary"


@pytest.mark.parametrize("name", ["whisperer", "bert", "someone/bert", "../etc", "a/b/c", ""])
def test_what_is_not_known_is_refused_with_what_is(name):
    with pytest.raises(ModelNotFound, match=r"parakeet, .*canary, .*whisper"):
        find(name)


def test_a_folder_of_another_kind_is_not_a_model(tmp_path):
    with pytest.raises(ModelNotFound):
        find(folder(tmp_path / "x", "BertModel"))
    with pytest.raises(ModelNotFound):
        find(str(tmp_path))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            "parakeet",
            {"task": "caption"},
            "cannot caption; it supports transcribe. Models that can: audio-flamingo, music-flamingo",
        ),
        ("audio-flamingo", {"timestamps": True}, "cannot return timestamps. Models that can: parakeet"),
        ("canary-1b", {"timestamps": True}, "cannot return timestamps"),
        ("audio-flamingo", {"language": "en"}, "does not accept language. Models that do: parakeet"),
        (
            "parakeet-v2",
            {"language": "de"},
            "'de'; nvidia/parakeet-tdt-0.6b-v2 supports en. Models that support it: parakeet, canary",
        ),
        ("parakeet", {"target_language": "de"}, "does not accept target_language. Models that do: canary"),
        ("whisper-large", {"target_language": "de"}, "translates into en. Models that translate into it: canary"),
        (
            "whisper",
            {"task": "translate"},
            "cannot translate; it supports transcribe and embed. Models that can: canary",
        ),
        (
            "whisper",
            {"language": "de", "target_language": "en"},
            "does not accept target_language. Models that do: canary",
        ),
        ("someone/distil-whisper-de", {"task": "translate"}, "cannot translate"),
        ("someone/whisper-small.en", {"task": "translate"}, "cannot translate"),
        (
            "someone/whisper-small.en",
            {"language": "de"},
            "unsupported language 'de'; someone/whisper-small.en supports en",
        ),
        ("canary", {"language": "de", "target_language": "fr"}, "only from or into en"),
        ("whisper", {"punctuation": False}, "does not accept punctuation. Models that do: canary"),
        ("parakeet", {"max_new_tokens": 5}, "does not accept max_new_tokens"),
        ("audio-flamingo-embed", {"task": "transcribe"}, "cannot transcribe; it supports embed"),
        ("audio-flamingo-embed", {"task": "embed", "prompt": "x"}, "does not accept prompt"),
        *(
            (
                "audio-flamingo",
                {"task": "chat", "prompt": f"a {token} b"},
                f"The prompt contains {token}, a control token",
            )
            for token in FLAMINGO_CONTROL_TOKENS
        ),
        ("music-flamingo", {"task": "chat", "messages": (Message("user", "<sound>"),)}, "A message contains <sound>"),
    ],
)
def test_what_a_model_cannot_do_is_refused_with_who_can(model, options, message):
    with pytest.raises(Unsupported) as caught:
        check(find(model), Options(find(model).id, **options))
    assert message in caught.value.message
    assert caught.value.param


TRANSLATOR = replace(
    find("canary"),
    id="someone/translator",
    languages=("en", "de", "fr", "sv"),
    target_languages=("en", "de", "fr"),
    pivot_language=None,
    default_language=None,
)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"language": "de", "target_language": "fr"}, None),
        ({}, {"task": "translate"}, None),
        ({}, {"language": "sv", "target_language": "sv"}, None),
        ({}, {"target_language": "sv"}, "'sv'; someone/translator translates into en, de, fr."),
        ({"target_languages": ()}, {"target_language": "sv"}, None),
        ({"pivot_language": "fr"}, {"language": "sv", "target_language": "fr"}, None),
        ({"pivot_language": "fr"}, {"language": "sv", "target_language": "de"}, "only from or into fr"),
        ({"pivot_language": "fr", "default_language": "fr"}, {"target_language": "de"}, None),
        ({"pivot_language": "fr"}, {"target_language": "de"}, None),
        ({"pivot_language": "fr"}, {"task": "translate"}, None),
        ({"default_language": "fr"}, {"task": "translate"}, "does not detect the spoken language"),
        ({"default_language": "fr"}, {"task": "translate", "target_language": "de"}, None),
    ],
)
def test_a_row_alone_says_between_which_languages_a_model_translates(changes, options, message):
    model = replace(TRANSLATOR, **changes)
    with pytest.raises(Unsupported, match=message) if message else contextlib.nullcontext():
        check(model, Options(model.id, **options))


def test_models_that_translate_are_named_only_if_they_translate_into_that_language():
    with pytest.raises(Unsupported, match=r"Models that translate into it: canary\.$"):
        check(find("whisper-large"), Options("whisper-large", target_language="sv"))
    with pytest.raises(Unsupported, match=r"Models that translate into it: none in this version\.$"):
        check(find("whisper-large"), Options("whisper-large", target_language="yue"))


@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [
        ("parakeet", "nvidia/parakeet-tdt-0.6b-v3"),
        ("audio-flamingo-embed", "nvidia/audio-flamingo-3-hf"),
        ("higgs", "bosonai/higgs-audio-v2-understanding-3B"),
        ("higgs:/a/processor", "bosonai/higgs-audio-v2-understanding-3B"),
    ],
)
def test_a_row_says_which_checkpoint_holds_the_weights(name, checkpoint):
    assert find(name).checkpoint == checkpoint


def test_nothing_outside_the_backends_reads_the_name_of_a_backend():
    """A model is told apart by the facts of its row, so that a new family needs no other file."""
    names = {model.backend for model in MODELS}
    for path in sorted(ROOT.glob("worker/**/*.py")):
        if "backends" not in path.relative_to(ROOT).parts:
            found = [node for node in ast.walk(ast.parse(path.read_text())) if compares_a_backend(node, names)]
            assert not found, f"{path}:{found[0].lineno}"


@pytest.mark.parametrize(
    "code",
    [
        "row.backend == 'whisper'",
        "'canary' != model.backend",
        "row.backend in ('nemo', 'canary')",
        "row.backend in NAMES",
        "NAMES[row.backend]",
        "NAMES.get(find(name).backend, 1)",
        "match row.backend:\n    case 'higgs': pass",
    ],
)
def test_that_test_sees_every_way_to_read_it(code):
    assert any(compares_a_backend(node, {"whisper", "canary"}) for node in ast.walk(ast.parse(code)))


def compares_a_backend(node: ast.AST, names: set[str]) -> bool:
    """Return whether a node compares something called `backend` with the name of one, or looks it up in a dict."""
    if isinstance(node, ast.Compare):
        parts = list(ast.walk(node))
        named = any(isinstance(part, ast.Constant) and part.value in names for part in parts)
        return any(map(is_backend, parts)) and (named or any(isinstance(op, ast.In | ast.NotIn) for op in node.ops))
    if isinstance(node, ast.Subscript):
        return is_backend(node.slice)
    if isinstance(node, ast.Match):
        return is_backend(node.subject)
    is_get = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get"
    return is_get and any(map(is_backend, node.args))


def is_backend(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "backend"


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("parakeet", {"timestamps": True, "language": "de"}),
        ("canary", {"language": "de", "target_language": "en"}),
        ("canary", {"language": "de", "target_language": "de", "punctuation": False}),
        ("canary", {"task": "translate", "language": "fr"}),
        ("canary", {"task": "translate"}),
        ("canary", {"target_language": "sv"}),
        ("canary", {"task": "translate", "target_language": "de"}),
        ("whisper", {"language": "yue"}),
        ("whisper-large", {"task": "translate", "language": "de", "temperature": 0.2}),
        ("whisper-small", {"language": "de", "target_language": "en"}),
        ("someone/whisper-of-mine", {"task": "translate"}),
        ("music-flamingo", {"task": "caption", "style": "brief", "top_p": 0.9}),
        ("music-flamingo-embed", {"task": "embed"}),
        ("higgs", {"task": "embed"}),
    ],
)
def test_what_a_model_can_do_is_let_through(model, options):
    check(find(model), Options(find(model).id, **options))


@pytest.mark.parametrize("name", ["nvidia/parakeet-x", "a/whisper.v1", "_a/canary_2", "0/1-whisper"])
def test_a_repository_is_owner_and_name(name):
    assert is_repository(name)
    assert find(name).id == name


@pytest.mark.parametrize(
    "name",
    [
        "../parakeet-x",
        "./parakeet-x",
        "parakeet-x/..",
        "parakeet/.",
        ".parakeet/x",
        "a/b/parakeet",
        "a/parakeet\n",
        "/parakeet",
    ],
)
def test_a_path_is_no_repository(name):
    assert not is_repository(name)
    with pytest.raises(ModelNotFound):
        find(name)


@pytest.mark.slow
def test_a_language_has_the_code_that_whisper_gives_its_name():
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    assert {name: language_code(name.title()) for name in TO_LANGUAGE_CODE} == TO_LANGUAGE_CODE


def test_every_language_of_a_model_has_a_name():
    assert {code for model in MODELS for code in (*model.languages, *model.target_languages)} <= set(LANGUAGES)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("EN", "en"),
        ("en-US", "en"),
        ("zh_Hant_TW", "zh"),
        (" Haitian  creole", "ht"),
        ("Lao", "lo"),
        ("xx", "xx"),
        *((text, None) for text in ("klingon", "", "e", "en us", "en-", "ﬁ")),
    ],
)
def test_a_language_is_named_by_any_form_of_its_code_or_by_its_name(text, code):
    assert language_code(text) == code
