"""Jobs belong to the API key that submitted them."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import httpx
import pytest
from serving import serving

from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints.http.auth import AuthMiddleware, keys
from worker.entrypoints.http.callers import Callers
from worker.errors import ConfigError
from worker.jobs.store import JobStore

WEEK = Path("samples/week.wav").resolve()


@contextlib.contextmanager
def clients(settings: Settings, *names: str):
    """Yields a client for each key."""
    with serving(settings) as url, contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(httpx.Client(base_url=url, headers={"authorization": f"Bearer {name}"}, timeout=30))
            for name in names
        ]


def upload(http: httpx.Client) -> str:
    return http.post("/transcribe/async", files={"file": ("secret.wav", WEEK.read_bytes())}).json()["job_id"]


def run(http: httpx.Client) -> str:
    return http.post("/run", json={"input": {"audio": str(WEEK)}}).json()["id"]


def listed(http: httpx.Client) -> tuple[set[str], int]:
    page = http.get("/jobs").json()
    return {job["job_id"] for job in page["jobs"]}, sum(page["counts"].values())


REQUESTS = [
    ("GET", "/jobs/{}/status"),
    ("GET", "/jobs/{}/result"),
    ("POST", "/jobs/{}/cancel"),
    ("GET", "/status/{}"),
    ("POST", "/status/{}"),
    ("POST", "/cancel/{}"),
]


def test_a_key_has_its_own_jobs_and_an_operator_has_all(tmp_path):
    settings = Settings(
        skip_model_load=True,
        data_dir=tmp_path / "data",
        allowed_paths=(WEEK.parent,),
        api_key="alice, bob",
        admin_api_key="root, second",
    )
    with clients(settings, "alice", "bob", "root", "second") as (alice, bob, root, second):
        hers, his = {upload(alice), run(alice)}, {run(bob)}
        assert listed(alice) == (hers, 2)
        assert listed(bob) == (his, 1)
        assert listed(root) == listed(second) == (hers | his, 3)
        nobody = "00000000-0000-4000-8000-000000000000"
        for name in hers:
            for method, path in REQUESTS:
                refused, absent = (bob.request(method, path.format(one)) for one in (name, nobody))
                assert (refused.status_code, refused.text) == (404, absent.text.replace(nobody, name)), path
                assert alice.request(method, path.format(name)).status_code != 404, path
                assert root.request(method, path.format(name)).status_code != 404, path
        assert run(root) not in listed(alice)[0] | listed(bob)[0]
    stored = (tmp_path / "data" / "jobs.db").read_bytes()
    assert not any(name in stored for name in (b"alice", b"bob", b"root"))


def test_jobs_keep_their_owner_over_restarts_and_from_a_server_without_keys(tmp_path):
    settings = Settings(skip_model_load=True, data_dir=tmp_path / "data", allowed_paths=(WEEK.parent,))

    def keyed(**options: str) -> Settings:
        return settings.model_copy(update=options)

    with clients(settings, "x") as (anybody,):
        ownerless = run(anybody)
        assert listed(anybody) == ({ownerless}, 1)
    with clients(keyed(api_key="alice"), "alice") as (alice,):
        hers = run(alice)
        assert listed(alice) == ({ownerless, hers}, 2), "with one key, all is as it was"
    with clients(keyed(api_key="alice,bob", admin_api_key="root"), "alice", "bob", "root") as (alice, bob, root):
        assert listed(alice) == ({hers}, 1)
        assert listed(bob) == (set(), 0)
        assert listed(root) == ({ownerless, hers}, 2)
    with clients(keyed(api_key="alice,bob"), "alice", "bob") as (alice, bob):
        assert listed(alice) == ({hers}, 1)
        assert alice.get(f"/status/{ownerless}").status_code == bob.get(f"/status/{ownerless}").status_code == 404
    with clients(settings, "x") as (anybody,):
        assert listed(anybody) == ({ownerless, hers}, 2)


@pytest.mark.parametrize("api_key", [None, "off"])
def test_an_admin_key_requires_keys(api_key):
    with pytest.raises(ConfigError, match="ADMIN_API_KEY requires API_KEY"):
        AuthMiddleware(None, Settings(api_key=api_key, admin_api_key="root"))


def test_an_admin_key_that_is_blank_is_none():
    with pytest.raises(ConfigError, match="ADMIN_API_KEY is set but holds no key"):
        keys(Settings(api_key="a", admin_api_key=" , "))


@pytest.mark.parametrize(
    ("api_key", "admin", "operators"),
    [("a", None, {"a"}), ("a,a", None, {"a"}), ("a,b", None, set()), ("a", "b", {"b"}), ("a,b", "b", {"b"})],
)
def test_who_is_an_operator(api_key, admin, operators):
    settings = Settings(api_key=api_key, admin_api_key=admin)
    callers = AuthMiddleware(None, settings)._callers
    assert {key.decode() for key in keys(settings) if callers.of(key).is_operator} == operators
    assert not callers.of(None).is_operator
    assert callers.of(None).owner is None


def test_without_keys_everybody_is_an_operator():
    assert Callers([], []).of(None).is_operator


def test_a_caller_without_an_owner_does_not_see_jobs_without_one(tmp_path):
    with contextlib.closing(JobStore.of(Settings(data_dir=tmp_path))) as store:
        job = store.submit("run", {})
    assert not Callers([b"a", b"b"], []).of(None).may_see(job)


def test_the_engine_knows_the_key_of_each_request(tmp_path, monkeypatch):
    """Keys take turns there; a job has the key that submitted it."""
    owners: list[tuple[str | None, bool]] = []
    submit = Engine.submit

    def spy(self, request, **callbacks):
        owners.append((request.owner, request.background))
        return submit(self, request, **callbacks)

    monkeypatch.setattr(Engine, "submit", spy)
    settings = Settings(
        skip_model_load=True, data_dir=tmp_path / "data", allowed_paths=(WEEK.parent,), api_key="alice, bob"
    )
    with clients(settings, "alice", "bob") as (alice, bob):
        payload = {"input": {"audio": str(WEEK)}}
        for http in (alice, bob, alice):
            assert http.post("/runsync", json=payload).status_code == 200
        form = {"files": {"file": ("week.wav", WEEK.read_bytes())}, "data": {"stream": "true"}}
        assert bob.post("/v1/audio/transcriptions", **form).status_code == 200
        job = run(bob)
        deadline = time.monotonic() + 20
        while bob.get(f"/status/{job}").json()["status"] != "COMPLETED":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    names = [name for name, _ in owners]
    assert names == [names[0], names[1], names[0], names[1], names[1]]
    assert len(set(names)) == 2
    assert None not in names
    assert [background for _, background in owners] == [False] * 4 + [True]
