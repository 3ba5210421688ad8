"""Tokens → words → segments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.backends.common.timestamps import chars, segments, words
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


def test_letters_share_their_token_s_time():
    assert chars([Span("▁ab", 1.0, 2.0), Span("c.", 2.0, 3.0)]) == (
        Span("a", 1.0, 1.5),
        Span("b", 1.5, 2.0),
        Span("c", 2.0, 2.5),
        Span(".", 2.5, 3.0),
    )
