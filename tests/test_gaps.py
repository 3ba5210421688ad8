"""Speech without words is found between the words, and its second transcript is put where it belongs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.gaps import MARGIN_SEC, MIN_SPEECH_SEC, MOST_TIMES, Window, find, merge
from worker.types import Segment, Span, Token, Transcript


def transcript(*words: tuple[str, float, float], **fields) -> Transcript:
    spans = tuple(Span(*word) for word in words)
    text = " ".join(span.text for span in spans)
    segments = (Span(text, spans[0].start, spans[-1].end),) if spans else ()
    return Transcript(text, spans, segments, **fields)


def numbers(first: float, last: float, prefix: str = "w") -> Transcript:
    """A word of half a second in each second."""
    return transcript(*((f"{prefix}{n}", n + 0.1, n + 0.6) for n in range(math.ceil(first), math.floor(last))))


def test_speech_with_words_is_no_gap():
    assert find([Window(0, 60, numbers(0, 60))], [(0.0, 60.0)]) == []


def test_a_stretch_of_speech_without_words_is_a_gap_between_the_words():
    words = (*numbers(0, 10).words, *numbers(20, 30).words)
    (gap,) = find([Window(0, 30, Transcript("…", words))], [(0.0, 30.0)])
    assert gap == (words[9].end, words[10].start)


def test_pauses_around_lost_speech_are_left_out_but_for_a_margin():
    words = (*numbers(0, 10).words, *numbers(30, 40).words)
    (gap,) = find([Window(0, 40, Transcript("…", words))], [(0.0, 9.9), (15.0, 20.0), (30.0, 40.0)])
    assert gap == (15.0 - MARGIN_SEC, 20.0 + MARGIN_SEC)


@pytest.mark.parametrize("length", [MIN_SPEECH_SEC - 0.01, MIN_SPEECH_SEC])
def test_a_gap_has_three_seconds_of_speech(length):
    words = (*numbers(0, 2).words, *numbers(20, 22).words)
    gaps = find([Window(0, 22, Transcript("…", words))], [(0.0, 1.7), (5.0, 5.0 + length), (20.0, 22.0)])
    assert bool(gaps) == (length >= MIN_SPEECH_SEC)


def test_the_end_of_a_word_that_sounds_on_is_not_transcribed_again():
    words = (*numbers(0, 10).words, *numbers(30, 40).words)
    (gap,) = find([Window(0, 40, Transcript("…", words))], [(0.0, 9.9), (12.0, 16.0), (29.9, 40.0)])
    assert gap == (12.0 - MARGIN_SEC, 16.0 + MARGIN_SEC)


def test_gaps_cross_windows_and_a_text_without_times_has_none():
    first, second = Window(0, 30, numbers(0, 20)), Window(30, 60, numbers(10, 30))
    assert find([first, second], [(0.0, 60.0)]) == [(19.6, 40.1)]
    assert find([first, Window(30, 60, Transcript("some text"))], [(0.0, 60.0)]) == [(19.6, 30)]
    assert find([first, Window(30, 60, Transcript(""))], [(0.0, 60.0)]) == [(19.6, 60)]
    assert find([Window(0, 30, Transcript(""))], []) == []


def test_a_repair_is_put_between_the_words_around_it():
    words = (*numbers(0, 3).words, *numbers(10, 13).words)
    text = "w0 w1 w2, w10 w11 w12"
    tokens = tuple(Token(text, -0.5) for text in (" w0", " w1", " w2", ",", " w10", " w1", "1", " w12"))
    whole = Transcript(text, words, (Span(text, 0.1, 12.6),), tokens=tokens, tokens_generated=8)
    repair = transcript(("lost", 0.5, 1.5), ("words", 2.0, 3.0), tokens=(Token(" lost", -1), Token(" words", -1)))
    merged = merge([Window(0, 13, whole)], [Window(4, 9, repair)], [(0.0, 13.0)])
    assert merged.text == "w0 w1 w2, lost words w10 w11 w12"
    assert [word.text for word in merged.words] == ["w0", "w1", "w2", "lost", "words", "w10", "w11", "w12"]
    assert [word.start for word in merged.words] == sorted(word.start for word in merged.words)
    assert [segment.text for segment in merged.segments] == ["w0 w1 w2,", "lost words", "w10 w11 w12"]
    assert "".join(token.text for token in merged.tokens) == " w0 w1 w2, lost words w10 w11 w12"
    assert merged.tokens_generated == 8


def test_a_segment_on_one_side_of_a_repair_stays_as_it_is():
    early, late = Segment("w0 w1", 0.1, 1.6, avg_logprob=-0.25), Segment("w10", 10.1, 10.6, no_speech_prob=0.5)
    words = (*numbers(0, 2).words, *numbers(10, 11).words)
    merged = merge([Window(0, 11, Transcript("w0 w1 w10", words, (early, late)))], [Window(3, 9, numbers(0, 2))], [])
    assert merged.segments == (early, Span("w0 w1", 3.1, 4.6), late)


def test_a_word_that_takes_no_time_stays_on_its_side_of_a_repair():
    words = transcript(("one", 0.0, 1.0), ("two", 1.0, 1.0), ("three", 9.0, 9.5), ("four", 9.5, 9.5))
    repair = Window(1.0, 9.0, transcript(("again", 2.0, 2.5)))
    merged = merge([Window(0, 10, words)], [repair], [])
    assert merged.text == "one two again three four"
    assert [word.text for word in merged.words] == merged.text.split()
    assert [segment.text for segment in merged.segments] == ["one two", "again", "three four"]


def test_a_text_without_spaces_is_divided_without_spaces():
    words = tuple(Span(char, start, start + 0.2) for char, start in zip("你好吗很好", (0, 1, 2, 8, 9), strict=True))
    whole = Transcript("你好吗很好", words, (Span("你好吗很好", 0.0, 9.2),))
    merged = merge([Window(0, 10, whole)], [Window(3.0, 7.0, Transcript("我", (Span("我", 1.0, 1.2),)))], [])
    assert merged.text == "你好吗我很好"
    assert [segment.text for segment in merged.segments] == ["你好吗", "很好"]


def test_a_text_that_is_not_made_of_its_words_is_written_anew():
    words = (*numbers(0, 1).words, *numbers(10, 11).words)
    merged = merge([Window(0, 11, Transcript("zero and ten", words))], [Window(3, 9, transcript(("x", 0, 1)))], [])
    assert merged.text == "w0 x w10"


def test_what_stays_without_words_is_a_warning_with_its_times():
    words = (*numbers(0, 10).words, *numbers(20, 30).words)
    window = Window(0, 30, Transcript("…", words, warning="ours"))
    merged = merge([window], [Window(9.6, 20.1, Transcript(""))], [(0.0, 30.0)])
    assert merged.warning == "ours; The audio contains speech without words in the transcript: 9.6 to 20.1 s"
    assert (
        merge([Window(0, 30, Transcript("…", words))], [Window(10, 20, numbers(0, 10))], [(0.0, 30.0)]).warning is None
    )


def test_a_warning_names_a_bounded_number_of_gaps():
    speech = [(n * 10.0, n * 10.0 + 5) for n in range(100)]
    words = tuple(Span("w", n * 10.0 + 8, n * 10.0 + 8.5) for n in range(100))
    warning = merge([Window(0, 1000, Transcript("…", words))], [], speech).warning
    assert warning.count(" to ") == MOST_TIMES
    assert warning.endswith(f"{100 - MOST_TIMES} more spans")


@given(
    lost=st.lists(st.booleans(), min_size=40, max_size=120),
    window=st.integers(7, 45),
    has_words=st.booleans(),
)
def test_no_word_is_lost_or_doubled_and_all_are_in_order(lost, window, has_words):
    """One word a second is spoken. The first transcript lacks some of them; the second one has all of its audio."""
    spoken = [(f"w{second}", second + 0.1, second + 0.6) for second in range(len(lost))]

    def transcribe(start: float, end: float, keep) -> Window:
        inside = [(text, a - start, b - start) for n, (text, a, b) in enumerate(spoken) if start <= a < end and keep(n)]
        return Window(start, end, transcript(*inside))

    edges = [*range(0, len(lost), window), len(lost)]
    windows = [transcribe(a, b, lambda n: not lost[n]) for a, b in zip(edges, edges[1:], strict=False)]  # noqa: RUF007
    speech = [(0.0, float(len(lost)))]
    gaps = find(windows, speech)
    repairs = [transcribe(start, end, lambda n: has_words) for start, end in gaps]
    merged = merge(windows, repairs, speech)

    def in_gap(n: int) -> bool:
        return any(start <= n + 0.1 < end for start, end in gaps)

    assert all(lost[n] for n in range(len(lost)) if in_gap(n)), "a gap has no word of the first transcript"
    expected = [text for n, (text, _, _) in enumerate(spoken) if not lost[n] or (has_words and in_gap(n))]
    assert [word.text for word in merged.words] == expected
    assert merged.text == " ".join(expected)
    assert " ".join(segment.text for segment in merged.segments) == " ".join(expected)
    assert [word.start for word in merged.words] == sorted(word.start for word in merged.words)
    assert (merged.warning is None) == (has_words or not gaps)
    for first in range(len(lost)):  # six words lost in a row are always found
        if all(lost[first : first + 6]) and first + 6 <= len(lost):
            assert in_gap(first + 2)
