"""Tokens → words → segments."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.backends.common.timestamps import (
    TimedToken,
    chars,
    confidence,
    group,
    segments,
    tokens_of,
    with_confidence,
    words,
)
from worker.types import Span


def spans(*texts: str) -> list[Span]:
    return [Span(text, float(i), i + 1.0) for i, text in enumerate(texts)]


def test_sentencepiece_tokens():
    assert [w.text for w in words(spans("▁hel", "lo", ",", "▁wor", "ld", "."))] == ["hello,", "world."]


def test_a_word_runs_from_its_first_token_to_its_last_that_is_not_punctuation():
    (word,) = words(spans("▁hel", "lo", "."))
    assert (word.start, word.end) == (0.0, 2.0)


def test_characters_with_spaces():
    assert [w.text for w in words(spans("a", "b", " ", "c"))] == ["ab", "c"]


def test_a_lone_marker_begins_the_next_word():
    assert [w.text for w in words(spans("▁", "a", "▁", "b"))] == ["a", "b"]


def test_punctuation_after_a_marker_joins_the_word_before():
    assert [w.text for w in words(spans("▁yes", "▁", ",", "▁no"))] == ["yes,", "no"]


@given(st.lists(st.from_regex(r"▁?[abc.,]{0,3}", fullmatch=True)))
def test_no_letter_is_lost(texts):
    joined = "".join(w.text for w in words(spans(*texts)))
    assert joined == "".join(texts).replace("▁", "")


def test_segments_end_with_sentences_and_before_long_pauses():
    spoken = [Span("one.", 0, 1), Span("two", 1, 2), Span("three", 5, 6)]
    assert segments(spoken) == (Span("one.", 0, 1), Span("two", 1, 2), Span("three", 5, 6))
    assert segments([]) == ()


def sure(*tokens: tuple[str, float]) -> list[TimedToken]:
    return [TimedToken(text, i, i + 1, value, i, -i) for i, (text, value) in enumerate(tokens)]


def test_a_word_is_as_sure_as_its_least_sure_token_and_a_segment_is_the_mean():
    tokens = sure(("▁hel", 0.9), ("lo", 0.4), (",", 0.8), ("▁", 0.1), ("world", 0.6), ("▁", 0.0))
    hello, world = words(tokens)
    assert (hello.confidence, world.confidence) == (0.4, 0.1)
    (segment,) = segments((hello, world), group(tokens))
    assert segment.confidence == 0.25
    assert segment.tokens == (0, 1, 2, 3, 4)
    assert segment.avg_logprob == -2
    assert {char.confidence for char in chars([hello])} == {0.4}


def test_a_word_with_a_token_of_unknown_confidence_has_none():
    known, unknown = sure(("▁a", 0.5))[0], Span("b", 1, 2)
    assert words([known, unknown])[0].confidence is None


def test_the_tokens_of_words_are_found_by_their_letters():
    tokens = sure(("▁a", 0.9), ("b.", 0.8), ("▁", 0.3), ("c", 0.7), ("▁d", 0.6))
    split = [Span("ab.", 0, 1), Span("c", 1, 2), Span("d", 2, 3)]
    assert [w.confidence for w in with_confidence(split, tokens_of(split, tokens))] == [0.8, 0.3, 0.6]
    joined = [Span("ab. c", 0, 1), Span("d", 2, 3)]
    assert [w.confidence for w in with_confidence(joined, tokens_of(joined, tokens))] == [0.3, 0.6]
    other = [Span("ab.", 0, 1), Span("x", 1, 2)]
    assert with_confidence(other, tokens_of(other, tokens)) == tuple(other)


def test_certainty_is_1_and_a_guess_is_0():
    assert confidence(0.0, 33) == 1.0
    assert confidence(math.log(1 / 33), 33) == pytest.approx(0.0)
    assert confidence(-100.0, 33) == 0.0


def test_letters_share_their_token_s_time():
    assert chars([Span("▁ab", 1.0, 2.0), Span("c.", 2.0, 3.0)]) == (
        Span("a", 1.0, 1.5),
        Span("b", 1.5, 2.0),
        Span("c", 2.0, 2.5),
        Span(".", 2.5, 3.0),
    )
