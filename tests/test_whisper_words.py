"""Words and segments of Whisper: they agree whatever the tokens are, and no word is longer than it can be."""

from __future__ import annotations

import itertools
import math
import re
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.backends.whisper import decoding, speech, words
from worker.protocol import subtitles
from worker.types import SAMPLE_RATE, Span, Transcript

TEXTS = [
    " for",
    " you",
    " do",
    "n't",
    ",",
    " ,",
    ".",
    "!",
    ' "',
    '"',
    " (",
    ")",
    " -",
    " ",
    "ing",
    " 5",
    "%",
    " é",
    "’s",
]
FIRST_TIME = 1000


def read(tokens: list[int]) -> str:
    return "".join(TEXTS[token] for token in tokens)


def decoded(tokens: list[int]) -> decoding.Decoded:
    logprobs = tuple(-0.01 * (1 + i % 7) for i in range(len(tokens)))
    text = read([token for token in tokens if token < FIRST_TIME]).strip()
    return decoding.Decoded(tuple(tokens), logprobs, -0.1, text, 0.2, 0.03)


def compose(tokens: list[int], edges, duration_sec: float = 30.0, **named) -> words.Composition:
    named = {"language": "en", "by_letter": False, "confidence": True} | named
    return words.compose(decoded(tokens), edges, first_time=FIRST_TIME, read=read, duration_sec=duration_sec, **named)


TOKENS = st.lists(st.one_of(st.integers(0, len(TEXTS) - 1), st.integers(FIRST_TIME, FIRST_TIME + 1500)), max_size=40)


@st.composite
def rows(draw):
    """Tokens, and rising times of the text tokens, of which many may be equal."""
    tokens = draw(TOKENS)
    count = sum(token < FIRST_TIME for token in tokens)
    frames = sorted(draw(st.lists(st.integers(0, 1500), min_size=count + 1, max_size=count + 1)))
    return tokens, list(itertools.pairwise(frame * 0.02 for frame in frames))


@given(rows())
def test_words_and_segments_are_one_truth(row):
    tokens, edges = row
    parts = compose(tokens, edges)
    assert parts.text == decoded(tokens).text
    assert "".join(" ".join(word.text for word in parts.words).split()) == "".join(parts.text.split())
    assert " ".join(" ".join(segment.text for segment in parts.segments).split()) == " ".join(parts.text.split())
    left = list(parts.words)
    for segment in parts.segments:
        own: list[Span] = []
        while " ".join(word.text for word in own).split() != segment.text.split():
            own.append(left.pop(0))
        assert (segment.start, segment.end) == (own[0].start, own[-1].end)
        assert read(list(segment.tokens)).strip() == segment.text
    assert not left
    for before, after in itertools.pairwise(parts.words):
        assert before.start <= before.end <= after.end + 1e-9
        assert before.start <= after.start + 1e-9
    assert sum(token.logprob for token in parts.tokens) == pytest.approx(
        sum(value for token, value in zip(tokens, decoded(tokens).logprobs, strict=True) if token < FIRST_TIME)
    )


@given(rows())
def test_subtitles_have_the_words_of_the_segments(row):
    parts = compose(*row)
    text = subtitles.srt(Transcript(parts.text, parts.words, parts.segments), 30.0)
    lines = [line for block in text.split("\n\n") for line in block.splitlines()[2:]]
    spoken = "".join(one.text for one in parts.segments)
    assert re.sub(r"\W", "", "".join(lines)) == re.sub(r"\W", "", spoken)  # a cue of punctuation alone is left out


def test_a_time_token_within_a_word_ends_the_segment_after_the_word():
    parts = compose([FIRST_TIME, 2, FIRST_TIME + 50, FIRST_TIME + 50, 3, 1, FIRST_TIME + 100], None)
    assert [segment.text for segment in parts.segments] == ["don't", "you"]


def test_a_sentence_or_a_pause_ends_a_segment():
    # " for" "." " you" (pause) " do"
    parts = compose([0, 6, 1, 2], [(0.0, 0.4), (0.4, 0.4), (0.5, 0.9), (0.9, 1.2)])
    assert [segment.text for segment in parts.segments] == ["for.", "you do"]
    parts = compose([0, 6, 1, 2, 0], [(0.0, 0.4), (0.4, 0.4), (0.5, 0.9), (4.0, 4.4), (4.4, 4.8)])
    assert [segment.text for segment in parts.segments] == ["for.", "you", "do for"]


def test_punctuation_takes_no_time_and_no_word_spans_a_pause():
    # " for" "." (pause) " you" " do" "." (pause)
    edges = [(0.0, 0.4), (0.4, 5.0), (5.0, 9.4), (9.4, 9.8), (9.8, 20.0)]
    parts = compose([0, 6, 1, 2, 6], edges)
    assert [(word.text, word.start, word.end) for word in parts.words] == [
        ("for.", 0.0, 0.4),
        ("you", pytest.approx(8.6), 9.4),
        ("do.", 9.4, 9.8),
    ]


def test_words_that_start_together_share_their_time():
    parts = compose([0, 1, 2, 0], [(1.0, 1.0), (1.0, 1.0), (1.0, 1.6), (1.6, 1.6)])
    assert [word.start for word in parts.words] == pytest.approx([1.0, 1.15, 1.3, 1.45])
    assert all(word.end > word.start for word in parts.words)


def test_numbers_of_a_segment_are_those_of_its_tokens():
    (segment,) = compose([0, 1, 6], [(0, 1), (1, 2), (2, 2)]).segments
    assert segment.tokens == (0, 1, 6)
    assert segment.avg_logprob == pytest.approx(-0.02)
    assert segment.confidence == pytest.approx((math.exp(-0.01) + math.exp(-0.02)) / 2)
    assert segment.compression_ratio == len(b"for you.") / len(zlib.compress(b"for you."))
    assert (segment.temperature, segment.no_speech_prob, segment.language) == (0.2, 0.03, "en")
    silent = compose([0, 1, 6], [(0, 1), (1, 2), (2, 2)], confidence=False)
    assert silent.tokens == ()
    assert {span.confidence for span in (*silent.words, *silent.segments)} == {None}


def test_without_times_segments_have_those_of_the_time_tokens():
    parts = compose([FIRST_TIME + 10, 0, 1, FIRST_TIME + 60, FIRST_TIME + 70, 2], None, 3.0)
    assert parts.words == ()
    assert [(one.text, one.start, one.end) for one in parts.segments] == [
        ("for you", pytest.approx(0.2), pytest.approx(1.2)),
        ("do", pytest.approx(1.4), 3.0),
    ]


def test_a_language_without_spaces_has_a_word_for_each_character():
    parts = compose([3, 4], [(0.0, 0.6), (0.6, 0.8)], by_letter=True)
    assert [word.text for word in parts.words] == list("n't,")


def test_long_pauses_are_cut_out_and_times_map_back():
    samples = np.arange(20 * SAMPLE_RATE, dtype=np.float32)
    cut = speech.keep(samples, [(3.0, 4.0), (4.5, 5.0), (9.0, 10.0)])
    assert cut.parts == ((2.6, 5.4), (8.6, 10.4))
    assert len(cut.samples) == round(4.6 * SAMPLE_RATE)
    restored = cut.restore(Span("a", 0.4, 2.8))
    assert (restored.start, restored.end) == (pytest.approx(3.0), pytest.approx(5.4))
    restored = cut.restore(Span("b", 2.8, 4.2))
    assert (restored.start, restored.end) == (pytest.approx(8.6), pytest.approx(10.0))
    whole = speech.keep(samples, [(1.0, 2.0), (3.5, 18.5)])
    assert whole.parts == ((0.0, 20.0),)
    assert whole.samples is samples


def test_a_word_on_both_sides_of_a_cut_is_where_more_of_it_is():
    cut = speech.Cut(np.zeros(4 * SAMPLE_RATE, np.float32), ((1.0, 3.0), (9.0, 11.0)))
    for edges, times in (((0.5, 1.5), (1.5, 2.5)), ((1.2, 2.5), (2.2, 3.0)), ((1.8, 3.0), (9.0, 10.0))):
        restored = cut.restore_word(Span("a", *edges))
        assert (restored.start, restored.end) == pytest.approx(times)


def test_bytes_that_are_no_character_end_with_their_tokens():
    texts = {0: " hello", 1: "\ufffd", 2: " world", 3: " again"}
    found = words.units(
        decoding.Decoded((0, 1, 2, 3), (-0.1,) * 4, -0.1, "", 0.0, 0.0),
        [0] * 4,
        None,
        FIRST_TIME,
        lambda tokens: "".join(texts[token] for token in tokens),
    )
    assert [unit.text for unit in found] == [" hello", "\ufffd world", " again"]
