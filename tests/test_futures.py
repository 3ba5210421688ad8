"""Futures that wait for other futures: each outcome counts once, whichever comes last."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import Cancelled, ModelUnavailable
from worker.futures import all_of, any_of, into, when_all


def futures(count: int) -> list[Future]:
    return [Future() for _ in range(count)]


def complete(future: Future, how: str) -> None:
    if how == "result":
        future.set_result("value")
    elif how == "error":
        future.set_exception(ModelUnavailable("gated"))
    else:
        future.cancel()


@given(st.lists(st.sampled_from(["result", "error", "cancel"]), max_size=6), st.randoms())
def test_when_all_calls_once_after_the_last(ways, random):
    waiting, calls = futures(len(ways)), []
    when_all(waiting, lambda: calls.append([future.done() for future in waiting]))
    order = list(zip(waiting, ways, strict=True))
    random.shuffle(order)
    for future, how in order:
        assert not calls
        complete(future, how)
    assert calls == [[True] * len(ways)]


def test_when_all_calls_once_though_many_threads_complete_at_once():
    for _ in range(20):
        waiting, calls, start = futures(8), [], threading.Barrier(8)
        when_all(waiting, lambda calls=calls: calls.append(None))
        threads = [
            threading.Thread(target=lambda future=future, start=start: (start.wait(), future.set_result(None)))
            for future in waiting
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert calls == [None]


def test_any_of_fails_only_if_all_fail():
    first, second = futures(2)
    either = any_of([first, second])
    assert not either.cancel()
    first.set_exception(ModelUnavailable("gated"))
    assert not either.done()
    second.set_result(None)
    assert either.result(0) is None

    first, second = futures(2)
    either = any_of([first, second])
    second.set_exception(ModelUnavailable("too big"))
    first.set_exception(ModelUnavailable("gated"))
    with pytest.raises(ModelUnavailable, match="gated"):
        either.result(0)


def test_all_of_keeps_the_order_with_errors_in_place(caplog):
    waiting = futures(4)
    together = all_of(waiting)
    waiting[3].set_exception(KeyError("a clue"))
    waiting[1].set_exception(ModelUnavailable("gated"))
    waiting[2].cancel()
    assert not together.done()
    waiting[0].set_result("value")
    value, unavailable, cancelled, fault = together.result(0)
    assert value == "value"
    assert isinstance(unavailable, ModelUnavailable)
    assert isinstance(cancelled, Cancelled)
    assert fault.code == "internal_error"
    assert "a clue" not in fault.message
    assert "a clue" in caplog.text
    assert all_of([]).result(0) == []


def test_cancelling_all_of_cancels_each():
    waiting = futures(3)
    together = all_of(waiting)
    waiting[0].set_result("value")
    assert together.cancel()
    assert [future.cancelled() for future in waiting] == [False, True, True]


@pytest.mark.parametrize("how", ["error", "cancel"])
def test_into_fails_the_target_and_skips_the_step(how):
    before, target, steps = Future(), Future(), []
    before.add_done_callback(into(target, steps.append))
    complete(before, how)
    assert not steps
    with pytest.raises(ModelUnavailable if how == "error" else Cancelled):
        target.result(0)


def test_into_reports_what_a_step_raises():
    before, target = Future(), Future()
    before.add_done_callback(into(target, lambda _value: 1 / 0))
    before.set_result(None)
    assert target.exception(0).code == "internal_error"
