"""worker/engine/speaker_words.py: every word gets one speaker, and no text is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine.speaker_words import assign
from worker.types import Segment, Span, SpeakerTurn, Transcript

DIALOGUE = (SpeakerTurn(0.0, 2.0, "Speaker 1"), SpeakerTurn(2.5, 4.0, "Speaker 2"), SpeakerTurn(4.0, 6.0, "Speaker 1"))


def words(*spans: tuple[str, float, float]) -> tuple[Span, ...]:
    return tuple(Span(*span) for span in spans)


def speakers(spans) -> list[str | None]:
    return [span.speaker for span in spans]


@pytest.mark.parametrize(
    ("start", "end", "speaker"),
    [
        (0.5, 1.0, "Speaker 1"),
        (1.5, 2.6, "Speaker 1"),  # the larger overlap
        (1.9, 3.0, "Speaker 2"),
        (2.1, 2.2, "Speaker 1"),  # no overlap: the nearest
        (2.3, 2.4, "Speaker 2"),
        (2.2, 2.3, "Speaker 1"),  # equally near: the earlier
        (3.5, 4.5, "Speaker 2"),  # equal overlaps: the earlier
        (3.0, 3.0, "Speaker 2"),  # a word without length
        (9.0, 9.5, "Speaker 1"),
    ],
)
def test_a_word_has_the_speaker_of_the_turn_that_overlaps_most_else_of_the_nearest(start, end, speaker):
    (word,) = assign(Transcript("word", words(("word", start, end))), DIALOGUE).words
    assert word.speaker == speaker


def test_the_turns_of_a_speaker_add_up_under_a_word():
    turns = (SpeakerTurn(0.0, 0.3, "A"), SpeakerTurn(0.3, 0.7, "B"), SpeakerTurn(0.7, 1.0, "A"))
    assert speakers(assign(Transcript("x", words(("x", 0.0, 1.0))), turns).words) == ["A"]


def test_a_long_turn_is_found_under_later_ones_that_ended_before():
    turns = (SpeakerTurn(0.0, 100.0, "A"), SpeakerTurn(1.0, 2.0, "B"), SpeakerTurn(3.0, 4.0, "B"))
    assert speakers(assign(Transcript("x", words(("x", 50.0, 51.0), ("y", 101.0, 102.0))), turns).words) == ["A", "A"]


def test_segments_split_where_the_speaker_changes():
    said = words(("Hi,", 0.1, 0.5), ("you.", 0.6, 1.9), ("Hello!", 2.6, 3.0), ("So", 4.1, 4.2), ("then", 5.0, 6.0))
    whole = Transcript(
        "Hi, you. Hello! So then", said, (Span("Hi, you. Hello!", 0.0, 3.2), Span("So then", 4.0, 6.0, 0.5))
    )
    got = assign(whole, DIALOGUE)
    assert got.text == whole.text
    assert [(part.text, part.start, part.end, part.speaker) for part in got.segments] == [
        ("Hi, you.", 0.0, 1.9, "Speaker 1"),
        ("Hello!", 2.6, 3.2, "Speaker 2"),
        ("So then", 4.0, 6.0, "Speaker 1"),
    ]
    assert [part.confidence for part in got.segments] == [None, None, 0.5]


def test_scripts_without_spaces_are_split_too():
    said = words(("你", 0.0, 1.0), ("好", 1.0, 1.9), ("世界", 2.6, 3.0))
    got = assign(Transcript("你好世界", said, (Span("你好世界", 0.0, 3.0),)), DIALOGUE)
    assert [(part.text, part.speaker) for part in got.segments] == [("你好", "Speaker 1"), ("世界", "Speaker 2")]


def test_what_a_decoder_says_of_a_whole_segment_is_not_said_of_its_parts():
    said = words(("a", 0.0, 1.0), ("b", 3.0, 3.5))
    whole = Segment(
        "a b",
        0.0,
        3.5,
        tokens=(1, 2),
        temperature=0.0,
        avg_logprob=-1.0,
        compression_ratio=1.0,
        no_speech_prob=0.1,
        language="en",
    )
    first, second = assign(Transcript("a b", said, (whole,)), DIALOGUE).segments
    for part in (first, second):
        assert (part.tokens, part.avg_logprob, part.compression_ratio) == (None, None, None)
        assert (part.temperature, part.no_speech_prob, part.language) == (0.0, 0.1, "en")


@pytest.mark.parametrize(
    "said",
    [
        words(("other", 0.0, 1.0), ("text", 3.0, 3.5)),  # normalized words
        words(("a", 0.0, 1.0), ("bc", 3.0, 3.5)),  # a word in two segments
        (),
    ],
)
def test_segments_that_do_not_consist_of_the_words_stay_whole(said):
    whole = (Span("a b", 0.0, 1.9), Span("c", 2.6, 3.5))
    got = assign(Transcript("a b c", said, whole), DIALOGUE)
    assert [(part.text, part.speaker) for part in got.segments] == [("a b", "Speaker 1"), ("c", "Speaker 2")]


def test_without_a_turn_no_speaker_is_known():
    whole = Transcript("a", words(("a", 0.0, 1.0)), words(("a", 0.0, 1.0)))
    assert assign(whole, ()) == whole


def test_a_word_without_letters_between_two_segments_cuts_neither():
    said = words(("a", 0.0, 1.0), ("", 2.0, 3.0), ("b", 4.0, 5.0))
    whole = Transcript("a b", said, words(("a", 0.0, 3.0), ("b", 4.0, 5.0)))
    got = assign(whole, (SpeakerTurn(0.0, 3.0, "Speaker 1"), SpeakerTurn(4.0, 5.0, "Speaker 2")))
    assert [(part.text, part.start, part.end) for part in got.segments] == [("a", 0.0, 3.0), ("b", 4.0, 5.0)]


TIMES = st.floats(0, 100, allow_nan=False)


@st.composite
def transcripts(draw) -> Transcript:
    said = draw(st.lists(st.sampled_from(["a", "bb", "c.", "你", "", "über"]), max_size=12))
    times = sorted(draw(st.lists(TIMES, min_size=2 * len(said), max_size=2 * len(said))))
    spans = [Span(text, times[2 * i], times[2 * i + 1]) for i, text in enumerate(said)]
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(said) - 1)))) if said else [])
    groups = [spans[a:b] for a, b in zip([0, *cuts], [*cuts, len(spans)], strict=True)]
    segments = tuple(
        Span(" ".join(word.text for word in group), group[0].start, group[-1].end) for group in groups if group
    )
    return Transcript(" ".join(said), tuple(spans), segments)


@st.composite
def any_turns(draw) -> tuple[SpeakerTurn, ...]:
    pairs = draw(st.lists(st.tuples(TIMES, TIMES, st.integers(1, 4)), min_size=1, max_size=8))
    return tuple(SpeakerTurn(min(a, b), max(a, b), f"Speaker {number}") for a, b, number in pairs)


@given(transcripts(), any_turns())
def test_every_word_has_one_speaker_and_no_word_is_lost_or_doubled(whole, turns):
    got = assign(whole, turns)
    known = {turn.speaker for turn in turns}
    assert got.text == whole.text
    assert [(w.text, w.start, w.end) for w in got.words] == [(w.text, w.start, w.end) for w in whole.words]
    assert set(speakers(got.words)) | set(speakers(got.segments)) <= known
    assert "".join("".join(part.text for part in got.segments).split()) == "".join(
        "".join(part.text for part in whole.segments).split()
    )
    # The speakers of the segments, word by word, are those of the words.
    of_words = [word.speaker for word in got.words for _ in "".join(word.text.split())]
    assert [part.speaker for part in got.segments for _ in "".join(part.text.split())] == of_words
    starts = [part.start for part in got.segments]
    assert starts == sorted(starts)
    assert all(part.start <= part.end for part in got.segments)


@given(transcripts(), any_turns())
def test_the_word_under_a_turn_of_its_own_has_its_speaker(whole, turns):
    for word, got in zip(whole.words, assign(whole, turns).words, strict=True):
        under = {turn.speaker for turn in turns if turn.start < word.end and turn.end > word.start}
        if under:
            assert got.speaker in under
