"""Several models in one worker: each loaded once, on its own thread, within the budget, and out again when nobody
needs it."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref

import pytest

from worker.backends.base import Backend
from worker.engine import model_manager
from worker.engine.model_manager import GIB, ModelManager
from worker.errors import Cancelled, DeviceLost, ModelUnavailable

A, B, C = "parakeet", "canary", "whisper"


class Fake(Backend):
    def __init__(self, weight: int, gate: threading.Event | None, error: Exception | None) -> None:
        self._weight, self._gate, self._error = weight, gate, error
        self.loads = self.warms = self.closes = 0

    def weight_bytes(self) -> int:
        return self._weight

    def load(self) -> None:
        self.loads += 1
        if self._gate:
            assert self._gate.wait(5)
        if self._error:
            raise self._error

    def warm(self) -> None:
        self.warms += 1

    def infer(self, batch):
        raise NotImplementedError

    def close(self) -> None:
        self.closes += 1


class House:
    """A ModelManager whose backends can be inspected; `acquire` waits as a runner does."""

    def __init__(
        self,
        *,
        weight: int = 1,
        gate: threading.Event | None = None,
        errors: dict[str, Exception] | None = None,
        **options,
    ):
        self.made: list[tuple[str, Fake]] = []
        self._args = (weight, gate)
        self._errors = errors or {}
        self.of = ModelManager(self._create, **options)

    def _create(self, row) -> Fake:
        fake = Fake(*self._args, self._errors.get(row.name))
        self.made.append((row.name, fake))
        return fake

    def acquire(self, name: str) -> Fake:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            self.of.warm()
            self.of.evict_idle()
            backend = self.of.acquire(name)
            if backend is not None:
                return backend
            time.sleep(0.005)
        raise AssertionError(f"{name} did not load")

    def use(self, name: str) -> Fake:
        backend = self.acquire(name)
        self.of.release(name)
        return backend


def test_a_model_is_loaded_once_however_many_ask():
    gate = threading.Event()
    house = House(gate=gate)
    futures = [house.of.load(A) for _ in range(5)]
    assert [house.of.acquire(A) for _ in range(5)] == [None] * 5
    gate.set()
    backend = house.use(A)
    for future in futures:
        future.result(5)
    assert (backend.loads, backend.warms, len(house.made)) == (1, 1, 1)


def test_models_that_are_there_answer_while_another_loads():
    gate = threading.Event()
    house = House(gate=gate)
    gate.set()
    house.use(A)
    gate.clear()
    assert house.of.acquire(B) is None
    assert house.use(A)
    gate.set()
    assert house.use(B)


def test_the_longest_unused_leaves_to_make_room():
    house = House(weight=GIB, budget=lambda: 2 * GIB)
    first, second = house.use(A), house.use(B)
    house.use(A)
    house.use(C)
    assert (first.closes, second.closes) == (0, 1)
    assert house.use(B) is not second, "it is loaded anew"


def test_what_is_in_use_stays_until_it_is_released():
    house = House(weight=GIB, budget=lambda: GIB)
    first = house.acquire(A)
    assert house.of.acquire(B) is None
    time.sleep(0.1)
    assert first.closes == 0
    assert house.of.acquire(B) is None
    house.of.release(A)
    house.use(B)
    assert first.closes == 1


def test_a_model_that_is_always_busy_leaves_when_another_is_wanted(monkeypatch):
    monkeypatch.setattr(model_manager, "KEEP_SEC", 0.0)
    house = House(weight=GIB, budget=lambda: GIB)
    first = house.acquire(A)
    assert house.of.acquire(B) is None
    deadline = time.monotonic() + 5
    while not house.of._waiting_for_room and time.monotonic() < deadline:
        time.sleep(0.005)
    assert house.of.acquire(A) is None, "no new work for it while somebody waits"
    house.of.release(A)
    house.use(B)
    assert first.closes == 1
    assert house.use(A)


def test_a_model_that_was_loaded_ahead_is_not_driven_out_before_it_is_ready():
    house = House(weight=GIB, budget=lambda: GIB)
    future = house.of.load(A)
    while not house.of.has_work:
        time.sleep(0.005)
    assert house.of.acquire(B) is None
    time.sleep(0.1)
    assert house.made[0][1].closes == 0
    house.of.warm()
    future.result(5)
    house.use(B)
    assert house.made[0][1].closes == 1


def test_two_that_do_not_fit_together_take_turns(monkeypatch):
    monkeypatch.setattr(model_manager, "KEEP_SEC", 0.3)
    house = House(weight=GIB, budget=lambda: GIB)
    deadline, answered = time.monotonic() + 4, {A: 0, B: 0}
    while time.monotonic() < deadline and min(answered.values()) < 1:
        house.of.warm()
        house.of.evict_idle()
        for name in (A, B):
            if answered[name] < 1 and house.of.acquire(name):
                answered[name] += 1
                house.of.release(name)
        time.sleep(0.005)
    assert answered == {A: 1, B: 1}
    assert len(house.made) <= 3


def test_a_model_too_big_for_the_budget_says_so_and_drives_nobody_out():
    house = House(weight=3 * GIB, budget=lambda: 2 * GIB)
    with pytest.raises(ModelUnavailable, match=r"needs 3.0 GiB.*2.0 GiB are allowed \(MODELS_MEMORY_GB\)"):
        house.of.load(A).result(5)
    with pytest.raises(ModelUnavailable):
        house.acquire(A)


def test_one_that_cannot_load_leaves_the_others_serving_and_is_tried_again_later(monkeypatch):
    house = House(errors={A: ModelUnavailable("it is gated")})
    with pytest.raises(ModelUnavailable, match="gated"):
        house.acquire(A)
    assert house.use(B)
    with pytest.raises(ModelUnavailable, match="gated"):
        house.of.acquire(A)
    assert len(house.made) == 2
    monkeypatch.setattr(model_manager, "RETRY_SEC", 0.0)
    house._errors.clear()
    assert house.use(A)


def test_a_strange_failure_is_told_in_words_of_ours():
    house = House(errors={A: RuntimeError("CUDA out of memory"), B: OSError("no space left on device")})
    with pytest.raises(ModelUnavailable, match="does not fit into the device's memory"):
        house.acquire(A)
    with pytest.raises(ModelUnavailable, match="no space left"):
        house.acquire(B)


def test_a_failure_while_warming_counts_as_one_of_loading():
    house = House()
    future = house.of.load(A)
    while not house.of.has_work:
        time.sleep(0.005)
    house.made[0][1].warm = lambda: 1 / 0
    house.of.warm()
    with pytest.raises(ModelUnavailable, match="ZeroDivisionError"):
        future.result(5)
    assert house.made[0][1].closes == 1


def test_the_idle_leave_after_their_time_and_not_while_in_use():
    house = House(idle_sec=0.15)
    first, second = house.use(A), house.acquire(B)
    assert 0 < house.of.evict_idle() <= 0.15
    time.sleep(0.2)
    house.of.evict_idle()
    assert (first.closes, second.closes) == (1, 0)
    house.of.release(B)
    assert house.use(A) is not first


def test_without_an_idle_time_nobody_leaves():
    house = House()
    house.use(A)
    assert house.of.evict_idle() is None


def test_closing_closes_all_and_answers_who_waits():
    gate = threading.Event()
    house = House(gate=gate)
    gate.set()
    first = house.use(A)
    gate.clear()
    future = house.of.load(B)
    while len(house.made) < 2 or not house.made[1][1].loads:
        time.sleep(0.005)
    house.of.close()
    with pytest.raises(Cancelled):
        future.result(5)
    with pytest.raises(Cancelled):
        house.of.load(C).result(5)
    assert first.closes == 1
    gate.set()
    deadline = time.monotonic() + 5
    while house.made[1][1].closes == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert house.made[1][1].closes == 1, "a load that ends after the close is closed as well"


def test_a_load_that_waits_for_room_ends_with_the_worker():
    house = House(weight=GIB, budget=lambda: GIB)
    house.acquire(A)
    assert house.of.acquire(B) is None
    deadline = time.monotonic() + 5
    while not house.of._waiting_for_room and time.monotonic() < deadline:
        time.sleep(0.005)
    house.of.close()
    time.sleep(0.3)
    assert house.made[1][1].loads == 0


def test_models_are_closed_on_the_lanes_thread_only():
    where = []
    house = House(weight=GIB, budget=lambda: GIB)
    first = house.use(A)
    first.close = lambda: where.append(threading.current_thread())
    house.use(B)
    assert where == [threading.current_thread()]


def test_a_panic_is_a_failure_like_any_other():
    class Panic(BaseException):
        pass

    house = House(errors={A: Panic("a library in Rust")})
    with pytest.raises(ModelUnavailable, match="Panic"):
        house.of.load(A).result(5)
    house.use(B)
    house.made[-1][1].warm = lambda: (_ for _ in ()).throw(Panic())
    with pytest.raises(ModelUnavailable):
        house.acquire(A)


def test_a_device_lost_while_loading_is_remembered():
    house = House(errors={A: RuntimeError("CUDA error: an illegal memory access was encountered")})
    with pytest.raises(DeviceLost):
        house.of.load(A).result(5)
    assert isinstance(house.of.lost, DeviceLost)


def test_a_failed_load_keeps_nothing_of_the_model():
    kept = []

    class Weights:
        pass

    def load():
        weights = Weights()
        kept.append(weakref.ref(weights))
        try:
            raise KeyError("first")
        except KeyError as error:
            raise RuntimeError("then") from error

    house = House()
    create = house.of._create

    def broken(row):
        fake = create(row)
        fake.load = load
        return fake

    house.of._create = broken
    future = house.of.load(A)
    with pytest.raises(ModelUnavailable):
        future.result(5)
    gc.collect()
    assert kept[0]() is None


def test_downloads_are_not_held_up_by_a_load():
    gate, weighed = threading.Event(), threading.Event()
    house = House(gate=gate)
    house.of.load(A)
    create = house.of._create

    def watched(row):
        fake = create(row)
        fake.weight_bytes = lambda: weighed.set() or 1
        return fake

    house.of._create = watched
    house.of.load(B)
    assert weighed.wait(5)
    gate.set()


def test_failures_are_forgotten_after_a_while(monkeypatch):
    house = House(errors={A: ModelUnavailable("it is gated")})
    with pytest.raises(ModelUnavailable):
        house.of.load(A).result(5)
    monkeypatch.setattr(model_manager, "RETRY_SEC", 0.0)
    house.of.evict_idle()
    assert not house.of._models


def test_the_weights_are_held_from_the_load_until_the_model_is_closed(monkeypatch):
    monkeypatch.setattr(model_manager, "KEEP_SEC", 0.0)
    held: list[str] = []

    @contextlib.contextmanager
    def hold(row):
        held.append(row.name)
        yield
        held.remove(row.name)

    gate = threading.Event()
    house = House(gate=gate, errors={B: RuntimeError("no")}, idle_sec=0.01, hold=hold)
    house.of.load(A)
    deadline = time.monotonic() + 5
    while held != [A]:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    gate.set()
    house.acquire(A)
    assert held == [A]
    house.of.release(A)
    while house.of.states():
        assert time.monotonic() < deadline
        house.of.evict_idle()
    assert held == []
    with pytest.raises(ModelUnavailable):
        house.of.load(B).result(5)
    assert held == []
    house.acquire(C)
    assert held == [C]
    house.of.close()
    assert held == []
