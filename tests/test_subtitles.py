"""A transcript as subtitles: every word, in cues that fit and that players read."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.protocol import corpus_formats, subtitles, voices
from worker.protocol.cues import LINE_CHARS
from worker.types import Span, Transcript, View


def is_punctuation(text: str) -> bool:
    return all(unicodedata.category(char).startswith("P") for char in text)


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
        assert written.startswith("WEBVTT\n")
        shown = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    else:
        texts = [text.replace("-->", "->") for text in texts]
    assert [word for word in shown.split() if not is_punctuation(word)] == [
        text for text in texts if not is_punctuation(text)
    ]
    assert not any(is_punctuation(text.replace("\n", "")) for _, _, text in cues)
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
    assert max(map(len, cues)) <= LINE_CHARS


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


LIMITS = st.builds(
    View,
    max_line_width=st.none() | st.integers(1, 60),
    max_line_count=st.none() | st.integers(1, 4),
    max_words_per_line=st.none() | st.integers(1, 6),
).filter(lambda view: view != View())
WORDS = st.lists(st.text("abcde", min_size=1, max_size=12), min_size=1, max_size=60)


@given(WORDS, LIMITS)
def test_no_line_or_cue_exceeds_the_limits_of_the_request(texts, view):
    cues = [cue.split("\n")[1:] for cue in subtitles.vtt(spoken(" ".join(texts)), 99.0, view).split("\n\n")[1:]]
    cues = [[line for line in cue if line] for cue in cues]
    assert [word for cue in cues for line in cue for word in line.split()] == texts
    width, count = view.max_line_width or 42, view.max_line_count or (1 if view.max_words_per_line else 2)
    for lines in cues:
        assert len(lines) <= count
        assert all(len(line) <= width or " " not in line for line in lines)
        assert all(len(line.split()) <= (view.max_words_per_line or 60) for line in lines)


@pytest.mark.parametrize(
    ("view", "lines"),
    [
        (View(), [["One two three four five", "six seven eight nine ten"]]),
        (View(max_line_width=24), [["One two three four five", "six seven eight nine ten"]]),
        (View(max_line_width=20), [["One two three four", "five six seven eight"], ["nine ten"]]),
        (View(max_line_width=20, max_line_count=3), [["One two three four", "five six seven", "eight nine ten"]]),
        (View(max_line_width=60, max_line_count=1), [["One two three four five six seven eight nine ten"]]),
        (View(max_words_per_line=4), [["One two three four"], ["five six seven eight"], ["nine ten"]]),
        (View(max_words_per_line=4, max_line_count=2), [["One two three four", "five six seven eight"], ["nine ten"]]),
    ],
)
def test_lines_are_broken_as_the_request_says(view, lines):
    text = "One two three four five six seven eight nine ten"
    written = subtitles.srt(spoken(text), 9.0, view)
    assert [cue.strip().split("\n")[2:] for cue in written.split("\n\n")] == lines


def test_a_segment_without_word_times_keeps_its_cue_and_its_lines_fit():
    text = "One two three four five six seven eight nine ten"
    written = subtitles.srt(Transcript(text, (), (Span(text, 1.0, 2.0),)), 9.0, View(max_line_width=14))
    assert written == ("1\n00:00:01,000 --> 00:00:02,000\nOne two three\nfour five six\nseven eight\nnine ten\n")


@pytest.mark.parametrize("timed", [True, False])
def test_a_cue_of_punctuation_alone_is_not_written(timed):
    segments = (Span("Yes.", 0.0, 1.0), Span("…", 1.0, 2.0), Span("♪", 2.0, 3.0))
    transcript = Transcript("Yes. … ♪", segments if timed else (), segments)
    assert subtitles.srt(transcript, 3.0) == (
        "1\n00:00:00,000 --> 00:00:01,000\nYes.\n\n2\n00:00:02,000 --> 00:00:03,000\n♪\n"
    )
    assert subtitles.vtt(Transcript("."), 3.0) == "WEBVTT\n"


def test_tsv_has_the_segments_as_the_command_line_of_whisper_writes_them():
    segments = (Span(" One\ttwo.", 0.0, 1.0204), Span(" Three\nfour.", 2.9, 4.0))
    written = corpus_formats.tsv(Transcript("One two. Three four.", (), segments), 5.0)
    assert written == "start\tend\ttext\n0\t1020\tOne two.\n2900\t4000\tThree four.\n"
    assert corpus_formats.tsv(Transcript("One."), 1.5) == "start\tend\ttext\n0\t1500\tOne.\n"
    assert corpus_formats.tsv(Transcript(""), 1.5) == "start\tend\ttext\n"


def dialogue() -> Transcript:
    """Two speakers, of whom the first speaks again, and speaks without a pause before the second."""
    said = [("Speaker 1", "How are you?"), ("Speaker 2", "Fine & <well>."), ("Speaker 1", "Good.")]
    words, segments = [], []
    for speaker, text in said:
        own = [
            Span(word, at := 0.5 * (len(words) + i), at + 0.5, speaker=speaker) for i, word in enumerate(text.split())
        ]
        words += own
        segments.append(Span(text, own[0].start, own[-1].end, speaker=speaker))
    return Transcript(" ".join(text for _, text in said), tuple(words), tuple(segments), language="en")


def test_subtitles_name_the_speaker_of_each_cue():
    assert subtitles.srt(dialogue(), 9.0).split("\n\n") == [
        "1\n00:00:00,000 --> 00:00:01,500\nSpeaker 1: How are you?",
        "2\n00:00:01,500 --> 00:00:03,000\nSpeaker 2: Fine & <well>.",
        "3\n00:00:03,000 --> 00:00:03,500\nSpeaker 1: Good.\n",
    ]
    assert "\n<v Speaker 2>Fine &amp; &lt;well&gt;.\n" in subtitles.vtt(dialogue(), 9.0)
    assert subtitles.lrc(dialogue(), 9.0) == (
        "[00:00.00]Speaker 1: How are you?\n[00:01.50]Speaker 2: Fine & <well>.\n[00:03.00]Speaker 1: Good.\n"
    )


def test_a_cue_ends_where_the_speaker_changes_within_a_segment():
    words = (Span("One", 0.0, 0.5, speaker="Speaker 1"), Span("two.", 0.5, 1.0, speaker="Speaker 2"))
    written = subtitles.srt(Transcript("One two.", words, (Span("One two.", 0.0, 1.0),)), 2.0)
    assert [cue.strip().split("\n")[2] for cue in written.split("\n\n")] == ["Speaker 1: One", "Speaker 2: two."]


def test_a_hostile_name_of_a_speaker_breaks_no_format():
    span = Span("Hi.", 0.0, 1.0, speaker="A>\n\n2\n00:00 --> 00:01\tB")
    transcript = Transcript("Hi.", (span,), (span,))
    assert "<v A&gt; 2 00:00 --&gt; 00:01 B>Hi.\n" in subtitles.vtt(transcript, 2.0)
    assert subtitles.srt(transcript, 2.0).split("\n")[2] == "A> 2 00:00 -> 00:01 B: Hi."
    assert corpus_formats.tsv(transcript, 2.0).split("\n")[1] == "0\t1000\tA> 2 00:00 --> 00:01 B\tHi."
    assert corpus_formats.rttm(transcript, "a b").split() == (
        ["SPEAKER", "a_b", "1", "0.000", "1.000", "<NA>", "<NA>", "A>_2_00:00_-->_00:01_B", "<NA>", "<NA>"]
    )


def test_one_word_a_line_makes_subtitles_of_words():
    written = subtitles.srt(spoken("One two."), 9.0, View(max_words_per_line=1))
    assert written == "1\n00:00:00,000 --> 00:00:00,300\nOne\n\n2\n00:00:00,400 --> 00:00:00,700\ntwo.\n"


def test_the_text_has_a_line_for_each_turn_if_the_speakers_are_known():
    assert voices.text(dialogue()) == "Speaker 1: How are you?\nSpeaker 2: Fine & <well>.\nSpeaker 1: Good."
    assert voices.text(spoken("One two.")) == "One two."


def test_channels_have_cues_of_their_own_and_are_counted_from_1():
    left = [Span("One", 0.0, 0.5, channel=0), Span("three.", 1.0, 1.5, channel=0)]
    right = [Span("Two", 0.4, 0.9, channel=1), Span("four.", 1.2, 1.7, channel=1)]
    segments = (Span("One three.", 0.0, 1.5, channel=0), Span("Two four.", 0.4, 1.7, channel=1))
    words = tuple(sorted(left + right, key=lambda word: word.start))
    written = subtitles.srt(Transcript("One three. Two four.", words, segments), 2.0)
    assert [cue.strip().split("\n")[2] for cue in written.split("\n\n")] == [
        "Channel 1: One three.",
        "Channel 2: Two four.",
    ]


def test_a_cue_that_is_too_fast_is_shown_up_to_the_next_one():
    segments = (Span("One two.", 0.0, 0.5), Span("Three four.", 0.7, 1.0), Span("Five.", 4.0, 4.2))
    transcript = Transcript("One two. Three four. Five.", (), segments)
    written = subtitles.srt(transcript, 4.3, View(max_chars_per_sec=10))
    assert re.findall(r"--> (\S+)", written) == ["00:00:00,700", "00:00:01,800", "00:00:04,300"]
    slow = subtitles.srt(transcript, 4.3, View(max_chars_per_sec=100))
    assert re.findall(r"--> (\S+)", slow) == ["00:00:00,500", "00:00:01,000", "00:00:04,200"]
