"""A transcript in the formats of speech research: every word and every time, as the tools read them."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from worker.protocol import corpus_formats
from worker.types import Diarization, Span, SpeakerTurn, Transcript

WORDS = (
    Span("Hello", 0.25, 0.75, 0.9, speaker="Speaker 1", channel=0),
    Span("there.", 0.75, 1.0, None, speaker="Speaker 1", channel=0),
    Span('"Hi."', 0.5, 0.875, 0.5, speaker="Speaker 2", channel=1),
)
SEGMENTS = (
    Span("Hello there.", 0.25, 1.0, speaker="Speaker 1", channel=0),
    Span('"Hi."', 0.5, 0.875, speaker="Speaker 2", channel=1),
)
DIALOGUE = Transcript('Hello there. "Hi."', WORDS, SEGMENTS)


def test_tsv_names_the_speakers_if_they_are_known():
    transcript = Transcript("One. Two.", (), (Span("One.", 0.0, 1.0, speaker="Ann Lee"), Span("Two.", 1.0, 2.0)))
    assert corpus_formats.tsv(transcript, 2.0) == (
        "start\tend\tspeaker\ttext\n0\t1000\tAnn Lee\tOne.\n1000\t2000\t\tTwo.\n"
    )


def test_ctm_has_the_words_of_each_channel_in_order():
    assert corpus_formats.ctm(DIALOGUE, "my call") == (
        'my_call 1 0.250 0.500 Hello 0.9000\nmy_call 1 0.750 0.250 there.\nmy_call 2 0.500 0.375 "Hi." 0.5000\n'
    )
    assert corpus_formats.ctm(Transcript("Hello.", (), (Span("Hello.", 0.0, 1.0),)), "a").startswith(";; ")
    assert corpus_formats.ctm(Transcript(""), "a") == ""


def test_stm_has_the_segments_with_their_speakers():
    assert corpus_formats.stm(DIALOGUE, 2.0, "call") == (
        'call 1 Speaker_1 0.250 1.000 Hello there.\ncall 2 Speaker_2 0.500 0.875 "Hi."\n'
    )
    assert corpus_formats.stm(Transcript("Hello."), 2.0, "call") == "call 1 unknown 0.000 2.000 Hello.\n"


def test_rttm_has_the_speakers_of_a_transcript_or_the_turns_of_a_diarization():
    assert corpus_formats.rttm(DIALOGUE, "call") == (
        "SPEAKER call 1 0.250 0.750 <NA> <NA> Speaker_1 <NA> <NA>\n"
        "SPEAKER call 2 0.500 0.375 <NA> <NA> Speaker_2 <NA> <NA>\n"
    )
    turns = Diarization((SpeakerTurn(0.0, 1.5, "Speaker 1"), SpeakerTurn(1.0, 2.0, "Ann")))
    assert corpus_formats.rttm(turns, "call") == (
        "SPEAKER call 1 0.000 1.500 <NA> <NA> Speaker_1 <NA> <NA>\nSPEAKER call 1 1.000 1.000 <NA> <NA> Ann <NA> <NA>\n"
    )


def tiers(written: str) -> dict[str, list[tuple[float, float, str]]]:
    """The intervals of each tier of a TextGrid, and a check that they fill it."""
    found: dict[str, list[tuple[float, float, str]]] = {}
    assert written.startswith('File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\n')
    (size,) = re.findall(r"^size = (\d+)$", written, re.M)
    for part in re.split(r"^    item \[\d+\]:\n", written, flags=re.M)[1:]:
        (name,) = re.findall(r'^        name = "(.*)"$', part, re.M)
        (end,) = re.findall(r"^        xmax = (\S+)$", part, re.M)
        (count,) = re.findall(r"intervals: size = (\d+)$", part, re.M)
        rows = re.findall(
            r'^            xmin = (\S+)\n            xmax = (\S+)\n            text = "(.*)"$', part, re.M
        )
        found[name] = [(float(start), float(stop), text.replace('""', '"')) for start, stop, text in rows]
        assert len(rows) == int(count)
        assert found[name][0][0] == 0
        assert found[name][-1][1] == float(end)
        assert all(one[1] == two[0] for one, two in zip(found[name], found[name][1:], strict=False))
        assert all(start < stop for start, stop, _ in found[name])
    assert len(found) == int(size)
    return found


def test_textgrid_has_tiers_of_segments_and_words_for_each_voice():
    found = tiers(corpus_formats.textgrid(DIALOGUE, 2.0))
    assert list(found) == [
        f"{voice} - {level}"
        for voice in ("Channel 1, Speaker 1", "Channel 2, Speaker 2")
        for level in ("segments", "words")
    ]
    assert found["Channel 1, Speaker 1 - words"] == [
        (0.0, 0.25, ""), (0.25, 0.75, "Hello"), (0.75, 1.0, "there."), (1.0, 2.0, "")
    ]  # fmt: skip
    assert [text for _, _, text in found["Channel 2, Speaker 2 - words"] if text] == ['"Hi."']
    assert tiers(corpus_formats.textgrid(Transcript(""), 0.0)) == {}


SPANS = st.lists(
    st.builds(
        lambda start, length, text, speaker: Span(text, start, start + length, speaker=speaker),
        st.floats(0, 9).map(lambda sec: round(sec, 3)),
        st.floats(0, 3).map(lambda sec: round(sec, 3)),
        st.text('ab"é', min_size=1, max_size=4),
        st.sampled_from([None, "Speaker 1", "Speaker 2"]),
    ),
    max_size=20,
)


@given(SPANS)
def test_no_word_is_lost_whatever_its_times(spans):
    words = tuple(spans)
    transcript = Transcript(" ".join(word.text for word in words), words, words)
    said = sorted(word.text for word in words)
    assert sorted(line.split()[4] for line in corpus_formats.ctm(transcript, "a").splitlines()) == said
    found = tiers(corpus_formats.textgrid(transcript, 10.0))
    assert sorted(text for name in found if name.endswith("words") for _, _, text in found[name] if text) == said
    assert len(corpus_formats.stm(transcript, 10.0, "a").splitlines()) == len(words)
