"""Weights on disk are found before anything is downloaded."""

from __future__ import annotations

import errno
import json
import os
from types import SimpleNamespace

import pytest

from worker import config
from worker.backends import create
from worker.backends.common import checkpoints
from worker.catalog import MODELS, find
from worker.config import Settings
from worker.errors import ModelNotFound, ModelUnavailable

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
    assert checkpoints.nemo_file(NAME, Settings(hf_hub_offline=True)) == in_home
    on_volume = snapshot(tmp_path / "volume" / "huggingface-cache" / "hub")
    assert checkpoints.nemo_file(NAME, Settings(hf_hub_offline=True)) == on_volume
    in_hf_home = snapshot(tmp_path / "hf" / "hub")
    assert checkpoints.nemo_file(NAME, Settings(hf_hub_offline=True, hf_home=tmp_path / "hf")) == in_hf_home
    (tmp_path / "models" / "parakeet-tdt-0.6b-v3").mkdir(parents=True)
    in_folder = tmp_path / "models" / "parakeet-tdt-0.6b-v3" / "parakeet-tdt-0.6b-v3.nemo"
    in_folder.touch()
    assert checkpoints.nemo_file(NAME, Settings(hf_hub_offline=True, model_dir=tmp_path / "models")) == in_folder


def test_the_revision_that_main_names_wins(tmp_path):
    hub = tmp_path / "hf" / "hub"
    snapshot(hub, "aaa", main="bbb")
    (hub / "models--nvidia--parakeet-tdt-0.6b-v3" / "refs" / "main").unlink()
    newer = snapshot(hub, "bbb", main="bbb")
    assert checkpoints.nemo_file(NAME, Settings(hf_home=tmp_path / "hf")) == newer


def test_nowhere_and_offline_says_where_it_looked(tmp_path):
    (tmp_path / "hf" / "hub").mkdir(parents=True)
    with pytest.raises(ModelUnavailable, match="HF_HUB_OFFLINE"):
        checkpoints.nemo_file(NAME, Settings(hf_hub_offline=True, hf_home=tmp_path / "hf"))


def folder(path, *, shards=(), index=None):
    """A checkpoint's folder: its config, an index if it has one, and empty files for its weights."""
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    if index:
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for shard in shards:
        (path / shard).write_bytes(b"12345")
    return path


def test_a_checkpoint_is_found_where_it_is_whole(tmp_path):
    (tmp_path / "models").mkdir()
    settings = Settings(hf_hub_offline=True, hf_home=tmp_path / "hf", model_dir=tmp_path / "models")
    cache = tmp_path / "hf" / "hub" / "models--openai--whisper-small" / "snapshots"
    folder(cache / "aaa")  # only its config was ever looked at
    whole = folder(cache / "bbb", shards=["model.safetensors"])
    assert checkpoints.checkpoint("openai/whisper-small", settings) == whole
    mine = folder(tmp_path / "models" / "whisper-small", shards=["model.safetensors"])
    assert checkpoints.checkpoint("openai/whisper-small", settings) == mine
    assert checkpoints.checkpoint(str(whole), settings) == whole
    assert checkpoints.checkpoint_bytes(whole) == 5


def test_a_model_dir_may_be_the_checkpoint_itself(tmp_path):
    mine = folder(tmp_path / "whisper-small", shards=["model.safetensors"])
    assert checkpoints.checkpoint("openai/whisper-small", Settings(hf_hub_offline=True, model_dir=mine)) == mine


def test_of_a_part_only_its_files_are_needed(tmp_path):
    index = {"audio_tower.a": "1.safetensors", "audio_tower.b": "2.safetensors", "language_model.c": "3.safetensors"}
    some = folder(tmp_path / "x", shards=["1.safetensors", "2.safetensors"], index=index)
    assert checkpoints.checkpoint(str(some), Settings(), part="audio_tower") == some
    with pytest.raises(ModelUnavailable, match=r"not a complete checkpoint: it lacks 3\.safetensors"):
        checkpoints.checkpoint(str(some), Settings())


def test_a_checkpoint_may_be_wanted_without_its_weights(tmp_path):
    bare = folder(tmp_path / "x")
    assert checkpoints.checkpoint(str(bare), Settings(), part=None) == bare
    with pytest.raises(ModelUnavailable, match=r"lacks model\.safetensors"):
        checkpoints.checkpoint(str(bare), Settings())


@pytest.mark.parametrize("name", ["/no/such", "a/b/c", ".."])
def test_no_checkpoint_says_so(tmp_path, name):
    with pytest.raises(ModelUnavailable):
        checkpoints.checkpoint(name, Settings(hf_hub_offline=True))
    with pytest.raises(ModelUnavailable, match="HF_HUB_OFFLINE"):
        checkpoints.checkpoint("openai/whisper-small", Settings(hf_hub_offline=True))


def test_only_the_files_that_are_loaded_are_weighed(tmp_path):
    """A repository may hold its weights twice, in another precision or for another library."""
    single = folder(
        tmp_path / "x", shards=["model.safetensors", "model.fp32-00001-of-00002.safetensors", "other.safetensors"]
    )
    assert checkpoints.checkpoint_bytes(single) == 5
    index = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}
    shards = folder(tmp_path / "y", shards=["1.safetensors", "2.safetensors", "adapter.safetensors"], index=index)
    assert checkpoints.checkpoint_bytes(shards) == 10
    both = folder(tmp_path / "z", shards=["model.safetensors"], index=index)
    assert checkpoints.checkpoint(str(both), Settings()) == both
    assert checkpoints.checkpoint_bytes(both) == 5


@pytest.mark.parametrize("lacks", ["model.safetensors", "config.json"])
def test_a_repository_without_weights_that_can_be_read_says_so(tmp_path, monkeypatch, lacks):
    import huggingface_hub

    there = folder(tmp_path / "snapshot", shards=["pytorch_model.bin", "model.safetensors"])
    (there / lacks).unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(there))
    with pytest.raises(ModelUnavailable, match=rf"someone/whisper-old lacks {lacks}.*safetensors") as caught:
        checkpoints.checkpoint("someone/whisper-old", Settings())
    assert not caught.value.retryable


def test_no_name_leads_out_of_the_folder_of_models(tmp_path):
    (tmp_path / "models").mkdir()
    outside = tmp_path / "parakeet-x"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    (outside / "model.safetensors").touch()
    settings = Settings(model_dir=tmp_path / "models", hf_home=tmp_path, hf_hub_offline=True)
    with pytest.raises(ModelUnavailable, match="no such checkpoint"):
        checkpoints.checkpoint("../parakeet-x", settings)
    assert checkpoints.checkpoint(str(outside), settings) == outside


@pytest.fixture
def hub(monkeypatch):
    """The hub, whose download the test replaces. `hub.error` makes it fail, `hub.caches` has where it went. `hub.files`
    are the files of every repository and their texts, if the test sets them."""
    import huggingface_hub

    hub = SimpleNamespace(caches=[], patterns=[], error=None, files=None)

    def download(name, *, allow_patterns, cache_dir):
        hub.caches.append(cache_dir)
        hub.patterns.append(allow_patterns)
        if hub.error:
            raise hub.error
        if hub.files is not None:
            folder = cache_dir / f"models--{name.replace('/', '--')}" / "snapshots" / "abc"
            folder.mkdir(parents=True, exist_ok=True)
            for file in huggingface_hub.utils.filter_repo_objects(hub.files, allow_patterns=allow_patterns):
                (folder / file).write_text(hub.files[file])
            return str(folder)
        return str(snapshot(cache_dir, f"revision-{len(hub.caches)}").parent)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return hub


def test_a_download_goes_to_the_cache_that_is_set(tmp_path, hub):
    first, second, home = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    checkpoints.nemo_file(NAME, Settings(hf_home=home))
    checkpoints.nemo_file("nvidia/parakeet-x", Settings(hf_home=home, transformers_cache=second))
    checkpoints.nemo_file("nvidia/parakeet-x", Settings(hf_home=home, transformers_cache=second, hf_hub_cache=first))
    assert hub.caches == [home / "hub", second, first]
    places = Settings(hf_home=home, transformers_cache=second, hf_hub_cache=first).places
    assert places.caches == (first, second, home / "hub")


def test_the_environment_sets_the_cache(tmp_path, monkeypatch, hub):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    found = checkpoints.nemo_file(NAME, Settings())
    assert hub.caches == [tmp_path / "elsewhere"]
    assert checkpoints.nemo_file(NAME, Settings(hf_hub_offline=True)) == found


def test_a_download_goes_to_the_volume_only_if_it_is_writable(tmp_path, monkeypatch, hub):
    own = tmp_path / "home" / ".cache" / "huggingface" / "hub"
    checkpoints.nemo_file("nvidia/parakeet-x", Settings())
    config.VOLUME.mkdir()
    checkpoints.nemo_file("nvidia/parakeet-y", Settings())
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(config.VOLUME)))
    checkpoints.nemo_file("nvidia/parakeet-z", Settings())
    assert hub.caches == [own, config.VOLUME / "huggingface-cache" / "hub", own]


@pytest.mark.parametrize(
    ("number", "size", "reason"),
    [
        (errno.ENOSPC, 5 << 30, r"it needs 2\.5 GiB, and [\d.]+ GiB are free\. Free some room, or set HF_HOME to"),
        (errno.EDQUOT, None, r"it needs more room, and [\d.]+ GiB are free\. Free some room, or set HF_HOME to"),
        (errno.EACCES, None, r"the user with the id \d+ has no permission\. Set HF_HOME to a folder that"),
        (errno.EPERM, None, r"the user with the id \d+ has no permission\. Set HF_HOME to a folder that"),
        (errno.EROFS, None, r"the file system is read-only\. Set HF_HOME to a folder that this user can write to"),
    ],
)
def test_a_disk_that_cannot_take_the_download_says_why(tmp_path, monkeypatch, hub, number, size, reason):
    import huggingface_hub

    def model_info(self, name, *, files_metadata, timeout):
        if size is None:
            raise OSError("no connection")
        files = [SimpleNamespace(rfilename="x.nemo", size=size // 2), SimpleNamespace(rfilename="x.bin", size=7)]
        return SimpleNamespace(siblings=files)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    hub.error = OSError(number, os.strerror(number))
    cache = tmp_path / "not" / "there"
    with pytest.raises(ModelUnavailable, match=f"{NAME} cannot be written to {cache}: {reason}") as caught:
        checkpoints.nemo_file(NAME, Settings(hf_hub_cache=cache))
    assert not caught.value.retryable


def test_a_hub_that_does_not_respond_is_named_and_may_be_asked_again(monkeypatch, hub):
    import huggingface_hub
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    library = __import__(HTTPError.__module__.partition(".")[0])  # httpx, or httpx2
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://hub.example")
    for error in (
        library.ReadTimeout("timed out"),
        library.ConnectError("no route"),
        LocalEntryNotFoundError("not found"),
        ConnectionResetError("reset"),
    ):
        hub.error = error
        with pytest.raises(ModelUnavailable, match=r"the hub https://hub\.example is unreachable \(") as caught:
            checkpoints.nemo_file(NAME, Settings())
        assert caught.value.retryable
        assert type(error).__name__ in caught.value.message


def test_the_configuration_of_a_repository_is_downloaded_before_its_weights(tmp_path, hub):
    """Its row is then that of the configuration, and a checkpoint that cannot run is refused without its weights."""
    settings = Settings(hf_home=tmp_path / "hf")
    row = find("someone/whisper-turbo-mine")
    hub.files = {"config.json": json.dumps({"architectures": ["BertModel"]})}
    with pytest.raises(ModelNotFound, match="the architecture BertModel, which this version does not run"):
        create(row, settings)
    assert not any("safetensors" in pattern for pattern in hub.patterns[-1])


def test_a_row_by_name_gives_way_to_the_row_by_the_downloaded_configuration(tmp_path, hub):
    settings = Settings(hf_home=tmp_path / "hf")
    row = find("someone/whisper-turbo-mine")
    assert row.tasks == ("transcribe", "embed")
    config = {"architectures": ["WhisperForConditionalGeneration"], "encoder_layers": 4, "decoder_layers": 4}
    hub.files = {"config.json": json.dumps(config), "README.md": "---\nlanguage: sv\nlicense: mit\n---\n"}
    found = checkpoints.recognize(row, settings)
    assert (found.tasks, found.licence) == (("transcribe", "translate", "embed"), "mit")
    count = len(hub.patterns)
    assert checkpoints.recognize(row, settings) == found
    assert len(hub.patterns) == count, "it is on this machine now"
    assert find(row.id, settings.places) == found


def test_a_model_that_names_itself_a_whisper_and_is_none_is_refused_with_what_it_is(tmp_path, hub):
    hub.files = {"config.json": json.dumps({"architectures": ["ChatModel"]})}
    with pytest.raises(ModelNotFound, match="someone/whisper-chat' has the architecture ChatModel"):
        create(find("someone/whisper-chat"), Settings(hf_home=tmp_path / "hf"))


def test_a_dry_run_and_the_catalogs_own_models_download_nothing(tmp_path, hub):
    for row in (*MODELS, find("higgs:someone/processor")):
        create(row, Settings(hf_home=tmp_path / "hf"))
    create(find("someone/whisper-turbo-mine"), Settings(hf_home=tmp_path / "hf", skip_model_load=True))
    assert hub.patterns == []
