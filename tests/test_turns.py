"""Requests take turns, on a simulated device: none waits for more than a batch and its share; batches stay full."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from worker.backends.base import Backend
from worker.engine.batch_cost import BatchCost
from worker.engine.batching import DELAY, Limits, next_batch
from worker.engine.piece_queue import BACKGROUND_SEC, BACKGROUND_SHARE
from worker.engine.scheduler import Scheduler
from worker.engine.turns import FairShare, Turns
from worker.types import Batch, Clip, Options, Piece, Turn

MODEL = "pocketsphinx"
QUICK = tuple(phase for phase in Phase if phase is not Phase.shrink)  # a simulation takes too long to be shrunk
# A model on a CPU that runs twenty times as fast as real time, and whose batches start in the time of 8 s of audio.
COST = BatchCost(8 / 20, 1 / 20)
TARGET_SEC = 5.0
LIMITS = Limits(16, 1200.0, 600.0, max_waste_sec=8.0, target_sec=TARGET_SEC, cost=COST)


@dataclass(frozen=True)
class Asked:
    """A request of a simulation."""

    at: float
    pieces: list[float]
    """Seconds of audio of each."""
    owner: str | None = None
    background: bool = False


@dataclass
class Ran:
    """A batch that the simulated device ran."""

    start: float
    end: float
    batch: Batch

    @property
    def background(self) -> bool:
        return self.batch.pieces[0].background


class Device:
    """A device that takes from a scheduler; it stands in for the runner and for its manager of models."""

    name, has_work = "simulated", True  # with work to do, the scheduler never waits

    def __init__(self, limit: Limits) -> None:
        self.limit, self.models = limit, self

    def limits(self, model: str, backend: Backend, task: str) -> Limits:
        return self.limit

    def acquire(self, model: str) -> object:
        return self

    def release(self, model: str) -> None:
        pass

    def is_ready(self, model: str) -> bool:
        return True


def clip(seconds: float) -> Clip:
    return Clip(np.broadcast_to(np.float32(0), (round(seconds * 16_000),)))


def simulate(requests: list[Asked], devices: int = 1, limit: Limits = LIMITS) -> list[Ran]:
    """Return the batches in the order in which they began. The number of a request is its place in the list."""
    now = 0.0
    pool = Scheduler(clock=lambda: now)
    order = itertools.count()
    arrivals = sorted((request.at, number) for number, request in enumerate(requests))
    busy: list[tuple] = []  # the end, the device, the pieces and the batch
    free = [Device(limit) for _ in range(devices)]
    made = list(free)
    for device in made:
        pool.add_runner(device)
    ran: list[Ran] = []
    while arrivals or busy or len(pool):
        while arrivals and arrivals[0][0] <= now:
            _, number = heapq.heappop(arrivals)
            asked, at = requests[number], next(order)
            for seconds in asked.pieces:
                turn = Turn(asked.owner, number)
                piece = Piece(clip(seconds), Options(MODEL), at, asked.background, turn=turn)
                pool.submit(piece, lambda outcome: None)
        while free and len(pool):
            assignment = pool.next_assignment(free[-1], 0)
            if assignment is None:
                break
            batch = Batch(tuple(queued.piece for queued in assignment.group))
            ran.append(Ran(now, now + limit.cost_of(batch), batch))
            heapq.heappush(busy, (ran[-1].end, made.index(free.pop()), assignment.group, ran[-1]))
        now = min([at for at, *_ in (*arrivals[:1], *busy[:1])], default=now)
        while busy and busy[0][0] <= now:
            end, device, group, one = heapq.heappop(busy)
            pool.end(group, end - one.start)
            free.append(made[device])
    return ran


def lognormal(count: int, seed: int = 0) -> list[float]:
    return [float(s) for s in np.clip(np.exp(np.random.default_rng(seed).normal(math.log(6), 1, count)), 0.2, 120)]


def first_come(requests: list[Asked], limit: Limits = LIMITS) -> float:
    """Return the device's seconds if every batch holds the oldest piece, whoever asked."""
    waiting = [
        Piece(clip(seconds), Options(MODEL), number)
        for number, asked in enumerate(sorted(requests, key=lambda asked: asked.at))
        for seconds in asked.pieces
    ]
    total = 0.0
    while waiting:
        batch = next_batch(waiting, limit)
        total += limit.cost_of(batch)
        taken = set(map(id, batch.pieces))
        waiting = [piece for piece in waiting if id(piece) not in taken]
    return total


def shares(ran: list[Ran], since: float, until: float) -> dict[int, float]:
    """Return the seconds of audio of each request in the batches that began in an interval."""
    found: dict[int, float] = defaultdict(float)
    for one in ran:
        if since <= one.start < until:
            for piece in one.batch.pieces:
                found[piece.turn.request] += piece.duration_sec
    return found


def of(ran: list[Ran], number: int) -> list[Ran]:
    return [one for one in ran if any(piece.turn.request == number for piece in one.batch.pieces)]


lengths = st.lists(st.floats(0.2, 30), min_size=1, max_size=40)
asked = st.builds(Asked, st.floats(0, 60), lengths, st.sampled_from([None, "a", "b"]), st.booleans())


@given(st.lists(asked, min_size=1, max_size=12), st.integers(1, 3))
@settings(max_examples=40, deadline=None, phases=QUICK)
def test_everything_runs_once_within_the_target_and_alike_each_time(requests, devices):
    ran = simulate(requests, devices)
    assert sum(len(one.batch.pieces) for one in ran) == sum(len(request.pieces) for request in requests)
    assert len({piece for one in ran for piece in one.batch.pieces}) == sum(len(request.pieces) for request in requests)
    assert max(one.end - one.start for one in ran) <= TARGET_SEC + 1e-9
    for one in ran:
        assert len({piece.background for piece in one.batch.pieces}) == 1
    again = simulate(requests, devices)
    assert [(one.start, [p.turn for p in one.batch.pieces]) for one in ran] == [
        (one.start, [p.turn for p in one.batch.pieces]) for one in again
    ]


@given(
    st.lists(st.floats(10, 30), min_size=1, max_size=4),
    st.floats(0.5, 60),
    st.floats(0.2, 10),
    st.sampled_from([None, "a"]),
    st.booleans(),
)
@settings(max_examples=30, deadline=None, phases=QUICK)
def test_a_clip_waits_for_one_batch_behind_files_and_a_backlog(files, at, seconds, owner, has_backlog):
    requests = [Asked(0, [window] * 100) for window in files]
    requests += [Asked(0, [5.0] * 60, background=True) for _ in range(5)] if has_backlog else []
    at += TARGET_SEC * len(files)  # each file has had a turn
    ran = simulate([*requests, Asked(at, [seconds], owner)])
    (mine,) = of(ran, len(requests))
    begun = [one for one in ran if one.start < at < one.end]
    assert mine.start <= max([at, *(one.end for one in begun)])
    assert mine.end - mine.start <= DELAY * COST.of(1, seconds) + 1e-9


@given(st.lists(asked, min_size=2, max_size=10))
@settings(max_examples=40, deadline=None, phases=QUICK)
def test_while_a_request_waits_no_other_gets_much_more(requests):
    """Each may be ahead by a batch, one that is new by two."""
    requests = [Asked(one.at, one.pieces, "same") for one in requests]
    ran = simulate(requests)
    most = max(sum(piece.duration_sec for piece in one.batch.pieces) for one in ran)
    for number, request in enumerate(requests):
        got = shares(ran, request.at, max(one.start for one in of(ran, number)))
        for other, seconds in got.items():
            assert seconds <= got.get(number, 0.0) + 3 * most + 1e-6, (number, other)


@given(st.integers(2, 8), st.integers(1, 3))
@settings(max_examples=8, deadline=None, phases=QUICK)
def test_keys_share_equally_however_many_requests_each_sends(many, seconds):
    requests = [Asked(0, [float(seconds)] * 100, "many") for _ in range(many)] + [
        Asked(0, [float(seconds)] * 400, "one")
    ]
    got = shares(simulate(requests), 0, 8)
    one, others = got.pop(many), sum(got.values())
    assert abs(one - others) <= 2 * 16 * seconds


def test_interactive_requests_that_never_end_leave_the_background_its_share_and_no_more():
    """Each second brings more new requests than the device can run."""
    flood = [Asked(i / 3, [5.0] * 2, f"key {i % 7}") for i in range(900)]
    backlog = [Asked(0, [8.0] * 40, background=True) for _ in range(100)]
    ran = [one for one in simulate([*flood, *backlog]) if one.start < 300]
    behind = [one for one in ran if one.background]
    rests = [after.start - before.end for before, after in itertools.pairwise(behind)]
    longest = TARGET_SEC * (1 / BACKGROUND_SHARE - 1) + BACKGROUND_SEC + TARGET_SEC
    assert len(behind) >= 300 / (longest + TARGET_SEC) - 1
    assert max(rests) <= longest
    assert sum(one.end - one.start for one in behind) <= BACKGROUND_SHARE * 300 + TARGET_SEC


def test_a_long_file_does_not_starve_behind_new_requests():
    flood = [Asked(i * 0.6, [5.0], None) for i in range(400)]
    ran = simulate([Asked(0, [30.0] * 80), *flood])
    file = of(ran, 0)
    assert file[-1].end < 400, "an equal share beside one clip at a time"


def test_a_background_batch_that_takes_long_does_not_earn_the_next():
    """A batch may take longer than the time after which the background is due again."""
    slow = Limits(1, 1200.0, 600.0, cost=BatchCost(0, 1.0))
    requests = [Asked(0, [20.0] * 30, background=True), Asked(5, [4.0] * 8)]
    ran = simulate(requests, limit=slow)
    mine = of(ran, 1)
    assert mine[0].start == 20
    assert mine[-1].end == 20 + 8 * 4, "no batch of the background is between them"


MIXES = {
    "one request of many files": [Asked(0, lognormal(600))],
    "one-clip requests": [Asked(0, [s]) for s in lognormal(64, 1)],
    "requests of four keys": [Asked(0, lognormal(200, i), f"key {i}") for i in range(4)],
    "a file in windows among clips": [
        Asked(0, [float(s) for s in np.random.default_rng(2).uniform(15, 30, 400)]),
        *(Asked(0, [s]) for s in lognormal(64, 3)),
    ],
    "a backlog": [Asked(0, [5.0] * 60, f"key {i % 3}", background=True) for i in range(30)],
}


@pytest.mark.parametrize("overhead", [8, 100], ids=["processor", "gpu"])
@pytest.mark.parametrize("mix", MIXES)
def test_batches_are_as_full_as_first_come(mix, overhead):
    limit = Limits(16, 1200.0, 600.0, max_waste_sec=overhead, cost=BatchCost(overhead / 20, 1 / 20))
    spent = sum(one.end - one.start for one in simulate(MIXES[mix], limit=limit))
    assert spent <= 1.03 * first_come(MIXES[mix], limit)


# The turns themselves


def test_a_flow_that_was_idle_gains_nothing():
    turns: Turns[str] = Turns()
    turns.enter("busy")
    for _ in range(100):
        turns.settle()
        turns.charge("busy", 10)
        turns.end({"busy": 10})
    turns.enter("idle")
    assert turns.is_new("idle")
    served = []
    for _ in range(20):
        turns.settle()
        flow = min(("busy", "idle"), key=turns.place)
        served.append(flow)
        turns.charge(flow, 10)
        turns.end({flow: 10})
    assert served[0] == "idle"
    assert abs(served.count("idle") - 10) <= 1


def test_flows_that_are_done_are_forgotten():
    share = FairShare()
    for number in range(1000):
        turn = Turn(f"key {number % 10}", number)
        share.enter(turn)
        share.settle()
        share.leave(turn)
        share.charge(turn, 1)
        share.end([(turn, 1)])
    assert len(share._requests) <= 1
    assert sum(len(requests._starts) for requests in share._requests.values()) <= 1
