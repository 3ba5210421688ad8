"""A transcript as subtitles: every word, in cues that fit and that players read."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from worker.protocol import subtitles
from worker.types import Span, Transcript


def spoken(text: str) -> Transcript:
    words = tuple(Span(w, i * 0.4, i * 0.4 + 0.3) for i, w in enumerate(text.split()))
    segments = (Span(text, words[0].start, words[-1].end),) if words else ()
    return Transcript(text, words, segments, language="en")


@given(st.lists(st.text("abcdefghij<&>-.", min_size=1, max_size=12), min_size=1, max_size=80), st.booleans())
def test_subtitles_hold_every_word_in_order_in_cues_that_fit(texts, vtt):
    transcript = spoken(" ".join(texts))
    written = (subtitles.vtt if vtt else subtitles.srt)(transcript, 99.0)
    cues = re.findall(r"(\d+:\d\d:\d\d[.,]\d{3}) --> (\d+:\d\d:\d\d[.,]\d{3})\n(.+(?:\n.+)?)", written)
    shown = " ".join(text.replace("\n", " ") for _, _, text in cues)
    if vtt:
        assert written.startswith("WEBVTT\n\n")
        shown = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        assert shown.split() == texts
    else:
        assert shown.split() == [t.replace("-->", "->") for t in texts]
    starts = [start for start, _, _ in cues]
    assert starts == sorted(starts)


def test_srt_looks_like_srt():
    assert subtitles.srt(spoken("hello world."), 2.0) == "1\n00:00:00,000 --> 00:00:00,700\nhello world.\n"


def test_silence_has_no_cues():
    assert subtitles.srt(Transcript(""), 2.0) == ""
    assert subtitles.vtt(Transcript(""), 2.0) == "WEBVTT\n"


def test_subtitles_have_spaces_where_the_text_has_them():
    text = "我用 iPhone 听歌。" + "今天天气很好我们去公园吧" * 3
    words = tuple(Span(char, i * 0.1, i * 0.1 + 0.1) for i, char in enumerate(text.replace(" ", "")))
    cues = subtitles.srt(Transcript(text, words), 9.0).splitlines()
    assert "".join(cues[2:4]) == text
    assert max(map(len, cues)) <= subtitles.LINE_CHARS


def test_a_cue_ends_with_its_segment_however_words_are_timed():
    words = (Span("One", 0.0, 0.4), Span("two.", 0.4, 0.9), Span("Three", 3.0, 3.5), Span("four.", 3.5, 4.1))
    segments = (Span("One two.", 0.0, 1.02), Span("Three four.", 2.9, 4.0))
    written = subtitles.srt(Transcript("One two. Three four.", words, segments), 5.0)
    assert written.split("\n\n") == [
        "1\n00:00:00,000 --> 00:00:00,900\nOne two.",
        "2\n00:00:03,000 --> 00:00:04,100\nThree four.\n",
    ]


def test_a_word_without_length_is_shown_long_enough_to_be_read():
    written = subtitles.vtt(Transcript("Yes.", (Span("Yes.", 1.0, 1.0),)), 2.0)
    assert "00:00:01.000 --> 00:00:01.500\nYes." in written


def test_an_empty_line_does_not_end_a_cue():
    assert subtitles.srt(Transcript("One.\n\nTwo."), 2.0) == "1\n00:00:00,000 --> 00:00:02,000\nOne. Two.\n"
