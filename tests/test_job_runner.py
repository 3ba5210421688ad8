"""The runner on the real engine (dry run): killed processes, shared stores, cancellation, full disks, and what it
costs."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import sqlalchemy as sa

ROOT = Path(__file__).parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from conftest import tone

from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import DeviceLost, RequestError, StoreError
from worker.jobs.records import FINISHED
from worker.jobs.runner import JobRunner
from worker.jobs.store import JobStore
from worker.protocol.render import to_json
from worker.protocol.request import parse
from worker.types import Progress


def on(engine: Engine, hold_sec: float = 0.0):
    """What a door gives the runner: payload → Future of the answer. `hold_sec`: how much longer answers take on
    average."""

    def run(payload, on_progress, _owner) -> Future[dict]:
        request, outer = parse(payload, engine.settings, trusted=True), Future()
        inner = engine.submit(request, on_progress=on_progress)

        def answer(future):
            if not future.cancelled() and outer.set_running_or_notify_cancel():
                outer.set_result(to_json(future.result(), no_bucket) | {"worker": os.getpid()})

        def later(future):
            timer = threading.Timer(hold_sec * random.uniform(0.5, 1.5), answer, [future])
            timer.daemon = True
            timer.start()

        inner.add_done_callback(later if hold_sec else answer)
        outer.add_done_callback(lambda future: inner.cancel() if future.cancelled() else None)
        return outer

    return run


def no_bucket(*_args):
    raise AssertionError


def child(folder: str, hold_sec: str) -> None:
    """A server process without a door: runs the jobs of the store in `folder` until it is killed, or told by a
    SIGTERM."""
    told: list[int] = []  # not an Event: setting one in a handler may wait for its own thread
    signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    settings = Settings(
        skip_model_load=True, data_dir=Path(folder), decode_workers=2, jobs_in_flight=8, job_lease_sec=1
    )
    with (
        Engine(settings) as engine,
        contextlib.closing(JobStore.of(settings)) as store,
        JobRunner.of(settings, store, on(engine, float(hold_sec))),
    ):
        print("ready", flush=True)
        while not told:
            time.sleep(0.02)


@contextlib.contextmanager
def process(folder: Path, hold_sec: float = 0.05):
    with subprocess.Popen(
        [sys.executable, __file__, str(folder), str(hold_sec)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    ) as running:
        try:
            assert running.stdout.readline() == b"ready\n"
            yield running
        finally:
            if running.poll() is None:
                running.kill()


def until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def settings(tmp_path):
    return Settings(skip_model_load=True, data_dir=tmp_path / "data", allowed_paths=(tmp_path,), decode_workers=2)


@pytest.fixture
def store(settings):
    with contextlib.closing(JobStore.of(settings)) as made:
        yield made


@pytest.fixture
def clip(tmp_path):
    return str(tone(tmp_path / "a.wav", 0.5))


def upload(store: JobStore, clip: str, name: str) -> str:
    """A job on a file of its own, as an upload makes it."""
    path = store.uploads / f"{int(name):032x}"
    shutil.copyfile(clip, path)
    return store.submit(
        "transcribe", {"inputs": [{"source": str(path), "id": name}]}, filename="my.wav", upload=path.name
    ).id


def completed(store: JobStore) -> int:
    return store.counts()["completed"]


def whole(store: JobStore, settings: Settings, ids: list[str]) -> None:
    """Each job has its own result, once, and no upload is left."""
    for number, job_id in enumerate(ids):
        job = store.see(job_id).job
        assert (job.state, job.done, job.total, job.error) == ("completed", 1, 1, None)
        [result] = store.see(job_id).answer["results"]
        assert (result["id"], result["text"]) == (str(number), "[dry-run] transcribe of 0.50 s")
    assert list(store.uploads.iterdir()) == []
    with contextlib.closing(sqlite3.connect(settings.data_dir / "jobs.db")) as connection:
        [(results,)] = connection.execute("SELECT count(*) FROM documents WHERE name = 'result'").fetchall()
        assert results == len(ids)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# Processes that die


@pytest.mark.slow
def test_a_hundred_jobs_survive_two_kills(store, settings, clip):
    ids = [upload(store, clip, str(n)) for n in range(100)]
    for limit in (20, 55):
        with process(settings.data_dir) as running:
            until(lambda limit=limit: completed(store) >= limit)
            running.kill()
        assert completed(store) < 100
    with process(settings.data_dir):
        until(lambda: completed(store) == 100)
        until(lambda: not list(store.uploads.iterdir()), 5)
    whole(store, settings, ids)
    assert max(store.see(one).job.attempts for one in ids) > 1


@pytest.mark.slow
def test_two_processes_share_and_the_one_that_is_left_does_the_rest(store, settings, clip):
    with process(settings.data_dir, 0.2) as first, process(settings.data_dir, 0.2) as second:
        ids = [upload(store, clip, str(n)) for n in range(120)]  # when both have started, so that both take part
        until(
            lambda: (
                {store.see(one).answer["worker"] for one in ids if store.see(one).job.state == "completed"}
                == {first.pid, second.pid}
            )
        )
        first.kill()
        first.wait()
        assert completed(store) < 120
        until(lambda: completed(store) == 120)
        until(lambda: not list(store.uploads.iterdir()), 5)
    whole(store, settings, ids)


@pytest.mark.slow
def test_a_process_that_is_asked_to_stop_gives_its_jobs_back(store, settings, clip):
    ids = [upload(store, clip, str(n)) for n in range(3)]
    with process(settings.data_dir, 60) as running:
        until(lambda: store.counts()["processing"] == 3)
        running.terminate()
        running.wait(20)
    assert [store.see(one).job.state for one in ids] == ["pending"] * 3
    assert [store.see(one).job.attempts for one in ids] == [0] * 3
    assert len(list(store.uploads.iterdir())) == 3


# The runner itself, on futures that the test completes


class Desk:
    """A `run` whose jobs lie open until the test ends them."""

    def __init__(self) -> None:
        self.open: dict[str, tuple[Future, object]] = {}
        self.most = 0

    def __call__(self, payload, on_progress, _owner) -> Future:
        future: Future = Future()
        self.open[payload["name"]] = (future, on_progress)
        self.most = max(self.most, sum(not one.done() for one, _ in self.open.values()))
        return future

    def end(self, name, answer) -> None:
        self.open[name][0].set_result(answer)


@pytest.fixture
def desk():
    return Desk()


def state(store: JobStore, job) -> str:
    return store.see(job.id).job.state


def test_a_job_begins_and_ends_at_once(store, desk):
    with JobRunner(store, desk) as runner:
        time.sleep(0.2)
        for n in range(5):
            started = time.monotonic()
            job = runner.submit("run", {"name": n})
            until(lambda n=n: n in desk.open)
            desk.end(n, {"results": []})
            until(lambda job=job: state(store, job) == "completed")
            assert time.monotonic() - started < 0.25  # a tick alone is twice that


def test_no_more_than_there_is_room_for_and_the_oldest_first(store, desk):
    jobs = [store.submit("run", {"name": n}) for n in range(10)]
    with JobRunner(store, desk, workers_in_flight=3):
        for n in range(10):
            until(lambda n=n: n in desk.open)
            assert list(desk.open) == list(range(min(10, max(n + 1, len(desk.open)))))
            time.sleep(0.02)
            desk.end(n, {"results": []})
        until(lambda: completed(store) == 10)
    assert desk.most == 3
    assert [store.see(job.id).job.number for job in jobs] == sorted(job.number for job in jobs)


def test_cancelling_here_is_at_once_and_elsewhere_at_the_heartbeat(store, settings, desk):
    with JobRunner(store, desk, lease_sec=3) as runner, contextlib.closing(JobStore.of(settings)) as elsewhere:
        jobs = [runner.submit("run", {"name": n}) for n in range(3)]
        until(lambda: len(desk.open) == 3)
        assert runner.cancel(jobs[0].id) == "cancelled"
        assert desk.open[0][0].cancelled()
        assert runner.cancel(jobs[0].id) == "finished"
        assert elsewhere.cancel(jobs[1].id) == "cancelled"
        until(desk.open[1][0].cancelled, 2)
        desk.end(2, {"results": []})
        until(lambda: state(store, jobs[2]) == "completed")
    assert [state(store, job) for job in jobs] == ["cancelled", "cancelled", "completed"]


def test_one_that_is_cancelled_while_it_is_being_begun_is_stopped_at_once(store):
    begun, future = threading.Event(), Future()

    def run(_payload, _on_progress, _owner):
        begun.set()
        time.sleep(0.2)
        return future

    with JobRunner(store, run) as runner:
        job = runner.submit("run", {})
        assert begun.wait(10)
        assert runner.cancel(job.id) == "cancelled"
        assert future.cancelled()
    assert store.counts()["cancelled"] == 1


def test_progress_is_shown_and_the_last_of_it_kept(store, desk):
    with JobRunner(store, desk) as runner:
        job = runner.submit("run", {"name": "a"})
        until(lambda: "a" in desk.open)
        for n in range(7):
            desk.open["a"][1](Progress(n, 9, n, 10.0 * n, 10.0 * n, (n, "x")))
        until(lambda: (store.see(job.id).job.done, store.see(job.id).job.total) == (6, 9), 2)
        assert store.text(job.id) == dict.fromkeys(range(7), "x")
        desk.open["a"][1](Progress(9, 9, 9, 90.0, 90.0, (9, "x")))
        desk.end("a", {"results": []})
        until(lambda: state(store, job) == "completed")
    assert store.see(job.id).job.progress == {"done": 9, "total": 9, "audio_sec_done": 90.0, "audio_sec_total": 90.0}
    assert store.text(job.id) == {}


def test_text_that_could_not_be_stored_is_stored_later(store, desk, monkeypatch):
    failing = [True]
    write = store.progress

    def progress(*written):
        if failing:
            raise StoreError("the disk is full")
        write(*written)

    monkeypatch.setattr(store, "progress", progress)
    with JobRunner(store, desk) as runner:
        job = runner.submit("run", {"name": "a"})
        until(lambda: "a" in desk.open)
        desk.open["a"][1](Progress(0, 1, 1, 30.0, 60.0, (0, "one")))
        time.sleep(1.2)
        desk.open["a"][1](Progress(0, 1, 1, 60.0, 60.0, (0, " two")))
        assert store.text(job.id) == {}
        failing.clear()
        until(lambda: store.text(job.id) == {0: "one two"}, 10)
        desk.end("a", {"results": []})


def test_a_job_that_cannot_be_returned_stays_leased(store, desk, monkeypatch, caplog):
    def give_back(*_told):
        raise StoreError("the disk is full")

    with JobRunner(store, desk) as runner:
        job = runner.submit("run", {"name": "a"})
        until(lambda: "a" in desk.open)
        monkeypatch.setattr(store, "give_back", give_back)
    assert "the unfinished jobs stay leased" in caplog.text
    assert state(store, job) == "processing"


FAILED = {"index": 0, "id": None, "error": {"code": "fetch_failed", "message": "m", "retryable": True}}


@pytest.mark.parametrize(
    ("answer", "code", "retryable", "kept"),
    [
        ({"error": "e", "code": "unsupported", "retryable": False}, "unsupported", False, False),
        ({"error": "all 1 failed", "results": [FAILED]}, "fetch_failed", True, True),
        ({"error": "e"}, "internal_error", False, False),
    ],
)
def test_an_answer_with_an_error_is_a_failed_job(store, desk, answer, code, retryable, kept):
    with JobRunner(store, desk) as runner:
        job = runner.submit("run", {"name": "a"})
        until(lambda: "a" in desk.open)
        desk.end("a", answer)
        until(lambda: state(store, job) == "failed")
    assert store.see(job.id).job.error == {"code": code, "message": answer["error"], "retryable": retryable}
    assert store.see(job.id).answer == (answer if kept else None)


@pytest.mark.parametrize(
    ("fault", "code"), [(RequestError("no"), "invalid_request"), (ZeroDivisionError(), "internal_error")]
)
def test_a_run_that_raises_is_a_failed_job(store, fault, code):
    def run(payload, _on_progress, _owner):
        if payload == "now":
            raise fault
        future = Future()
        future.set_exception(fault)
        return future

    with JobRunner(store, run) as runner:
        jobs = [runner.submit("run", payload) for payload in ("now", "later")]
        until(lambda: store.counts()["failed"] == 2)
    assert [store.see(job.id).job.error["code"] for job in jobs] == [code] * 2


@pytest.mark.parametrize(
    "poison", [{"results": [float("nan")]}, {"results": [{1, 2}]}, {"results": None, "error": "e"}, None]
)
def test_an_answer_that_cannot_be_kept_spoils_no_other(store, desk, poison):
    with JobRunner(store, desk) as runner:
        jobs = [runner.submit("run", {"name": n}) for n in range(3)]
        until(lambda: len(desk.open) == 3)
        for n, answer in enumerate(({"results": []}, poison, {"results": []})):
            desk.end(n, answer)
        until(lambda: all(state(store, job) in FINISHED for job in jobs))
    assert [state(store, job) for job in jobs] == ["completed", "failed", "completed"]
    assert store.see(jobs[1].id).job.error["code"] == "internal_error"


def test_what_the_database_refuses_spoils_no_other(store):
    def run(payload, on_progress, _owner):
        on_progress(Progress(payload, 1))  # no database has an integer of 70 bits
        future = Future()
        future.set_result({"results": []})
        return future

    jobs = [store.submit("run", number) for number in (1, 2**70, 1)]
    with JobRunner(store, run):
        until(lambda: all(state(store, job) in FINISHED for job in jobs))
    assert [state(store, job) for job in jobs] == ["completed", "failed", "completed"]


def test_a_job_longer_than_its_lease_is_kept(store, settings, desk):
    other = Desk()
    with (
        contextlib.closing(JobStore.of(settings)) as elsewhere,
        JobRunner(store, desk, lease_sec=0.6) as runner,
        JobRunner(elsewhere, other, lease_sec=0.6),
    ):
        job = runner.submit("run", {"name": "a"})
        until(lambda: desk.open or other.open)
        time.sleep(1.5)
        assert len(desk.open) + len(other.open) == 1
        (desk if desk.open else other).end("a", {"results": []})
        until(lambda: state(store, job) == "completed")
    assert store.see(job.id).job.attempts == 1


LOST = {"code": DeviceLost.code, "message": "the GPU died", "retryable": True}


@pytest.mark.parametrize(
    "answer", [{"error": LOST["message"], **LOST}, {"results": [{"text": "one"}, {"error": LOST}]}]
)
def test_a_lost_device_leaves_its_jobs_to_the_next_process(store, desk, answer):
    with JobRunner(store, desk, lease_sec=1) as runner:
        job = runner.submit("run", {"name": "a"})
        until(lambda: "a" in desk.open)
        desk.end("a", answer)
        time.sleep(0.2)
        second = runner.submit("run", {"name": "b"})
        time.sleep(0.2)
        assert (state(store, job), state(store, second)) == ("processing", "pending")
        assert list(desk.open) == ["a"]
    fresh = Desk()
    with JobRunner(store, fresh):
        until(lambda: len(fresh.open) == 2)
        assert store.see(job.id).job.attempts == 2


def test_stopping_drains_for_as_long_as_it_is_told(store, desk):
    runner = JobRunner(store, desk)
    runner.start()
    jobs = [runner.submit("run", {"name": n}) for n in range(2)]
    until(lambda: len(desk.open) == 2)
    threading.Timer(0.2, desk.end, [0, {"results": []}]).start()
    started = time.monotonic()
    runner.stop(drain_sec=0.6)
    assert 0.5 < time.monotonic() - started < 2
    assert [state(store, job) for job in jobs] == ["completed", "pending"]
    assert desk.open[1][0].cancelled()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("jobs", "webhook"))]


def test_a_webhook_that_is_not_allowed_is_refused_before_anything_is_stored(store, desk):
    with JobRunner(store, desk) as runner, pytest.raises(RequestError, match="webhook"):
        runner.submit("run", {}, webhook="http://169.254.169.254/")
    assert store.recent() == []


def test_what_a_full_disk_held_up_is_written_when_there_is_room(tmp_path, desk):
    opened = []

    def restrict(connection, _record):
        opened.append(connection)
        connection.execute("PRAGMA max_page_count=60")

    sa.event.listen(sa.Pool, "connect", restrict)
    try:
        store = JobStore(f"sqlite:///{tmp_path}/jobs.db", tmp_path / "uploads")
        with contextlib.closing(store), JobRunner(store, desk) as runner:
            jobs = [runner.submit("run", {"name": n}) for n in range(3)]
            until(lambda: len(desk.open) == 3)
            for n in range(3):
                desk.end(n, {"results": ["x" * 100_000]})
            time.sleep(0.3)
            assert completed(store) == 0
            with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as room:  # nothing is held locked meanwhile
                room.execute("PRAGMA max_page_count=100000")
                room.execute("UPDATE jobs SET kind = kind")
                room.commit()
            for connection in opened:
                connection.execute("PRAGMA max_page_count=100000")
            until(lambda: completed(store) == 3)
            assert all(store.see(job.id).answer == {"results": ["x" * 100_000]} for job in jobs)
    finally:
        sa.event.remove(sa.Pool, "connect", restrict)


# What it costs; the rest of that is measured by the benchmarks


def took(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def test_polling_is_quick_while_a_thousand_jobs_run(store, settings, clip):
    with Engine(settings) as engine, JobRunner.of(settings, store, on(engine)) as runner:
        submitting = threading.Thread(target=lambda: [runner.submit("run", {"inputs": [clip]}) for _ in range(500)])
        submitting.start()
        until(lambda: store.recent(limit=1))
        [first] = store.recent(limit=1)
        times = []
        while submitting.is_alive():
            times.append(took(functools.partial(store.see, first.job.id)))
            time.sleep(0.002)
        submitting.join()
        until(lambda: completed(store) == 500)
    assert sorted(times)[len(times) // 2] < 0.02


if __name__ == "__main__":
    child(*sys.argv[1:])
