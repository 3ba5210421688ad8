"""The job store on SQLite and PostgreSQL: one model of its states, its neighbours, full disks, and its versions."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from databases import Clock, schemas
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from worker.config import Settings
from worker.errors import ConfigError, DiskFull, SourceForbidden, StoreError
from worker.jobs import schema
from worker.jobs.database import Database
from worker.jobs.records import FINISHED, Outcome, Seen, Submission
from worker.jobs.schema import STEPS, metadata, migrate
from worker.jobs.store import JobStore
from worker.types import Progress

UPLOAD = "0123456789abcdef" * 2
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def store(fresh, tmp_path, clock):
    with contextlib.closing(JobStore(fresh(), tmp_path / "uploads", clock=clock)) as made:
        yield made


def done(store: JobStore, owner: str = "a", count: int = 1, answer=None) -> list[str]:
    """Claims and completes jobs."""
    ids = [job.id for job, _ in store.claim(owner, 10, count)]
    assert store.finish(owner, {one: Outcome.completed(answer or {"results": [one]}) for one in ids}) == set(ids)
    return ids


# The states, against a model

LEASE = 10.0


class States(RuleBasedStateMachine):
    """Two owners, lapsing leases, cancellation: the store does what a few lines of Python do."""

    jobs = Bundle("jobs")
    owners = st.sampled_from(["a", "b"])
    named = st.sampled_from(["holder", "holder", "a", "b"])

    def __init__(self, url: str, uploads: Path) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = JobStore(url, uploads, max_attempts=2, clock=self.clock)
        self.model: dict[str, dict] = {}

    def teardown(self):
        for job, one in self.model.items():
            assert self.store.see(job).answer == one["result"]
        self.store.close()

    @rule(target=jobs)
    def submit(self):
        name = f"{len(self.model):032x}"
        (self.store.uploads / name).touch()
        job = self.store.submit("run", {"inputs": [name]}, upload=name)
        assert job == self.store.see(job.id).job
        self.model[job.id] = {
            "state": "pending",
            "attempts": 0,
            "owner": None,
            "until": None,
            "upload": name,
            "progress": (0, 0),
            "text": "",
            "result": None,
            "code": None,
        }
        return job.id

    @rule(owner=owners, limit=st.integers(1, 3))
    def claim(self, owner, limit):
        for one in self.model.values():
            if one["state"] == "processing" and one["until"] < self.clock.now:
                lost = one["attempts"] >= 2
                one.update(
                    owner=None, until=None, state="failed" if lost else "pending", code="worker_lost" if lost else None
                )
                if not lost:
                    one["progress"] = (0, one["progress"][1])
                one["text"] = ""
        expected = [job for job, one in self.model.items() if one["state"] == "pending"][:limit]
        got = self.store.claim(owner, LEASE, limit)
        assert [job.id for job, _ in got] == expected
        for job, payload in got:
            one = self.model[job.id]
            assert payload == {"inputs": [one["upload"]]}
            one.update(
                state="processing",
                attempts=one["attempts"] + 1,
                owner=owner,
                until=self.clock.now + LEASE,
                progress=(0, one["progress"][1]),
            )

    @rule(seconds=st.sampled_from([6.0, 11.0]))
    def time_passes(self, seconds):
        self.clock.now += seconds

    def who(self, named, job):
        """Whoever holds the job, or the one that is named."""
        return (self.model[job]["owner"] or "a") if named == "holder" else named

    def held(self, owner):
        return {job for job, one in self.model.items() if one["state"] == "processing" and one["owner"] == owner}

    @precondition(lambda self: self.model)
    @rule(owner=owners)
    def renew(self, owner):
        held = self.held(owner)
        assert self.store.renew(owner, list(self.model), LEASE) == held
        for job in held:
            self.model[job]["until"] = self.clock.now + LEASE

    @rule(named=named, some=st.lists(jobs, min_size=1, max_size=3, unique=True), good=st.booleans(), told=st.booleans())
    def finish(self, named, some, good, told):
        owner = self.who(named, some[0])
        progress = Progress(1, 1) if told else None
        outcome = (
            Outcome.completed({"by": owner}, progress) if good else Outcome.failed({"code": "x"}, progress=progress)
        )
        written = self.store.finish(owner, dict.fromkeys(some, outcome))
        assert written == self.held(owner) & set(some)
        for job in written:
            one = self.model[job]
            one.update(
                state="completed" if good else "failed",
                owner=None,
                until=None,
                code=None if good else "x",
                result={"by": owner} if good else None,
                progress=(1, 1) if told else one["progress"],
                text="",
            )

    @rule(named=named, job=jobs)
    def give_back(self, named, job):
        owner = self.who(named, job)
        self.store.give_back(owner, [job])
        if job in self.held(owner):
            one = self.model[job]
            one.update(
                state="pending",
                attempts=one["attempts"] - 1,
                owner=None,
                until=None,
                progress=(0, one["progress"][1]),
                text="",
            )

    @rule(named=named, job=jobs, value=st.integers(0, 3))
    def progress(self, named, job, value):
        owner = self.who(named, job)
        self.store.progress(owner, {job: Progress(value, 3)}, {job: [(0, f"{value} ")]})
        if job in self.held(owner):
            self.model[job]["progress"] = (value, 3)
            self.model[job]["text"] += f"{value} "

    @rule(job=jobs)
    def cancel(self, job):
        one = self.model[job]
        over = one["state"] in FINISHED
        assert self.store.cancel(job) == ("finished" if over else "cancelled")
        if not over:
            one.update(state="cancelled", owner=None, until=None, text="")

    @invariant()
    def everything_agrees(self):
        known = {seen.job.id: seen.job for seen in self.store.recent(limit=1000)}
        assert list(known) == list(self.model)[::-1]
        for job, one in self.model.items():
            got = known[job]
            assert (got.state, got.attempts, got.lease_owner, got.lease_until, (got.done, got.total)) == (
                one["state"],
                one["attempts"],
                one["owner"],
                one["until"],
                one["progress"],
            )
            assert (got.completed_at is not None) == (one["state"] in FINISHED)
            assert (got.error and got.error["code"]) == one["code"]
            assert self.store.text(job) == ({0: one["text"]} if one["text"] else {})
            assert (self.store.uploads / one["upload"]).exists() == (one["state"] not in FINISHED)
        waiting = [job for job, one in self.model.items() if one["state"] == "pending"]
        if self.model:
            last = list(self.model)[-1]
            assert self.store.see(last).position == (waiting.index(last) if last in waiting else None)
        assert self.store.counts()["pending"] == len(waiting)


def test_states(fresh, tmp_path):
    run_state_machine_as_test(
        lambda: States(fresh(), tmp_path / "uploads" / str(next(schemas))),
        settings=hypothesis_settings(
            max_examples=8,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),
            database=None,
        ),
    )  # shrinking takes minutes on a database


def test_a_lease_holds_until_it_lapses_and_what_is_over_stays(store, clock):
    job = store.submit("run", {})
    assert [one.id for one, _ in store.claim("a", 10)] == [job.id]
    clock.now += 10
    assert store.claim("b", 10) == []
    clock.now += 0.1
    assert [one.id for one, _ in store.claim("b", 10)] == [job.id]
    assert store.finish("a", {job.id: Outcome.completed("a")}) == store.renew("a", [job.id], 10) == set()
    assert store.finish("b", {job.id: Outcome.completed("b")}) == {job.id}
    over = store.see(job.id).job
    assert store.cancel(job.id) == "finished"
    assert store.finish("b", {job.id: Outcome.failed({"code": "late"})}) == set()
    store.give_back("b", [job.id])
    clock.now += 100
    assert store.claim("a", 10) == []
    assert store.see(job.id) == Seen(over, None, "b")


# What it gives and takes


def test_a_job_is_kept_as_it_was_submitted(store, clock):
    (store.uploads / UPLOAD).touch()
    job = store.submit(
        "transcribe",
        {"inputs": ["ä", "\ud800", "\0"], "n": [1.5, None, True]},
        filename="my\0 \ud800 ä.mp3",
        upload=UPLOAD,
        webhook="https://host/",
    )
    assert store.payload(job.id) == {"inputs": ["ä", "\ud800", "\0"], "n": [1.5, None, True]}
    assert job == store.see(job.id).job
    assert (job.kind, job.filename, job.upload, job.webhook) == ("transcribe", "my� ? ä.mp3", UPLOAD, "https://host/")
    assert job.status() == {
        "id": job.id,
        "kind": "transcribe",
        "state": "pending",
        "filename": job.filename,
        "created_at": "1970-01-12T13:46:40Z",
        "started_at": None,
        "completed_at": None,
        "progress": {"done": 0, "total": 0, "audio_sec_done": None, "audio_sec_total": None},
        "attempts": 0,
        "error": None,
    }


def test_jobs_submitted_together_are_those_submitted_one_by_one(store):
    payloads = [{"size": size, "text": "x" * size} for size in (1, 100_000, 2, 3, 9_000, 8_000)]
    jobs = store.submit_all(
        [
            Submission("run", payload, f"{n}.wav", f"{n:032x}", "https://a.example/hook")
            for n, payload in enumerate(payloads)
        ]
    )
    assert [store.see(job.id).job for job in jobs] == jobs
    assert [(job.filename, job.upload) for job in jobs] == [(f"{n}.wav", f"{n:032x}") for n in range(6)]
    assert [payload for _, payload in store.claim("a", 10, 6)] == payloads


def test_jobs_submitted_together_are_stored_all_or_none(store):
    with pytest.raises(ValueError, match="JSON"):
        store.submit_all([Submission("run", 1), Submission("run", math.nan)])
    assert store.counts()["pending"] == 0


def test_a_large_result_comes_back_whole(store):
    job = store.submit("run", {})
    answer = {"results": [{"text": "x" * 1000, "n": n} for n in range(5000)]}
    done(store, answer=answer)
    assert store.see(job.id).answer == answer


@pytest.mark.parametrize("name", ["", "x", NOBODY, "\0", "\ud800", "'; --", NOBODY.upper() + "A"])
def test_an_id_that_is_none_is_not_found(store, name):
    assert (store.see(name), store.payload(name)) == (None, None)
    assert store.cancel(name) == "not_found"


NO_UPLOADS = [
    "../a",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "",
    "a\0b",
    "\ud800",
    UPLOAD + "\n",
    UPLOAD.upper(),
    UPLOAD + "0",
]


@pytest.mark.parametrize("name", NO_UPLOADS)
def test_an_upload_outside_the_folder_is_refused(store, name):
    with pytest.raises(ValueError, match="name of a file"):
        store.submit("run", {}, upload=name)
    with pytest.raises(SourceForbidden, match="not the name of an upload"):
        store.upload_path(name)


def test_cancelling_what_is_pending_leaves_other_owners_and_what_runs(store, tmp_path):
    kept, gone = "1" * 32, "2" * 32
    running = store.submit("run", {}, owner="alice")
    store.claim("a", 10)
    (store.uploads / kept).touch()
    (store.uploads / gone).touch()
    his = store.submit("run", {}, owner="bob", upload=kept)
    hers = [store.submit("run", {}, owner="alice", upload=gone, webhook="https://h/"), store.submit("run", {})]
    assert store.cancel_pending(owner="alice") == 1
    assert [store.see(job.id).job.state for job in (running, his, *hers)] == [
        "processing",
        "pending",
        "cancelled",
        "pending",
    ]
    assert [path.name for path in store.uploads.iterdir()] == [kept]
    assert [job.id for job in store.webhooks_due(10)] == [hers[0].id]
    assert store.cancel_pending() == 2
    assert store.cancel_pending() == 0
    assert store.counts() == {"pending": 0, "processing": 1, "completed": 0, "failed": 0, "cancelled": 3}


def test_a_name_that_another_program_stored_removes_nothing(store, tmp_path, caplog):
    victim, relative = tmp_path / "victim", "../victim"
    victim.touch()
    ids = [store.submit("run", {}).id for _ in range(4)]
    with store._database.write() as connection:
        connection.execute(schema.jobs.update().values(upload=relative))
    store.cancel(ids[0])
    done(store)
    store.claim("a", 10)
    store.finish("a", {ids[2]: Outcome.failed({"code": "x"})})
    assert store.expire(0, 0) == 3
    store.sweep(grace_sec=-math.inf)
    assert victim.exists()
    assert "no file is removed" in caplog.text


def test_sweeping_leaves_what_is_no_upload(store, clock):
    for name in ("notes.txt", UPLOAD):
        (store.uploads / name).touch()
        os.utime(store.uploads / name, (clock.now - 100, clock.now - 100))
    assert store.sweep(grace_sec=60) == 1
    assert [path.name for path in store.uploads.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("payload", [math.nan, {1, 2}, b"x"])
def test_what_is_not_json_is_refused_and_leaves_nothing(store, payload):
    with pytest.raises((ValueError, TypeError)):
        store.submit("run", payload)
    with pytest.raises((ValueError, TypeError)):
        Outcome.completed(payload)
    assert store.recent() == []


def test_recent_pages_and_filters(store):
    ids = [store.submit("run" if n % 2 else "transcribe", {}).id for n in range(7)]
    done(store, count=2)
    pages, before = [], None
    while page := store.recent(limit=3, before=before):
        pages.append([seen.job.id for seen in page])
        before = page[-1].job.number
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [*itertools.chain(*pages)] == ids[::-1]
    assert [seen.job.id for seen in store.recent(state="completed")] == ids[1::-1]
    assert [seen.job.id for seen in store.recent(kind="run", state="pending")] == ids[5:1:-2]


def test_recent_searches_file_names_models_and_ids(store):
    first, second = (
        store.submit_all([Submission("transcribe", {}, filename, model=model, task="transcribe", upload_bytes=7)])[0]
        for filename, model in (("Monday 100%.mp3", "pocketsphinx"), ("tuesday.mp3", "nvidia/parakeet-tdt-0.6b-v3"))
    )
    found = lambda text: [seen.job for seen in store.recent(search=text)]  # noqa: E731
    assert found("MONDAY") == found("100%.") == found(first.id) == found("sphinx") == [first]
    assert found("Parakeet") == found("tuesday") == [second]
    assert found(".mp3") == [second, first]
    assert found("1%") == found("_") == found("nothing\0\ud800") == [], "no letter stands for others"
    assert (first.task, first.upload_bytes) == ("transcribe", 7)


def test_expiry_takes_the_old_and_then_the_oldest_until_the_rest_fits(store, clock):
    ids = [store.submit("run", {}).id for _ in range(6)]
    waiting = store.submit("run", {}).id
    for _ in range(6):
        done(store, answer={"text": "x" * 1000})
        clock.now += 10
    assert store.expire(1000, 100_000) == 0
    assert store.expire(45, 100_000) == 2  # they ended 60, 50, 40, 30, 20 and 10 seconds ago
    assert store.expire(45, 2_500) == 2
    assert [seen.job.id for seen in store.recent()] == [waiting, ids[5], ids[4]]
    assert [store.see(one) for one in ids[:4]] == [None] * 4
    clock.now += 10_000
    assert store.expire(45, 0) == 2
    assert [seen.job.id for seen in store.recent()] == [waiting]


def test_sweeping_takes_what_nobody_needs(store, clock):
    needed, new, old = (digit * 32 for digit in "abc")
    job = store.submit("run", {}, upload=needed)
    for name in (needed, new, old):
        (store.uploads / name).touch()
        os.utime(store.uploads / name, (clock.now - 100, clock.now - 100))
    os.utime(store.uploads / new, (clock.now - 10, clock.now - 10))
    assert store.sweep(grace_sec=60) == 1
    assert {path.name for path in store.uploads.iterdir()} == {needed, new}
    store.cancel(job.id)
    (store.uploads / needed).touch()  # as if its process had been killed before it removed it
    assert store.sweep(grace_sec=math.inf) == 1


def test_sweeping_does_not_trip_over_what_another_process_removes_meanwhile(store, clock, monkeypatch):
    names = ["a" * 32, "b" * 32]
    for name in names:
        (store.uploads / name).touch()
        os.utime(store.uploads / name, (clock.now - 100, clock.now - 100))

    def meanwhile() -> float:
        (store.uploads / names[0]).unlink(missing_ok=True)
        return clock.now

    monkeypatch.setattr(store, "_clock", meanwhile)
    store.sweep(grace_sec=60)
    assert not list(store.uploads.iterdir())


def test_webhooks_are_due_once_the_job_is_over_until_they_are_told(store, clock):
    ids = [store.submit("run", {}, webhook="http://host/").id for _ in range(3)]
    store.submit("run", {})
    assert store.webhooks_due(60, 10) == []
    done(store)
    store.cancel(ids[1])
    assert {job.id for job in store.webhooks_due(60, 10)} == set(ids[:2])
    assert store.webhooks_due(60, 10) == []  # somebody is at it
    clock.now += 61
    assert len(store.webhooks_due(60, 1)) == 1  # he was lost
    store.webhook_over(ids[0])
    store.webhook_over(ids[1], again=True)
    assert [job.id for job in store.webhooks_due(60, 10)] == [ids[1]]
    store.webhook_over(ids[1])
    clock.now += 1000
    assert store.webhooks_due(60, 10) == []


# Neighbours


def test_processes_that_start_together_make_one_store(fresh, tmp_path):
    url, gate = fresh(), threading.Barrier(6)

    def start(_):
        gate.wait(10)
        with contextlib.closing(JobStore(url, tmp_path / "uploads")) as mine:
            return mine.submit("run", {}).number

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(start, range(6))) == [1, 2, 3, 4, 5, 6]


def test_a_new_file_is_opened_by_many_at_once(tmp_path):
    def start(gate, url):
        gate.wait(10)
        Database(url).close()

    with ThreadPoolExecutor(4) as pool:
        for number in range(100):
            gate, url = threading.Barrier(4), f"sqlite:///{tmp_path}/{number}.db"
            list(pool.map(start, [gate] * 4, [url] * 4))


def test_owners_who_claim_together_share_and_do_not_overlap(fresh, tmp_path):
    url = fresh()
    stores = [JobStore(url, tmp_path / "uploads") for _ in range(4)]
    ids = [stores[0].submit("run", n).id for n in range(120)]
    gate = threading.Barrier(4)

    def work(number):
        gate.wait(10)
        mine = []
        while got := stores[number].claim(str(number), 60, 3):
            mine += [job.id for job, _ in got]
            stores[number].finish(str(number), {job.id: Outcome.completed(payload) for job, payload in got})
        return mine

    with ThreadPoolExecutor(4) as pool:
        shares = list(pool.map(work, range(4)))
    assert sorted(itertools.chain(*shares)) == sorted(ids)
    assert [stores[0].see(one).answer for one in ids] == list(range(120))
    assert all(seen.job.attempts == 1 for seen in stores[0].recent(limit=200))
    for one in stores:
        one.close()


def test_polling_waits_for_no_writer(fresh, tmp_path):
    url = fresh()
    with contextlib.closing(JobStore(url, tmp_path / "uploads")) as store, contextlib.ExitStack() as stack:
        job = store.submit("run", {})
        store.see(job.id)
        other = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        connection = stack.enter_context(other.connect())
        if url.startswith("sqlite"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.exec_driver_sql("UPDATE jobs SET done = 5")
        waiting = threading.Thread(
            target=store.submit, args=("run", {})
        )  # a writer in line must not hold up readers either
        if url.startswith("sqlite"):
            waiting.start()
        taken = []
        for _ in range(50):
            started = time.perf_counter()
            assert store.see(job.id).job.done == 0
            taken.append(time.perf_counter() - started)
        assert sorted(taken)[25] < 0.01
        connection.rollback()
        if url.startswith("sqlite"):
            waiting.join(10)
        other.dispose()


# Full disks


def fill(store: JobStore) -> list[str]:
    """Submits until the disk is full; gives what was accepted."""
    ids: list[str] = []
    with pytest.raises(DiskFull) as caught:
        ids.extend(store.submit("run", {"n": n, "text": "x" * 50_000}).id for n in range(1000))
    assert (caught.value.code, caught.value.status, caught.value.retryable) == ("disk_full", 507, True)
    assert "xxx" not in str(caught.value)
    return ids


def whole(path: Path, store: JobStore, ids: list[str]) -> None:
    assert [store.payload(one)["n"] for one in ids] == list(range(len(ids)))
    assert store.counts()["pending"] == len(ids)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM documents").fetchone() == (len(ids),)


def test_a_full_database_refuses_and_keeps_what_it_has(tmp_path):
    limit = {"pages": 200}

    def restrict(connection, _record):
        connection.execute(f"PRAGMA max_page_count={limit['pages']}")

    path = tmp_path / "jobs.db"
    sa.event.listen(sa.Pool, "connect", restrict)
    try:
        with contextlib.closing(JobStore(f"sqlite:///{path}", tmp_path / "uploads")) as store:
            ids = fill(store)
            assert ids
            whole(path, store, ids)
            [(job, _)] = store.claim("a", 10)
            with pytest.raises(DiskFull):
                store.finish("a", {job.id: Outcome.completed("y" * 900_000)})
            assert store.see(job.id).job.state == "processing"
            assert store.cancel(ids[1]) == "cancelled"
            assert store.expire(-1, 0) == 1
            store.submit("run", {"text": "x" * 40_000})  # there is room again
    finally:
        sa.event.remove(sa.Pool, "connect", restrict)


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_a_full_disk_refuses_and_keeps_what_it_has(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mount.returncode:
        pytest.skip(f"this machine mounts nothing: {mount.stderr.decode().strip()}")
    try:
        with contextlib.closing(JobStore(f"sqlite:///{disk}/jobs.db", disk / "uploads")) as store:
            ids = fill(store)
            assert ids
            subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
            whole(disk / "jobs.db", store, ids)
            store.submit("run", {"text": "x" * 50_000})
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# Versions and URLs


def test_a_store_of_a_newer_version_is_refused(fresh, tmp_path):
    url = fresh()
    JobStore(url, tmp_path / "uploads").close()
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO schema_version VALUES (99)"))
    with pytest.raises(ConfigError, match="version 99, written by a newer Aviary"):
        JobStore(url, tmp_path / "uploads")
    engine.dispose()


def test_steps_run_once_in_order_and_one_that_fails_leaves_nothing(fresh, tmp_path):
    url = fresh()
    with contextlib.closing(JobStore(url, tmp_path / "uploads")) as store:
        job = store.submit("run", {})
        engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
            sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        with pytest.raises(sa.exc.SQLAlchemyError):
            migrate(
                engine,
                (*STEPS, ("ALTER TABLE jobs ADD COLUMN extra TEXT",), ("CREATE TABLE half (n INTEGER)", "NONSENSE")),
            )
        assert "half" not in sa.inspect(engine).get_table_names()
        for _ in range(2):
            migrate(engine, (*STEPS, ("ALTER TABLE jobs ADD COLUMN extra TEXT",), ("CREATE TABLE half (n INTEGER)",)))
        assert "half" in sa.inspect(engine).get_table_names()
        with engine.connect() as connection:
            versions = connection.scalars(sa.text("SELECT version FROM schema_version ORDER BY 1")).all()
            assert versions == list(range(1, len(STEPS) + 3))
        assert store.see(job.id).job == job
        engine.dispose()


def test_jobs_of_the_first_version_have_no_owner(fresh, tmp_path):
    url = fresh()
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    migrate(engine, STEPS[:1])
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO jobs (id, kind, state, created_at, done, total, attempts, bytes, payload) "
                f"VALUES ('{NOBODY}', 'run', 'pending', 1.0, 0, 0, 0, 2, '{{}}')"
            )
        )
    engine.dispose()
    with contextlib.closing(JobStore(url, tmp_path / "uploads")) as store:
        assert store.see(NOBODY).job.owner is None
        mine = store.submit("run", {}, owner="a")
        assert [job.id for job, _ in store.claim("a", 10, 2)] == [NOBODY, mine.id]


def test_jobs_are_listed_and_counted_by_owner(store):
    ids = {owner: [store.submit("run", {}, owner=owner).id for _ in range(2)] for owner in ("a", "b", None)}
    done(store)
    for owner in ("a", "b"):
        assert [seen.job.id for seen in store.recent(owner=owner)] == ids[owner][::-1]
        assert {seen.job.owner for seen in store.recent(owner=owner, kind="run")} == {owner}
    assert len(store.recent()) == 6
    assert store.recent(owner="c") == []
    assert [store.counts(owner=owner)["pending"] for owner in ("a", "b", "c", None)] == [1, 2, 0, 5]
    assert store.counts(owner="a")["completed"] == 1


def test_the_tables_are_what_the_steps_make(fresh, tmp_path):
    url = fresh()
    JobStore(url, tmp_path / "uploads").close()
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    for table in metadata.tables.values():
        made = {column["name"]: column["nullable"] for column in sa.inspect(engine).get_columns(table.name)}
        assert list(made) == [column.name for column in table.columns]
        assert all(made[column.name] == column.nullable for column in table.columns if not column.primary_key)
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://host/x", "postgresql"),
        ("sqlite://", "names no file"),
        ("nonsense", "cannot be opened"),
        ("postgresql://user:hidden@127.0.0.1:1/x?connect_timeout=2", "cannot be opened"),
        ("sqlite:////proc/none/jobs.db", "cannot be opened"),
    ],
)
def test_a_url_that_does_not_work_is_told_without_its_password(url, says, tmp_path):
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(ConfigError, match=says) as caught:
        JobStore(url, tmp_path / "uploads")
    assert "hidden" not in str(caught.value)


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "jobs.db").write_bytes(b"something else" * 1000)
    with pytest.raises(ConfigError, match="cannot be opened"):
        JobStore(f"sqlite:///{tmp_path}/jobs.db", tmp_path / "uploads")


def test_settings_name_the_place(tmp_path):
    with contextlib.closing(JobStore.of(Settings(data_dir=tmp_path / "d?#%"))) as store:
        store.submit("run", {})
    assert {path.name for path in (tmp_path / "d?#%").iterdir()} >= {"jobs.db", "uploads"}


@pytest.mark.slow
def test_a_database_that_goes_away_is_an_error_of_ours(postgres, tmp_path):
    url = postgres()
    with contextlib.closing(JobStore(url, tmp_path / "uploads")) as store:
        job = store.submit("run", {})
        engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE jobs RENAME TO away"))
            connection.execute(
                sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            )
        with engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE away RENAME TO jobs"))
        assert store.see(job.id).job == job  # reconnected
        engine.dispose()
        assert issubclass(DiskFull, StoreError)


def test_claims_take_turns_between_api_keys(store):
    many = [store.submit("run", {}, owner="many").id for _ in range(6)]
    without = store.submit("run", {}).id
    one = [store.submit("run", {}, owner="one").id for _ in range(2)]
    first = [job.id for job, _ in store.claim("process", 10, 4)]
    assert sorted(first) == sorted([many[0], without, one[0], many[1]])
    assert [job.id for job, _ in store.claim("process", 10, 1)] == [one[1]], "the key with the fewest running jobs"
    assert [job.id for job, _ in store.claim("process", 10, 10)] == many[2:]
