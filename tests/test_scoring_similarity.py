"""How alike texts and features are: what the measures promise for any of them."""

from __future__ import annotations

import difflib
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.scoring.similarity import audio_similarity, text_similarity

LONG = (
    "Once upon a time, in a small house by the sea, there lived an old man; his cat, grey and slow, slept by the fire "
    "all "
    'day. "Wake up!" said the man, "it\'s time for tea." The cat opened one eye, yawned, and went back to sleep. So '
    "the "
    "man drank his tea alone, looked out at the water, and waited for the evening boat to come home."
)
VECTORS = st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4).map(
    lambda values: np.array(values, np.float32)
)


def test_punctuation_and_case_cost_nothing_even_in_long_texts():
    assert len(LONG) > 300
    bare = LONG.lower().translate(str.maketrans("", "", string.punctuation))
    assert text_similarity(LONG, bare) == 1.0
    assert text_similarity(LONG, bare.replace("the evening boat", "an evening boats")) > 0.95


def test_a_long_text_with_another_word_is_not_taken_for_another_text():
    """difflib's own heuristic drops every letter that is frequent in a text of over 200: here, all of them."""
    said = "seven four two five four seven nine three eight two " * 6
    heard = "one " + said.replace("nine three", "nine tree")
    assert len(said) > 300
    assert difflib.SequenceMatcher(None, said, heard).ratio() < 0.4
    assert text_similarity(said, heard) > 0.95


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("", "", 1.0),
        ("...", " ?! ", 1.0),
        ("", "word", 0.0),
        ("abc", "xyz", 0.0),
        ("Don't  stop!", "dont stop", 1.0),
        ("twenty-one", "twenty one", 1.0),
        ("CAFE\u0301", "caf\u00e9", 1.0),
        ("हिन्दी में।", "हिन्दी में", 1.0),
        ("Straße", "STRASSE", 1.0),
        ("abcd", "abxd", 0.75),
    ],
)
def test_what_counts_as_the_same(one, other, expected):
    assert text_similarity(one, other) == pytest.approx(expected)


@given(st.text(max_size=60), st.text(max_size=60))
def test_texts_compare_both_ways_within_bounds(one, other):
    alike = text_similarity(one, other)
    assert 0 <= alike <= 1
    assert alike == text_similarity(other, one)
    assert text_similarity(one, one) == 1
    assert type(alike) is float


@given(VECTORS, VECTORS, st.floats(0.01, 100))
def test_the_cosine_of_features_is_bounded_and_knows_no_loudness(one, other, factor):
    alike = audio_similarity(one, other)
    assert -1 <= alike <= 1
    assert alike == audio_similarity(other, one)
    assert type(alike) is float
    if np.linalg.norm(one) > 1e-3:
        assert audio_similarity(one, (one.astype(np.float64) * factor)) == pytest.approx(1)
        assert audio_similarity(one, -one) == pytest.approx(-1)


def test_features_of_zeros_are_like_no_others():
    assert audio_similarity(np.zeros(3, np.float32), np.ones(3, np.float32)) == 0.0
    assert audio_similarity(np.array([1, 0], np.float32), np.array([1, 1], np.float32)) == pytest.approx(2**-0.5)
