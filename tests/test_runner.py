"""The runner: batches across requests, failures that affect only the piece at fault, a thread that never ends."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.backends.base import Backend
from worker.engine import model_manager, runner
from worker.engine.batching import Limits, turn_batch
from worker.engine.model_manager import ModelManager
from worker.engine.scheduler import Scheduler
from worker.errors import Cancelled, DeviceLost, ModelError, ModelUnavailable, OutOfMemory
from worker.types import Batch, Clip, Options, Piece, Transcript

LIMITS = Limits(8, 100.0, 60.0)
MODEL = "pocketsphinx"


def piece(seconds: float, order: int = 0, language: str | None = None) -> Piece:
    return Piece(
        Clip(np.broadcast_to(np.float32(0), (round(seconds * 16_000),))), Options(MODEL, language=language), order
    )


class Harness:
    """A scheduler and the one runner that takes from it."""

    def __init__(self, limits, create, **options) -> None:
        self.pool = Scheduler(**options)
        self.put = self.pool.submit
        self.models = ModelManager(create, changed=self.pool.wake)
        self._runner = runner.Runner(self.pool, self.models, limits)
        self._runner.start()

    @property
    def lost(self):
        return self.pool.lost

    def close(self) -> None:
        self.pool.close()
        self._runner.join()


class Model(Backend):
    """Answers each piece with its length; what it is told to do wrong it does wrong. Public, so that tests can look."""

    def __init__(self, *, fails=lambda batch: None, load=lambda: None) -> None:
        self.batches: list[Batch] = []
        self._fails, self._load = fails, load
        self.closed = False

    def load(self) -> None:
        self._load()

    def infer(self, batch: Batch) -> list[Transcript]:
        self.batches.append(batch)
        error = self._fails(batch)
        if error is not None:
            raise error
        return [Transcript(f"{len(p.clip.samples)}") for p in batch.pieces]

    def close(self) -> None:
        self.closed = True


def run(model: Model, pieces: list[Piece], **options) -> list:
    """Puts all pieces at once and returns what was delivered, in order."""
    gate = threading.Event()

    def create(_row):
        gate.wait(5)
        return model

    lane = Harness(LIMITS, create, **options)
    futures: list[Future] = [Future() for _ in pieces]
    for one, future in zip(pieces, futures, strict=True):
        lane.put(one, future.set_result)
    gate.set()
    outcomes = [future.result(10) for future in futures]
    lane.close()
    return outcomes


def text(outcome) -> str:
    return outcome.output.text


@given(st.lists(st.floats(0.1, 90), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_everything_is_answered_once_and_in_its_place(lengths):
    model = Model()
    outcomes = run(model, [piece(s, i) for i, s in enumerate(lengths)])
    assert [text(o) for o in outcomes] == [f"{round(s * 16_000)}" for s in lengths]
    assert sum(len(b.pieces) for b in model.batches) == len(lengths)
    assert all(b.long == (b.pieces[0].duration_sec > 60) for b in model.batches)


def test_pieces_of_different_requests_share_a_batch():
    model = Model()
    run(model, [piece(1)] + [piece(1, i) for i in range(8)])
    assert max(len(b.pieces) for b in model.batches) == 8


def test_different_work_never_shares_a_batch():
    model = Model()
    run(model, [piece(1, i, "de" if i % 2 else "en") for i in range(8)])
    assert all(len({p.options.kind for p in b.pieces}) == 1 for b in model.batches)


def test_only_the_culprit_fails():
    model = Model(fails=lambda b: ValueError("boom") if any(p.order == 5 for p in b.pieces) else None)
    outcomes = run(model, [piece(1, i) for i in range(8)])
    assert [i for i, o in enumerate(outcomes) if isinstance(o, ModelError)] == [5]
    assert "under id " in outcomes[5].message
    assert "boom" not in outcomes[5].message


def test_out_of_memory_halves_the_batch_and_lowers_the_budget():
    model = Model(fails=lambda b: RuntimeError("CUDA out of memory. Tried to allocate") if len(b.pieces) > 2 else None)
    outcomes = run(model, [piece(10, i) for i in range(16)])
    assert [text(o) for o in outcomes] == ["160000"] * 16
    sizes = [len(b.pieces) for b in model.batches]
    assert sizes == [8, 4, 2, 2, 4, 2, 2, *[2] * 4]  # what follows is packed for what fits


def test_one_piece_that_does_not_fit_alone_says_so():
    (outcome,) = run(Model(fails=lambda _b: MemoryError()), [piece(10)])
    assert isinstance(outcome, OutOfMemory)


def test_a_lost_device_fails_what_is_queued_and_all_that_comes_after():
    lost = Model(fails=lambda _b: RuntimeError("CUDA error: an illegal memory access was encountered"))
    gate, futures = threading.Event(), [Future() for _ in range(20)]
    lane = Harness(LIMITS, lambda _row: gate.wait(5) and lost)
    for i, future in enumerate(futures):
        lane.put(piece(1, i), future.set_result)
    gate.set()
    assert all(isinstance(future.result(10), DeviceLost) for future in futures)
    assert isinstance(lane.lost, DeviceLost)
    after: Future = Future()
    lane.put(piece(1), after.set_result)
    assert isinstance(after.result(1), DeviceLost)
    assert len(lost.batches) == 1
    lane.close()


def test_a_model_that_cannot_load_fails_its_pieces_and_is_tried_again(monkeypatch):
    monkeypatch.setattr(model_manager, "RETRY_SEC", 0.2)
    tries = []

    def load():
        tries.append(1)
        if len(tries) == 1:
            raise OSError("no space left")

    lane = Harness(LIMITS, lambda _row: Model(load=load))
    first, second = Future(), Future()
    lane.put(piece(1), first.set_result)
    assert isinstance(first.result(5), ModelUnavailable)
    assert "no space left" in first.result().message
    time.sleep(0.3)
    lane.put(piece(1), second.set_result)
    assert text(second.result(5)) == "16000"
    lane.close()


def test_loading_ahead_reports_failure():
    def fail():
        raise ModelUnavailable("gated")

    lane = Harness(LIMITS, lambda _row: Model(load=fail))
    with pytest.raises(ModelUnavailable, match="gated"):
        lane.models.load(MODEL).result(5)
    lane.close()


def test_cancelled_pieces_are_dropped_before_they_run():
    model, gate, futures = Model(), threading.Event(), [Future() for _ in range(4)]
    lane = Harness(LIMITS, lambda _row: gate.wait(5) and model)
    cancelled = threading.Event()
    lane.put(piece(1), futures[0].set_result)
    time.sleep(0.1)  # on its way to the device
    for future in futures[1:]:
        lane.put(dataclasses.replace(piece(2), cancelled=cancelled.is_set), future.set_result)
    cancelled.set()
    gate.set()
    assert text(futures[0].result(5)) == "16000"
    assert all(isinstance(future.result(5), Cancelled) for future in futures[1:])
    assert len(model.batches) == 1
    lane.close()


def test_an_idle_device_waits_for_what_is_coming_but_not_long():
    model = Model()
    lane = Harness(LIMITS, lambda _row: model, wait_sec=0.3, incoming=lambda background: 1)
    lane.models.load(MODEL).result(5)
    futures = [Future() for _ in range(3)]
    started = time.monotonic()
    for future in futures:
        lane.put(piece(1), future.set_result)
        time.sleep(0.05)
    for future in futures:
        future.result(5)
    assert len(model.batches) == 1
    assert 0.25 < time.monotonic() - started < 2
    lane.close()


def test_a_fault_in_planning_fails_what_waits_and_the_lane_goes_on(monkeypatch):
    from worker.engine import scheduler

    planned = iter([True, False])
    monkeypatch.setattr(scheduler, "turn_batch", lambda *given: 1 / 0 if next(planned, False) else turn_batch(*given))
    lane = Harness(LIMITS, lambda _row: Model())
    broken, after = Future(), Future()
    lane.put(piece(1), broken.set_result)
    assert broken.result(5).code == "internal_error"
    lane.put(piece(1), after.set_result)
    assert text(after.result(5)) == "16000"
    lane.close()


def test_a_delivery_that_raises_does_not_stop_the_lane():
    lane = Harness(LIMITS, lambda _row: Model())
    after: Future = Future()
    lane.put(piece(1), lambda _outcome: 1 / 0)
    lane.put(piece(1, 1, "de"), after.set_result)
    assert text(after.result(5)) == "16000"
    lane.close()


def test_a_backend_with_the_wrong_number_of_outputs_is_a_fault_of_ours():
    model = Model()
    model.infer = lambda _batch: []
    (outcome,) = run(model, [piece(1)])
    assert outcome.code == "internal_error"


def test_closing_answers_what_waits_and_closes_the_model():
    model, gate = Model(), threading.Event()
    lane = Harness(LIMITS, lambda _row: model)
    lane.models.load(MODEL).result(5)
    model.infer = lambda batch: gate.wait(5) and [Transcript("") for _ in batch.pieces]
    running, waiting = Future(), Future()
    lane.put(piece(1), running.set_result)
    time.sleep(0.1)
    lane.put(piece(1), waiting.set_result)
    threading.Timer(0.1, gate.set).start()
    lane.close()
    assert text(running.result(1)) == ""
    assert isinstance(waiting.result(1), Cancelled)
    assert model.closed


def test_a_panic_in_a_batch_costs_only_its_culprit():
    class Panic(BaseException):
        pass

    model = Model(fails=lambda b: Panic() if any(p.order == 2 for p in b.pieces) else None)
    outcomes = run(model, [piece(1, i) for i in range(4)])
    assert [isinstance(o, ModelError) for o in outcomes] == [False, False, True, False]


def test_a_device_lost_while_a_model_loads_loses_the_lane():
    def load():
        raise RuntimeError("CUDA error: unspecified launch failure")

    lane = Harness(LIMITS, lambda _row: Model(load=load))
    outcome: Future = Future()
    lane.put(piece(1), outcome.set_result)
    assert isinstance(outcome.result(5), DeviceLost)
    deadline = time.monotonic() + 5
    while lane.lost is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isinstance(lane.lost, DeviceLost)
    lane.close()


def test_who_waits_overtakes_a_background_however_old():
    model = Model(fails=lambda b: time.sleep(0.01))
    gate, futures = threading.Event(), {}
    lane = Harness(LIMITS, lambda _row: gate.wait(5) and model)
    given = [dataclasses.replace(piece(1, i), background=True) for i in range(40)] + [piece(2, 1000)]
    for one in given:
        futures[one] = Future()
        lane.put(one, futures[one].set_result)
    gate.set()
    for future in futures.values():
        future.result(10)
    assert [b.pieces for b in model.batches].index((given[-1],)) <= 1, (
        "at most the one batch that age had earned was before it"
    )
    assert all(len({p.background for p in b.pieces}) == 1 for b in model.batches)
    lane.close()
