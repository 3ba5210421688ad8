"""What a batch costs is learned from the batches before, in spite of a slow first one and of outliers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.backends.common import device
from worker.config import Settings
from worker.engine.batch_cost import CostEstimate
from worker.engine.batching import Limits, plan
from worker.types import Batch, Clip, Options, Piece


def batch(count: int, seconds: float) -> Batch:
    clip = Clip(np.broadcast_to(np.float32(0), (round(seconds * 16_000),)))
    return Batch(tuple(Piece(clip, Options("m")) for _ in range(count)))


@given(st.floats(0.01, 5), st.floats(0.001, 1), st.integers(0, 10_000))
def test_overhead_and_rate_are_found_among_outliers(overhead, rate, seed):
    rng, estimate = np.random.default_rng(seed), CostEstimate(100, 0, 5)
    estimate.add(batch(4, 5), 60)  # while the libraries warm up
    for number in range(20):
        count, seconds = int(rng.integers(1, 17)), float(rng.integers(1, 30))
        slow = 8 if number % 7 == 3 else 1
        estimate.add(batch(count, seconds), slow * (overhead + rate * count * seconds))
    for count, seconds in ((1, 5), (16, 10), (8, 30)):
        true = overhead + rate * count * seconds
        assert estimate.cost.of(count, seconds) == pytest.approx(true, rel=0.35)


def test_batches_of_one_length_show_no_slope():
    estimate = CostEstimate(8, 0, 5)
    for _ in range(5):
        estimate.add(batch(4, 5), 1.4)
    assert estimate.cost.of(4, 5) == pytest.approx(1.4)
    assert estimate.cost.overhead_sec == pytest.approx(0.4)


def test_a_model_that_takes_long_to_start_gets_batches_that_are_worth_it():
    """As Whisper on a CPU: 2.9 s and 0.5 s for each window of 30 s."""
    estimate = CostEstimate(170, 30, 5)
    counts = []
    for _ in range(4):
        limits = Limits(16, 1200, 600, target_sec=5, cost=estimate.cost)
        counts.append(len(plan([piece for _ in range(24) for piece in batch(1, 28).pieces], limits)[0].pieces))
        estimate.add(batch(counts[-1], 28), 2.9 + 0.5 * counts[-1])
    assert counts == [2, 16, 16, 16]


def test_a_model_that_pads_costs_as_much_for_short_clips():
    estimate = CostEstimate(0, 30, 5)
    for _ in range(3):
        estimate.add(batch(2, 5), 3.0)
    assert estimate.cost.of(2, 30) == pytest.approx(3.0)
    assert estimate.cost.of(4, 1) == pytest.approx(6.0)


@pytest.mark.parametrize(("overhead", "count"), [(8, 6), (0, 1)])
def test_the_first_batch_is_small(overhead, count):
    """Its cost is unknown. It holds a minute of audio, or one clip if batches save nothing."""
    limits = Limits(16, 1200, 600, target_sec=5, cost=CostEstimate(overhead, 0, 5).cost)
    assert len(plan(batch(16, 10).pieces, limits)[0].pieces) == count


def test_a_batch_keeps_the_target_unless_one_piece_takes_longer():
    estimate = CostEstimate(0, 0, 5)
    for _ in range(3):
        estimate.add(batch(1, 10), 4.0)
    limits = Limits(16, 1200, 600, target_sec=5, cost=estimate.cost)
    assert [len(one.pieces) for one in plan(batch(6, 4).pieces, limits)] == [3, 3]
    assert [len(one.pieces) for one in plan(batch(2, 20).pieces, limits)] == [1, 1]


def test_the_target_depends_on_the_device(monkeypatch):
    assert device.batch_target_sec(Settings(device="cuda:1")) == 1
    assert device.batch_target_sec(Settings(device="cpu")) == 5
    assert device.batch_target_sec(Settings(device="cuda", batch_target_sec=0.3)) == 0.3
    monkeypatch.delitem(device.sys.modules, "torch", raising=False)
    assert device.batch_target_sec(Settings()) == 5, "a model that runs without torch runs on the CPU"
