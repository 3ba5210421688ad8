"""Private files: who may read what the worker stores, and whose folders it trusts."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest
from serving import serving

from worker import private
from worker.audio.fetch import Fetcher
from worker.config import Settings
from worker.entrypoints.cli import doctor, serve
from worker.entrypoints.cli.doctor import machine
from worker.errors import ConfigError
from worker.jobs.store import JobStore
from worker.types import Source

OTHERS = stat.S_IRWXO | stat.S_IRWXG


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def as_user(monkeypatch):
    """Makes this process believe that it runs as another user, who is not root."""
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)


def foreign(path: Path) -> None:
    """Gives a path to a user who is neither `as_user` nor root; without root's rights, the path is the test's own."""
    if os.getuid() == 0:
        os.chown(path, 12_345, 12_345, follow_symlinks=False)


@pytest.fixture(autouse=True)
def no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_each_user_has_a_folder_of_their_own(monkeypatch):
    monkeypatch.delenv("DATA_DIR", raising=False)
    first = Settings().data_dir
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    assert first.name == f"aviary-{os.getuid()}"
    assert Settings().data_dir == first.parent / "aviary-54321"


@pytest.mark.parametrize("maker", ["settings", "store", "fetch", "serve", "server"])
def test_the_data_folder_is_made_for_its_user_alone(tmp_path, monkeypatch, maker):
    settings = Settings(skip_model_load=True, data_dir=tmp_path / "a" / "data")
    if maker == "settings":
        assert settings.make_data_dir() == settings.data_dir
    elif maker == "store":
        JobStore.of(settings).close()
    elif maker == "fetch":
        Fetcher(settings).open(Source("data", "data:,x")).close()
    elif maker == "serve":
        monkeypatch.setattr("worker.entrypoints.http.serve.serve", lambda *_args, **_options: 0)
        assert serve.serve(settings) == 0
    else:
        with serving(settings):
            pass
    assert mode(settings.data_dir) == 0o700


def test_what_an_earlier_version_stored_is_hidden(tmp_path):
    data = tmp_path / "data"
    (data / "uploads").mkdir(parents=True)
    for name in ("jobs.db", "jobs.db-wal", "jobs.db-shm"):
        (data / name).touch()
    with contextlib.closing(JobStore.of(Settings(data_dir=data))):
        assert mode(data) == 0o777, "an operator's folder keeps its mode"
        for path in data.iterdir():
            assert not mode(path) & stat.S_IRWXO, path


@pytest.mark.parametrize("url", [None, "sqlite:///{}/elsewhere/jobs.db"])
def test_jobs_and_uploads_are_not_for_others(tmp_path, url):
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    settings = Settings(data_dir=data, jobs_url=url and url.format(tmp_path))
    with contextlib.closing(JobStore.of(settings)) as store:
        store.submit("run", {})
        files = [*data.iterdir(), *(tmp_path / "elsewhere").glob("*")]
        assert {path.name for path in files} == {"uploads", "jobs.db", "jobs.db-wal", "jobs.db-shm"}
        for path in files:
            assert not mode(path) & OTHERS, path


def test_a_folder_of_another_user_is_refused(tmp_path, as_user):
    folder = tmp_path / "data"
    folder.mkdir()
    foreign(folder)
    for use in (Settings(data_dir=folder).make_data_dir, lambda: JobStore.of(Settings(data_dir=folder))):
        with pytest.raises(ConfigError, match=r"belongs to another user .+ Set DATA_DIR to .+: chown 54321 ") as caught:
            use()
        assert str(folder) in caught.value.message
    (finding,) = doctor._safely("disk", lambda: machine.disk(Settings(data_dir=folder)))
    assert "belongs to another user" in finding.state
    assert "Correct the setting" in finding.advice


def test_a_link_of_another_user_is_refused(tmp_path, as_user):
    (tmp_path / "mine").mkdir()
    link = tmp_path / "data"
    link.symlink_to("mine")
    foreign(link)
    with pytest.raises(ConfigError, match="belongs to another user"):
        private.make_folder(link)


@pytest.mark.parametrize("name", ["jobs.db", "uploads"])
def test_what_another_user_put_into_a_shared_folder_is_refused(tmp_path, as_user, name):
    planted = tmp_path / name
    planted.touch() if name == "jobs.db" else planted.mkdir()
    foreign(planted)
    with pytest.raises(ConfigError, match="belongs to another user"):
        JobStore(f"sqlite:///{tmp_path}/jobs.db", tmp_path / "uploads")


ME, OTHER, ROOT = 1000, 2000, 0


@pytest.mark.parametrize(
    ("me", "owner", "mode", "parent", "trusted"),
    [
        (ME, ME, 0o777, 0o1777, True),
        (ME, ROOT, 0o1777, 0o755, True),  # /tmp itself, or an emptyDir of Kubernetes
        (ME, OTHER, 0o700, 0o755, False),
        (ME, OTHER, 0o777, 0o755, False),
        (ROOT, ROOT, 0o777, 0o1777, True),
        (ROOT, OTHER, 0o755, 0o755, True),  # a volume of a container
        (ROOT, OTHER, 0o777, 0o755, False),
        (ROOT, OTHER, 0o775, 0o755, False),
        (ROOT, OTHER, 0o700, 0o1777, False),  # made in /tmp by anybody
    ],
)
def test_whose_paths_are_trusted(monkeypatch, me, owner, mode, parent, trusted):
    def status(uid: int, bits: int) -> os.stat_result:
        return os.stat_result((stat.S_IFDIR | bits, 0, 0, 1, uid, uid, 0, 0, 0, 0))

    monkeypatch.setattr(os, "geteuid", lambda: me)
    assert private._is_trusted(status(owner, mode), status(ROOT, parent)) == trusted
