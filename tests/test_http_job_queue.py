"""Jobs that come at once are stored together, each as if it had come alone."""

from __future__ import annotations

import asyncio
import threading

import pytest

from worker.entrypoints.http.job_queue import SubmissionBatcher
from worker.errors import DiskFull
from worker.jobs.records import Submission
from worker.jobs.store import JobStore


@pytest.fixture
def store(tmp_path):
    made = JobStore(f"sqlite:////{tmp_path}/jobs.db", tmp_path / "uploads")
    yield made
    made.close()


def together(intake: SubmissionBatcher, payloads: list[object]) -> list[object]:
    """What each is answered when all are sent at once."""

    async def run() -> list[object]:
        return await asyncio.gather(*(intake.store(Submission("run", one)) for one in payloads), return_exceptions=True)

    return asyncio.run(run())


def test_those_that_come_together_are_stored_together_in_their_order(store):
    sizes = []

    def store_all(submissions):
        sizes.append(len(submissions))
        return store.submit_all(submissions)

    jobs = together(SubmissionBatcher(store_all), [{"number": number} for number in range(100)])
    assert [store.payload(job.id) for job in jobs] == [{"number": number} for number in range(100)]
    assert [seen.job.id for seen in reversed(store.recent())] == [job.id for job in jobs]
    assert sizes == [100]


def test_who_comes_while_others_are_stored_waits_for_no_third(store):
    begun, go_on = threading.Event(), threading.Event()

    def store_all(submissions):
        begun.set()
        assert go_on.wait(10)
        return store.submit_all(submissions)

    async def run() -> None:
        intake = SubmissionBatcher(store_all)
        first = asyncio.ensure_future(intake.store(Submission("run", 1)))
        await asyncio.to_thread(begun.wait, 10)
        others = [asyncio.ensure_future(intake.store(Submission("run", number))) for number in (2, 3)]
        await asyncio.sleep(0.05)
        go_on.set()
        jobs = await asyncio.gather(first, *others)
        assert [store.payload(job.id) for job in jobs] == [1, 2, 3]
        again = await intake.store(Submission("run", 4))
        assert store.payload(again.id) == 4

    asyncio.run(run())


def test_one_that_cannot_be_stored_keeps_out_no_other(store):
    one, wrong, other = together(SubmissionBatcher(store.submit_all), [{"n": 1}, {"n": float("nan")}, {"n": 2}])
    assert isinstance(wrong, ValueError)
    assert [store.payload(job.id) for job in (one, other)] == [{"n": 1}, {"n": 2}]
    assert store.counts()["pending"] == 2


def test_a_store_that_fails_is_told_to_all_and_asked_again_by_the_next_alone(store):
    """It may have stored them though its answer was lost, and may take half a minute to fail."""
    full, asked = True, 0

    def store_all(submissions):
        nonlocal asked
        asked += 1
        if full:
            raise DiskFull("no room")
        return store.submit_all(submissions)

    intake = SubmissionBatcher(store_all)
    assert [type(one) for one in together(intake, [1, 2, 3])] == [DiskFull] * 3
    assert asked == 1
    full = False
    (job,) = together(intake, [4])
    assert store.payload(job.id) == 4


def test_who_gives_up_takes_nobody_with_him(store):
    async def run() -> None:
        intake = SubmissionBatcher(store.submit_all)
        asked = [asyncio.ensure_future(intake.store(Submission("run", number))) for number in range(3)]
        await asyncio.sleep(0)
        asked[1].cancel()
        assert (await asked[0]).state == (await asked[2]).state == "pending"

    asyncio.run(run())
    assert store.counts()["pending"] == 3
