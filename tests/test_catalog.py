"""One row a model: names are found, checkpoints on disk are looked into, and what a model cannot do is refused with
who can."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from conftest import MODEL

from worker.backends import create
from worker.backends.base import Backend
from worker.catalog import FLAMINGO_SIGNS, MODELS, check, find
from worker.config import Settings
from worker.errors import ModelNotFound, Unsupported
from worker.types import Message, Options


def nemo(path: Path, config: str) -> str:
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("./model_config.yaml")
        entry.size = len(config)
        archive.addfile(entry, io.BytesIO(config.encode()))
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
            "cannot caption, only transcribe; models that can: audio-flamingo, music-flamingo",
        ),
        ("audio-flamingo", {"timestamps": True}, "gives no timestamps; models that can: parakeet"),
        ("canary-1b", {"timestamps": True}, "gives no timestamps"),
        ("audio-flamingo", {"language": "en"}, "takes no language; models that can: parakeet"),
        ("parakeet-v2", {"language": "de"}, "does not know language 'de', only en; models that can: parakeet, canary"),
        ("parakeet", {"target_language": "de"}, "takes no target_language; models that can: canary"),
        ("whisper-large", {"target_language": "de"}, "translates into en only; models that can: canary"),
        ("whisper", {"task": "translate"}, "cannot translate, only transcribe and embed; models that can: canary"),
        ("whisper", {"language": "de", "target_language": "en"}, "takes no target_language; models that can: canary"),
        ("someone/distil-whisper-de", {"task": "translate"}, "cannot translate"),
        ("someone/whisper-small.en", {"task": "translate"}, "cannot translate"),
        ("someone/whisper-small.en", {"language": "de"}, "does not know language 'de', only en"),
        ("canary", {"task": "translate"}, "give language"),
        ("canary", {"language": "de", "target_language": "fr"}, "into and out of en only"),
        ("whisper", {"punctuation": False}, "takes no punctuation; models that can: canary"),
        ("parakeet", {"max_new_tokens": 5}, "takes no max_new_tokens"),
        ("audio-flamingo-embed", {"task": "transcribe"}, "cannot transcribe, only embed"),
        ("audio-flamingo-embed", {"task": "embed", "prompt": "x"}, "takes no prompt"),
        *(
            ("audio-flamingo", {"task": "chat", "prompt": f"a {sign} b"}, "a sign of its own")
            for sign in FLAMINGO_SIGNS
        ),
        ("music-flamingo", {"task": "chat", "messages": (Message("user", "<sound>"),)}, "a sign of its own"),
    ],
)
def test_what_a_model_cannot_do_is_refused_with_who_can(model, options, message):
    with pytest.raises(Unsupported) as caught:
        check(find(model), Options(find(model).id, **options))
    assert message in caught.value.message
    assert caught.value.param


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("parakeet", {"timestamps": True, "language": "de"}),
        ("canary", {"language": "de", "target_language": "en"}),
        ("canary", {"language": "de", "target_language": "de", "punctuation": False}),
        ("canary", {"task": "translate", "language": "fr"}),
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
