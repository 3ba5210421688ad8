"""Clips → Batches: nothing lost, nothing over the limits, little padding, nobody starves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.config import Settings
from worker.engine.batching import Limits, is_full, is_long, next_batch, plan
from worker.types import Clip, Options, Piece

LIMITS = Limits.of(Settings())


def piece(seconds: float, order: int = 0, **options) -> Piece:
    samples = np.broadcast_to(np.float32(0), (round(seconds * 16_000),))  # no memory, whatever the length
    return Piece(Clip(samples), Options("m", **options), order)


seconds = st.floats(0.05, 900)
pieces = st.lists(
    st.builds(piece, seconds, language=st.sampled_from(["en", "de"]), timestamps=st.booleans()), max_size=60
)
limits = st.builds(Limits, st.integers(1, 20), st.floats(1, 1500), st.floats(0.5, 1000), st.floats(0, 200))


@given(pieces, limits)
def test_every_piece_is_in_one_batch_within_the_limits(given_pieces, limit):
    limit = replace(limit, long_sec=min(limit.long_sec, limit.max_padded_sec))
    batches = plan(given_pieces, limit)
    assert sorted(id(p) for b in batches for p in b.pieces) == sorted(map(id, given_pieces))
    for batch in batches:
        assert len({p.options for p in batch.pieces}) == 1
        if batch.long:
            assert len(batch.pieces) == 1
            assert is_long(batch.pieces[0], limit)
        else:
            assert len(batch.pieces) <= limit.max_items
            assert batch.padded_sec <= limit.max_padded_sec * (1 + 1e-9)
            lengths = [p.duration_sec for p in batch.pieces]
            assert batch.padded_sec - sum(lengths) <= limit.max_waste_sec + 1e-6


@given(pieces.filter(bool))
@settings(max_examples=50)
def test_the_oldest_piece_is_always_served_next(given_pieces):
    waiting = [Piece(p.clip, p.options, order) for order, p in enumerate(given_pieces)]
    while waiting:
        batch = next_batch(waiting, LIMITS)
        assert waiting[0] in batch.pieces
        waiting = [p for p in waiting if p not in batch.pieces]


def test_padding_of_lognormal_clips_stays_under_a_tenth():
    rng = np.random.default_rng(0)
    given_pieces = [piece(s) for s in np.exp(rng.normal(math.log(6), 1, 2000))]
    batches = plan(given_pieces, LIMITS)
    assert max(b.padded_sec for b in batches) <= LIMITS.max_padded_sec
    assert sum(b.padded_sec for b in batches) <= 1.1 * sum(p.duration_sec for p in given_pieces)


def test_long_means_any_of_the_three_limits():
    assert Limits.of(Settings()).long_sec == 600, "whatever the memory"
    limit = Limits.of(Settings(short_max_sec=600, local_attention_after_sec=20, batch_max_total_sec=1200))
    assert is_long(piece(21), limit)
    assert not is_long(piece(20), limit)


def test_full():
    assert is_full(plan([piece(1)] * 16, LIMITS)[0], LIMITS)
    assert not is_full(plan([piece(1)] * 15, LIMITS)[0], LIMITS)
    assert is_full(plan([piece(500), piece(490)], LIMITS)[0], LIMITS)
