"""The scheduler with several runners: a free device gets the work, and a device that fails affects no other."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

from worker.backends.base import Backend
from worker.engine import model_manager
from worker.engine.batching import Limits
from worker.engine.model_manager import ModelManager
from worker.engine.runner import Runner
from worker.engine.scheduler import Scheduler
from worker.errors import Cancelled, DeviceLost, ModelError, ModelUnavailable
from worker.types import Clip, Options, Piece, Transcript

MODEL = "pocketsphinx"
LOST = "CUDA error: an illegal memory access was encountered"


def piece(seconds: float = 1, order: int = 0, **options) -> Piece:
    return Piece(Clip(np.broadcast_to(np.float32(0), (round(seconds * 16_000),))), Options(MODEL), order, **options)


class Device(Backend):
    """Answers with its own name; `fails(batch)` is what it raises, if anything."""

    def __init__(
        self, name: str, fails=lambda batch: None, load=lambda: None, takes: float = 0.0, overhead: float = 0.0
    ):
        self.name, self.batches = name, []
        self.overhead_sec = overhead
        self._fails, self._load, self._takes = fails, load, takes

    def load(self) -> None:
        self._load()

    def infer(self, batch):
        self.batches.append([one.order for one in batch.pieces])
        time.sleep(self._takes)
        if error := self._fails(batch):
            raise error
        return [Transcript(self.name) for _ in batch.pieces]


@contextlib.contextmanager
def lanes(*devices: Device, max_items: int = 4, **options):
    """A scheduler and the runners of these devices, each with the same model loaded or loading."""
    pool = Scheduler(**options)
    made = [
        Runner(
            pool,
            ModelManager(lambda _row, device=device: device, changed=pool.wake),
            Limits(max_items, 100.0, 60.0),
            name=device.name,
        )
        for device in devices
    ]
    for runner in made:
        runner.start()
    try:
        yield pool, made
    finally:
        pool.close()
        for runner in made:
            runner.join()


def ready(made) -> None:
    for runner in made:
        runner.models.load(MODEL).result(5)


def put(pool: Scheduler, *pieces: Piece) -> list[Future]:
    futures = [Future() for _ in pieces]
    for one, future in zip(pieces, futures, strict=True):
        pool.submit(one, future.set_result)
    return futures


def texts(futures) -> list[str]:
    return [future.result(10).output.text for future in futures]


def eventually(found) -> None:
    deadline = time.monotonic() + 10
    while not found():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_an_outcome_that_cannot_be_delivered_ends_no_device(caplog):
    with lanes(Device("a")) as (pool, made):
        ready(made)
        pool.submit(piece(), lambda _outcome: 1 / 0)
        eventually(lambda: "the outcome of a piece could not be delivered" in caplog.text)
        assert texts(put(pool, piece())) == ["a"]


def test_batches_go_to_whichever_is_free():
    slow, quick = Device("slow", takes=0.3), Device("quick", takes=0.01)
    with lanes(slow, quick) as (pool, made):
        ready(made)
        answered = texts(put(pool, *(piece(1, i) for i in range(48))))
    assert len(slow.batches) <= 3
    assert answered.count("quick") >= 36


def test_idle_lanes_share_what_waits_where_a_part_is_worth_a_batch():
    for overhead, split_thinking in ((2.0, True), (100.0, False)):
        first, second = (Device(name, takes=0.05, overhead=overhead) for name in "ab")
        coming = [1]
        with lanes(first, second, max_items=16, wait_sec=5, incoming=lambda _background, coming=coming: coming[0]) as (
            pool,
            made,
        ):
            ready(made)
            futures = put(pool, *(piece(1, i) for i in range(8)))
            time.sleep(0.05)
            assert not first.batches + second.batches, "more is coming"
            coming[0] = 0
            pool.wake()
            texts(futures)
        sizes = sorted(map(len, first.batches + second.batches))
        assert sizes == ([4, 4] if split_thinking else [8])


def test_lanes_that_wait_do_nothing():
    with lanes(*(Device(name) for name in "abcd"), wait_sec=5, incoming=lambda _background: 1) as (pool, made):
        ready(made)
        asked, coming = [], pool._incoming
        pool._incoming = lambda background: asked.append(1) or coming(background)
        put(pool, piece())
        time.sleep(0.3)
        assert len(asked) <= 2 * len(made)


def test_what_a_lost_device_was_running_is_answered_by_another():
    broken = Device("broken", fails=lambda _batch: RuntimeError(LOST), takes=0.05)
    sound = Device("sound", takes=0.05)
    with lanes(broken, sound) as (pool, made):
        ready(made)
        assert set(texts(put(pool, *(piece(1, i) for i in range(40))))) == {"sound"}
        assert len(broken.batches) == 1
        assert pool.lost is None
        eventually(lambda: not made[0]._thread.is_alive())
        assert isinstance(made[0].lost, DeviceLost)
        assert texts(put(pool, piece())) == ["sound"]


def test_a_piece_that_takes_devices_with_it_takes_two_and_no_other_piece():
    def fails(batch):
        return RuntimeError(LOST) if any(one.order == 7 for one in batch.pieces) else None

    devices = [Device(name, fails, takes=0.01) for name in "abc"]
    with lanes(*devices) as (pool, made):
        ready(made)
        outcomes = [future.result(10) for future in put(pool, *(piece(1, i) for i in range(40)))]
        assert [i for i, one in enumerate(outcomes) if isinstance(one, DeviceLost)] == [7]
        assert sum(runner.lost is not None for runner in made) == 2
        assert pool.lost is None
        assert texts(put(pool, piece()))


def test_when_the_last_device_is_lost_everything_fails():
    devices = [Device(name, lambda _batch: RuntimeError(LOST)) for name in "ab"]
    with lanes(*devices) as (pool, made):
        ready(made)
        assert all(isinstance(future.result(10), DeviceLost) for future in put(pool, *(piece(1, i) for i in range(20))))
        assert isinstance(pool.lost, DeviceLost)
        assert isinstance(put(pool, piece())[0].result(1), DeviceLost)


def test_a_device_lost_while_idle_is_taken_out():
    with lanes(Device("a"), Device("b")) as (pool, made):
        ready(made)
        made[0].models.lose(DeviceLost("it went"))
        eventually(lambda: not made[0]._thread.is_alive())
        assert texts(put(pool, piece())) == ["b"]
        made[1].models.lose(DeviceLost("it went too"))
        eventually(lambda: pool.lost is not None)


def test_a_model_is_left_to_those_that_can_load_it():
    def fail():
        raise ModelUnavailable("no room")

    small, large = Device("small", load=fail), Device("large")
    with lanes(small, large) as (pool, made):
        assert set(texts(put(pool, *(piece(1, i) for i in range(12))))) == {"large"}
        assert made[0].lost is None, "it may have room for others"
        assert texts(put(pool, piece())) == ["large"]


@pytest.mark.parametrize("took", [0.0, 0.15])
def test_a_model_that_nobody_can_load_fails_its_pieces(monkeypatch, took):
    monkeypatch.setattr(model_manager, "RETRY_SEC", 0.1)  # one has forgotten its failure when the other fails
    lock = threading.Lock()

    def fail():
        with lock:
            time.sleep(took)
        raise ModelUnavailable("gated")

    with lanes(Device("a", load=fail), Device("b", load=fail), Device("c", load=fail)) as (pool, _made):
        (outcome,) = [future.result(5) for future in put(pool, piece())]
        assert isinstance(outcome, ModelUnavailable)
        assert "gated" in outcome.message


def test_the_background_ages_once_for_all(monkeypatch):
    monkeypatch.setattr("worker.engine.piece_queue.BACKGROUND_SEC", 0.3)
    devices = [Device(name, takes=0.02) for name in "ab"]
    with lanes(*devices, max_items=1) as (pool, made):
        ready(made)
        behind = put(pool, *(piece(2, i, background=True) for i in range(100)))
        texts(put(pool, *(piece(1, 1000 + i) for i in range(100))))  # about a second for both
        done = sum(future.done() for future in behind)
        assert 1 <= done <= 8, "a batch every 0.3 s, not one for each lane"


def test_a_failure_that_is_no_loss_stays_with_its_lane():
    devices = [
        Device(name, lambda batch: ValueError("boom") if any(one.order == 3 for one in batch.pieces) else None)
        for name in "ab"
    ]
    with lanes(*devices) as (pool, made):
        ready(made)
        outcomes = [future.result(10) for future in put(pool, *(piece(1, i) for i in range(8)))]
        assert [i for i, one in enumerate(outcomes) if isinstance(one, ModelError)] == [3]
        assert sum(batch == [3] for one in devices for batch in one.batches) == 1


def test_out_of_memory_lowers_the_budget_of_its_own_device():
    small = Device("small", lambda batch: MemoryError() if len(batch.pieces) > 1 else None, takes=0.01)
    large = Device("large", takes=0.01)
    with lanes(small, large) as (pool, made):
        ready(made)
        texts(put(pool, *(piece(1, i) for i in range(80))))
        assert max(map(len, small.batches[10:]), default=1) == 1
        assert max(map(len, large.batches[5:])) == 4


def test_closing_and_cancelling_reach_what_waits():
    gate, cancelled = threading.Event(), threading.Event()
    devices = [Device(name, lambda _batch: gate.wait(5) and None) for name in "ab"]
    with lanes(*devices, max_items=1) as (pool, made):
        ready(made)
        running = put(pool, piece(), piece())
        eventually(lambda: len(pool) == 0)
        waiting = put(pool, piece(), dataclasses.replace(piece(), cancelled=cancelled.is_set))
        cancelled.set()
        pool.close()
        assert [type(future.result(1)) for future in waiting] == [Cancelled, Cancelled]
        gate.set()
        assert len(texts(running)) == 2
