"""Long clips are cut where it is quiet, whole and in order, and their transcripts joined as if there had been no
cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.chunking import merge, split
from worker.types import SAMPLE_RATE, Span, Transcript


def speech(spoken: list[tuple[float, float]], noise: float = 0.0) -> np.ndarray:
    """Loud noise for so many seconds, then a pause for so many, and so on."""
    rng = np.random.default_rng(0)
    parts = [
        part
        for loud, quiet in spoken
        for part in (0.3 * rng.standard_normal(round(loud * SAMPLE_RATE)), np.zeros(round(quiet * SAMPLE_RATE)))
    ]
    audio = np.concatenate(parts)
    return (audio + noise * rng.standard_normal(len(audio))).astype(np.float32)


@given(st.floats(0.1, 300), st.floats(2, 60), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_the_windows_are_the_whole_clip_in_order_and_none_is_too_long(seconds, window, seed):
    samples = np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32)
    spans = split(samples, window)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(samples)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    assert all(0 < end - start <= window * SAMPLE_RATE for start, end in spans)
    if len(spans) > 1:
        assert all(end - start >= 0.45 * window * SAMPLE_RATE for start, end in spans[:-1])


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_cuts_fall_into_pauses(noise):
    spoken = [(length, 0.4) for length in np.random.default_rng(1).uniform(1.5, 6, 60)]
    samples = speech(spoken, noise)
    edges = np.cumsum([part for pair in spoken for part in pair])
    pauses = list(zip(edges[::2], edges[1::2], strict=True))
    spans = split(samples, 30)
    assert 7 < len(spans) < 20
    for _, end in spans[:-1]:
        assert any(quiet <= end / SAMPLE_RATE <= loud for quiet, loud in pauses)


def test_silence_and_short_clips():
    assert split(np.zeros(0, np.float32), 30) == [(0, 0)]
    assert split(np.zeros(30 * SAMPLE_RATE, np.float32), 30) == [(0, 30 * SAMPLE_RATE)]
    assert len(split(np.zeros(3600 * SAMPLE_RATE, np.float32), 40)) <= 92


def test_joining_moves_times_and_adds_up():
    first = Transcript(
        "one two.", (Span("one", 0.5, 1), Span("two.", 1, 1.5)), (Span("one two.", 0.5, 1.5),), (), "en", 3
    )
    second = Transcript("", language="de", tokens_generated=1)
    third = Transcript("three", (Span("three", 0, 0.25),), (Span("three", 0, 0.25),), (Span("t", 0, 0.25),), "en", 2)
    joined = merge([(0.0, first), (10.0, second), (20.0, third)])
    assert joined.text == "one two. three"
    assert joined.words == (Span("one", 0.5, 1), Span("two.", 1, 1.5), Span("three", 20, 20.25))
    assert joined.segments == (Span("one two.", 0.5, 1.5), Span("three", 20, 20.25))
    assert joined.chars == (Span("t", 20, 20.25),)
    assert (joined.language, joined.tokens_generated) == ("en", 6)


def test_languages_without_spaces_are_joined_without_them():
    assert merge([(0, Transcript("你好")), (1, Transcript("世界")), (2, Transcript("and"))]).text == "你好世界 and"


def test_nothing_heard_is_no_text():
    assert merge([(0, Transcript("")), (1, Transcript(""))]) == Transcript("")


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        (("你好吗？", "是的！", "走吧"), "你好吗？是的！走吧"),
        (("はい、", "そうです"), "はい、そうです"),
        (("Yes.", "No."), "Yes. No."),
        (("我用", "iPhone"), "我用 iPhone"),
    ],
)
def test_texts_are_parted_as_their_language_parts_words(parts, whole):
    assert merge([(30.0 * i, Transcript(text)) for i, text in enumerate(parts)]).text == whole
