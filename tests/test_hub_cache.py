"""Models are downloaded ahead of their use, resumed, followed and removed. The hub is one on loopback."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hub_host import Hub, hub_on_loopback

from worker import config
from worker.backends.common import checkpoints, hub_cache
from worker.catalog import find
from worker.config import Settings
from worker.errors import ModelInUse, ModelNotFound, ModelUnavailable, Unsupported

NEMO, WHISPER, HIGGS = "nvidia/parakeet-ctc-0.6b", "openai/whisper-tiny", "bosonai/higgs-audio-v2-understanding-3B"
CONFIG = json.dumps({"architectures": ["WhisperForConditionalGeneration"]}).encode()
SIZE = 5 << 20


@pytest.fixture
def weights() -> bytes:
    return random.Random(1).randbytes(SIZE)


@pytest.fixture
def hub(monkeypatch, weights):
    with hub_on_loopback(monkeypatch) as hub:
        monkeypatch.setattr(hub_cache, "PAUSE_SEC", 0.01)
        monkeypatch.setattr(hub_cache, "SHOW_SEC", 0.0)
        hub.add(NEMO, model__nemo=weights, README__md=b"hello")
        hub.add(WHISPER, config__json=CONFIG, model__safetensors=weights, pytorch_model__bin=b"no")
        yield hub


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    monkeypatch.setattr(config, "VOLUME", tmp_path / "volume")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Settings(hf_home=tmp_path / "hf")


def folder(settings: Settings, name: str) -> Path:
    assert settings.hf_home is not None
    return settings.hf_home / "hub" / f"models--{name.replace('/', '--')}"


def offline(settings: Settings) -> Settings:
    return settings.model_copy(update={"hf_hub_offline": True})


@pytest.mark.parametrize("name", [NEMO, WHISPER])
def test_a_model_is_downloaded_once_and_found_offline(hub, settings, weights, name):
    seen: list[hub_cache.Download] = []
    assert hub_cache.pull(find(name), settings, seen.append)
    found = checkpoints.on_disk(find(name), offline(settings))
    assert (found if found.is_file() else found / "model.safetensors").read_bytes() == weights
    assert seen[0] == hub_cache.Download(0, SIZE)
    assert seen[-1] == hub_cache.Download(SIZE, SIZE)
    assert [one.bytes_done for one in seen] == sorted(one.bytes_done for one in seen)
    assert not hub_cache.pull(find(name), settings)
    assert len(hub.sent) == 1
    assert hub_cache.progress(find(name), settings) is None
    assert not list(folder(settings, name).rglob("*aviary*"))


def test_a_connection_that_breaks_is_resumed(hub, settings, weights):
    hub.break_at = [1 << 20, 3 << 20]
    assert hub_cache.pull(find(NEMO), settings)
    assert [begin for _, begin in hub.sent] == [0, 1 << 20, 3 << 20]
    assert checkpoints.on_disk(find(NEMO), settings).read_bytes() == weights


def test_a_download_that_ended_resumes_with_the_next_one(hub, settings, weights, monkeypatch):
    def stop(download):
        if download.bytes_done >= 2 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub_cache.pull(find(NEMO), settings, stop)
    with pytest.raises(ModelUnavailable):
        checkpoints.on_disk(find(NEMO), settings)
    seen: list[hub_cache.Download] = []
    assert hub_cache.pull(find(NEMO), settings, seen.append)
    assert seen[0].bytes_done == hub.sent[1][1] >= 2 << 20
    assert checkpoints.on_disk(find(NEMO), settings).read_bytes() == weights


def test_a_server_without_ranges_sends_the_whole_file_again(hub, settings, weights, monkeypatch):
    send = Hub._file

    def whole(self, http, file, files):
        del http.headers["Range"]
        send(self, http, file, files)

    monkeypatch.setattr(Hub, "_file", whole)
    hub.break_at = [1 << 20]
    assert hub_cache.pull(find(NEMO), settings)
    assert checkpoints.on_disk(find(NEMO), settings).read_bytes() == weights


def test_a_hub_that_only_breaks_off_is_unreachable(hub, settings):
    hub.break_at = [0] * 20
    with pytest.raises(ModelUnavailable, match=f"the hub {hub.url} is unreachable") as caught:
        hub_cache.pull(find(NEMO), settings)
    assert caught.value.retryable
    assert len(hub.sent) == hub_cache.TRIES


def test_a_damaged_file_is_refused_and_not_kept(hub, settings):
    hub.lies = True
    with pytest.raises(ModelUnavailable, match="arrived damaged"):
        hub_cache.pull(find(NEMO), settings)
    hub.lies = False
    assert hub_cache.pull(find(NEMO), settings)
    assert [begin for _, begin in hub.sent] == [0, 0]


def test_offline_unknown_and_refused_models_say_so(hub, settings):
    with pytest.raises(ModelUnavailable, match="HF_HUB_OFFLINE forbids"):
        hub_cache.pull(find(NEMO), offline(settings))
    with pytest.raises(ModelUnavailable, match="nvidia/parakeet-none does not exist on the hub"):
        hub_cache.pull(find("nvidia/parakeet-none"), settings)
    assert not folder(settings, "nvidia/parakeet-none").exists()
    hub.add("nvidia/parakeet-empty", README__md=b"x")
    with pytest.raises(ModelUnavailable, match=r"holds no \.nemo file"):
        hub_cache.pull(find("nvidia/parakeet-empty"), settings)
    hub.status = 500
    with pytest.raises(ModelUnavailable, match="is unreachable") as caught:
        hub_cache.pull(find(NEMO), settings)
    assert caught.value.retryable
    with pytest.raises(Unsupported, match="is a path"):
        hub_cache.pull(find("/no/such/parakeet.nemo"), settings)
    assert not hub_cache.pull(find("pocketsphinx"), settings)


def test_the_weights_of_a_model_that_cannot_run_are_not_downloaded(hub, settings, weights):
    hub.add("me/whisper-other", config__json=b'{"architectures": ["Other"]}', model__safetensors=weights)
    with pytest.raises(ModelNotFound, match="Other"):
        hub_cache.pull(find("me/whisper-other"), settings)
    assert hub.sent == []


def test_a_disk_without_room_is_known_before_the_download(hub, settings, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelUnavailable, match=r"it needs 0\.0 GiB, and 0\.0 GiB are free\. Free some room"):
        hub_cache.pull(find(NEMO), settings)
    assert hub.sent == []


def test_a_disk_that_fills_up_says_so_and_what_arrived_is_kept(hub, settings, monkeypatch):
    receive = hub_cache._receive

    def fill(file, output, _on_block):
        def full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        receive(file, output, full)

    monkeypatch.setattr(hub_cache, "_receive", fill)
    with pytest.raises(ModelUnavailable, match=r"are free\. Free some room, or set HF_HOME"):
        hub_cache.pull(find(NEMO), settings)
    monkeypatch.setattr(hub_cache, "_receive", receive)
    assert hub_cache.pull(find(NEMO), settings)
    assert hub.sent[1][1] > 0


def test_two_downloads_of_a_model_are_one(hub, settings):
    hub.gate.clear()
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(hub_cache.pull(find(NEMO), settings))) for _ in "ab"]
    for thread in threads:
        thread.start()
    assert hub.began.wait(20)
    deadline = time.monotonic() + 20
    while (found := hub_cache.progress(find(NEMO), settings)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert found.bytes_total == SIZE
    assert found.bytes_done < SIZE
    with pytest.raises(ModelInUse, match="is being downloaded"):
        hub_cache.remove(find(NEMO), settings)
    hub.gate.set()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == [False, True]
    assert len(hub.sent) == 1


def test_a_model_may_need_others(hub, settings, weights):
    hub.add(HIGGS, config__json=CONFIG, model__safetensors=weights[:1000])
    hub.add("openai/whisper-large-v3-turbo", config__json=CONFIG, model__safetensors=weights)
    hub.add("openai/whisper-small", config__json=CONFIG, model__safetensors=weights[:2000])
    assert hub_cache.pull(find(HIGGS), settings)
    assert checkpoints.on_disk(find(HIGGS), offline(settings))
    assert len(hub.sent) == 2, "of the model with the features, only the configuration is needed"
    assert hub_cache.repositories(find(HIGGS)) == [HIGGS, "openai/whisper-large-v3-turbo", "openai/whisper-small"]
    with hub_cache.in_use(find(HIGGS), settings), pytest.raises(ModelInUse):
        hub_cache.remove(find("whisper-small"), settings)


def test_a_removed_model_is_gone_and_nothing_else(hub, settings, weights):
    for name in (NEMO, WHISPER):
        hub_cache.pull(find(name), settings)
    (folder(settings, NEMO).parent / ".locks" / folder(settings, NEMO).name).mkdir(parents=True, exist_ok=True)
    assert hub_cache.remove(find(NEMO), settings) >= SIZE
    assert [path.name for path in folder(settings, NEMO).parent.glob("**/*parakeet*")] == []
    assert checkpoints.disk_bytes(find(WHISPER), settings) == SIZE
    with pytest.raises(ModelNotFound, match="nothing to remove"):
        hub_cache.remove(find(NEMO), settings)
    assert hub_cache.pull(find(NEMO), settings)


def test_a_model_in_use_is_not_removed(hub, settings):
    hub_cache.pull(find(NEMO), settings)
    with hub_cache.in_use(find(NEMO), settings):
        with hub_cache.in_use(find(NEMO), settings), pytest.raises(ModelInUse, match=f"{NEMO} is loaded. Unload it"):
            hub_cache.remove(find(NEMO), settings)
        with pytest.raises(ModelInUse):
            hub_cache.remove(find(NEMO), settings)
    hub_cache.remove(find(NEMO), settings)


def test_another_process_that_uses_a_model_keeps_it_until_it_ends(hub, settings):
    hub_cache.pull(find(NEMO), settings)
    code = (
        "import sys, time; from worker.backends.common import hub_cache; from worker.catalog import find; "
        "from worker.config import Settings\n"
        f"with hub_cache.in_use(find({NEMO!r}), Settings()): print('holds', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parent.parent
    env = os.environ | {"HF_HOME": str(settings.hf_home)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"holds\n"
        with pytest.raises(ModelInUse):
            hub_cache.remove(find(NEMO), settings)
        process.kill()
        process.wait()
    hub_cache.remove(find(NEMO), settings)


def test_nothing_outside_the_caches_is_removed(hub, settings, tmp_path):
    outside = tmp_path / "models" / "parakeet-ctc-0.6b"
    outside.mkdir(parents=True)
    (outside / "model.nemo").write_bytes(b"x")
    own = settings.model_copy(update={"model_dir": tmp_path / "models"})
    with pytest.raises(Unsupported, match=rf"is outside the caches, in {re.escape(str(outside))}"):
        hub_cache.remove(find(NEMO), own)
    for name in (str(outside), str(outside / "model.nemo"), "pocketsphinx"):
        with pytest.raises((Unsupported, ModelNotFound)):
            hub_cache.remove(find(name), own)
    folder(settings, NEMO).parent.mkdir(parents=True)
    folder(settings, NEMO).symlink_to(outside)
    with pytest.raises(Unsupported, match="is a link"):
        hub_cache.remove(find(NEMO), settings)
    folder(settings, NEMO).unlink()
    folder(settings, NEMO).mkdir()
    (folder(settings, NEMO) / "snapshots").symlink_to(outside)
    (folder(settings, NEMO) / "blobs").symlink_to(outside)
    hub_cache.remove(find(NEMO), settings)
    assert (outside / "model.nemo").read_bytes() == b"x"
    assert not folder(settings, NEMO).exists()


def test_a_cache_that_is_read_only_says_so(hub, settings, monkeypatch):
    hub_cache.pull(find(NEMO), settings)

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "rmdir", refuse)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(ModelUnavailable, match=r"cannot be removed: Permission denied\. Check its owner"):
        hub_cache.remove(find(NEMO), settings)


def test_the_token_of_the_hub_does_not_follow_a_redirection_to_another_host(hub, settings, weights, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub_on_loopback() as storage:
        storage.add(NEMO, model__nemo=weights)
        hub.redirect = storage.url.replace("127.0.0.1", "localhost")
        assert hub_cache.pull(find(NEMO), settings)
    assert hub.tokens == {"Bearer hf_secret"}
    assert storage.tokens == {None}
    assert storage.sent == [("model.nemo", 0)]


def test_complete_models_outside_the_catalog_are_listed(hub, settings, weights):
    hub.add("me/whisper-mine", config__json=CONFIG, model__safetensors=weights[:1000])
    for name in ("me/whisper-mine", WHISPER):
        hub_cache.pull(find(name), settings)
    for name in ("me/whisper-half", "me/else"):
        folder(settings, name).mkdir()
    assert [row.id for row in hub_cache.others(settings)] == ["me/whisper-mine"]
