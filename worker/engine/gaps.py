"""Speech that a transcript has no words for: where it is, and how its second transcript is put in. Pure functions.

    windows, speech ── find ──▶ gaps ── transcribed alone ──▶ repairs
    windows, repairs, speech ── merge ──▶ one transcript, whose warning names the gaps that are left

A gap lies between the words before and after it. So a repair repeats no word and its words keep their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from worker.backends.common import timestamps
from worker.engine import chunking
from worker.types import Span, Token, Transcript

Times = tuple[float, float]

MIN_SPEECH_SEC = 3.0  # less speech between two words is a breath, a cough or a word's end
MIN_PART_SEC = 0.5  # a shorter part of a span of speech, next to a word, belongs to the word
MARGIN_SEC = 0.25  # audio around a gap that is transcribed with it, up to the next word
MOST_TIMES = 20  # gaps that a warning names


class Window(NamedTuple):
    """A part of a clip and its transcript."""

    start: float
    """Seconds from the start of the clip."""
    end: float
    """Seconds from the start of the clip."""
    transcript: Transcript
    """The transcript, whose times are from the start of the window."""


def find(windows: Sequence[Window], speech: Sequence[Times]) -> list[Times]:
    """Return the gaps: where `speech` lasts MIN_SPEECH_SEC or longer and the windows have no words. In order.

    A window whose transcript has a text but no times counts as covered with words.
    """
    gaps: list[Times] = []
    start, position, clip_end = 0.0, 0, max((window.end for window in windows), default=0.0)
    for word_start, word_end in [*sorted(_covered(windows)), (clip_end, clip_end)]:
        spoken: list[Times] = []
        while position < len(speech) and speech[position][0] < word_start:
            spoken += _between(speech[position], start, word_start)
            if speech[position][1] > word_start:
                break
            position += 1
        if sum(end - begin for begin, end in spoken) >= MIN_SPEECH_SEC:
            gaps.append((max(start, spoken[0][0] - MARGIN_SEC), min(word_start, spoken[-1][1] + MARGIN_SEC)))
        start = max(start, word_end)
    return gaps


def merge(windows: Sequence[Window], repairs: Sequence[Window], speech: Sequence[Times]) -> Transcript:
    """Return one transcript of the windows and the repairs, in the order of time.

    The repairs are in order and lie in gaps of the windows. The warning names the gaps that are left.
    """
    merged = chunking.merge([(window.start, window.transcript) for window in _interleave(windows, repairs)])
    left = find([*windows, *repairs], speech)
    if not left:
        return merged
    return replace(merged, warning="; ".join(filter(None, (merged.warning, _warning(left)))))


def _covered(windows: Iterable[Window]) -> list[Times]:
    """Return the times that have words."""
    covered: list[Times] = []
    for start, end, transcript in windows:
        spans = transcript.words or transcript.segments
        covered += [(start + span.start, start + span.end) for span in spans]
        if transcript.text and not spans:
            covered.append((start, end))
    return covered


def _between(span: Times, start: float, end: float) -> list[Times]:
    """Return the part of a span that lies between two words, unless the part is the end or the start of a word."""
    part = max(span[0], start), min(span[1], end)
    length = part[1] - part[0]
    return [part] if length >= MIN_PART_SEC or (part == span and length > 0) else []


def _warning(gaps: Sequence[Times]) -> str:
    times = [f"{start:.1f} to {end:.1f} s" for start, end in gaps[:MOST_TIMES]]
    more = [f"{len(gaps) - MOST_TIMES} more spans"] if len(gaps) > MOST_TIMES else []
    return f"The audio contains speech without words in the transcript: {', '.join(times + more)}"


def _interleave(windows: Sequence[Window], repairs: Sequence[Window]) -> list[Window]:
    """Return the windows, divided at the repairs, and the repairs between their parts."""
    ordered: list[Window] = []
    left = list(repairs)
    for number, window in enumerate(windows):
        rest, is_last = window, number == len(windows) - 1
        while left and (is_last or left[0].start < window.end):
            before, rest = _divide(rest, left[0].start)
            ordered += [before, left.pop(0)]
        ordered.append(rest)
    return ordered


def _divide(window: Window, at: float) -> tuple[Window, Window]:
    """Return the window up to a gap that starts at `at`, and from there on. Both have the window's times."""
    transcript, at_sec = window.transcript, at - window.start
    first, later = _divide_segments(transcript, at_sec)
    spans = transcript.words or transcript.segments
    text, rest = _divide_text(transcript.text, spans, _count_before(spans, at_sec))
    words, chars = _count_before(transcript.words, at_sec), _count_before(transcript.chars, at_sec)
    tokens = _count_tokens(transcript.tokens, text)
    before = replace(
        transcript,
        text=text,
        words=transcript.words[:words],
        segments=first,
        chars=transcript.chars[:chars],
        tokens=transcript.tokens[:tokens],
    )
    after = Transcript(
        rest,
        transcript.words[words:],
        later,
        transcript.chars[chars:],
        transcript.language,
        tokens=transcript.tokens[tokens:],
        finish_reason=transcript.finish_reason,
    )
    return window._replace(transcript=before), window._replace(transcript=after)


def _is_before(span: Span, at_sec: float) -> bool:
    """Return whether a span lies before a time. A span that takes no time may end at the time that it starts at."""
    return span.start < at_sec or span.end <= at_sec


def _count_before(spans: Sequence[Span], at_sec: float) -> int:
    return sum(_is_before(span, at_sec) for span in spans)


def _divide_text(text: str, spans: Sequence[Span], first: int) -> tuple[str, str]:
    """Return the text up to the span of number `first`, and from it on."""
    if not first or first == len(spans):
        return (text, "") if first else ("", text)
    position = 0
    for span in spans[:first]:
        position = max(position, text.find(span.text, position) + len(span.text))
    found = text.find(spans[first].text, position)
    if found < 0:  # the text is not made of the spans
        return chunking.join([span.text for span in spans[:first]]), chunking.join(
            [span.text for span in spans[first:]]
        )
    return text[:found], text[found:]


def _divide_segments(transcript: Transcript, at_sec: float) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Return the segments before and after a gap. A segment with words on both sides becomes two, made of its words."""
    before: list[Span] = []
    after: list[Span] = []
    words, position = transcript.words, 0
    for segment in transcript.segments:
        first = position
        while position < len(words) and _is_before(words[position], segment.end):
            position += 1
        own = words[first:position]
        count = _count_before(own, at_sec)
        if 0 < count < len(own):
            text, rest = _divide_text(segment.text, own, count)
            before.append(replace(timestamps.segment(own[:count]), text=text.strip()))
            after.append(replace(timestamps.segment(own[count:]), text=rest.strip()))
        else:
            (before if _is_before(segment, at_sec) else after).append(segment)
    return tuple(before), tuple(after)


def _count_tokens(tokens: Sequence[Token], text: str) -> int:
    """Return how many of the tokens spell the text. The spaces at its ends do not count."""
    wanted, spelled = len(text.strip()), 0
    for count, token in enumerate(tokens):
        if spelled >= wanted:
            return count
        spelled += len(token.text if spelled else token.text.lstrip())
    return len(tokens)
