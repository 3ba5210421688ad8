"""Decoded tokens and their times → text, words and segments that agree. Pure functions; times are in seconds.

    tokens ──▶ units ──▶ words ──▶ segments ──▶ text
               whole     spaces    sentences, pauses

A unit is the fewest tokens that make whole characters. Words consist of units, segments of words, and the text of
segments, so the words of a segment always make up its text, and a segment starts and ends with its words. A segment
ends with a sentence or before a long pause. Only a checkpoint that cannot align words writes time tokens: its segments
are those between them, and a time token within a word ends the segment after the word.

The confidence of a word or a segment is the mean of the probabilities of its tokens, as in faster-whisper. Tokens of
punctuation do not count.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Sequence

from worker.backends.common import timestamps
from worker.backends.whisper.decoding import Decoded, compression_ratio
from worker.types import Segment, Span, Token

_OPENING = set("\"'“¿([{-«„")  # punctuation that belongs to the next word
LONGEST_MEDIAN_SEC = 0.7
MOST_BYTES = 4  # of a character in UTF-8, and so tokens of it
TIME_STEP_SEC = 0.02  # what a time token counts


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """The fewest tokens that make whole characters. `edges` are its start and end, if known."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    segment: int
    edges: tuple[float, float] | None

    @property
    def is_spoken(self) -> bool:
        """Return whether the text is more than punctuation."""
        return any(char.isalnum() for char in self.text)


@dataclasses.dataclass(frozen=True, slots=True)
class Word:
    """The units of a word, with the punctuation that belongs to it, and its start and end."""

    units: tuple[Unit, ...]
    start: float = 0.0
    end: float = 0.0

    @property
    def text(self) -> str:
        """Return the text with the space before it."""
        return "".join(unit.text for unit in self.units)

    @property
    def segment(self) -> int:
        """Return the number of the segment: that of the first unit that is more than punctuation."""
        return next((unit.segment for unit in self.units if unit.is_spoken), self.units[0].segment)


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """The start and end of a segment."""

    start: float
    end: float


def mean_probability(found: Sequence[Unit]) -> float:
    """Return the mean probability of the tokens of units, without those of punctuation if there are others."""
    spoken = [unit for unit in found if unit.is_spoken] or found
    return statistics.fmean(math.exp(logprob) for unit in spoken for logprob in unit.logprobs)


def marks(decoded: Decoded, first_time: int, duration_sec: float) -> tuple[list[Mark], list[int]]:
    """Return the segments that the time tokens mark, and the segment's number of each text token.

    A segment without an end token ends at `duration_sec`.
    """
    found: list[Mark] = []
    numbers: list[int] = []
    start, is_open = 0.0, False
    for token in decoded.tokens:
        if token < first_time:
            numbers.append(len(found))
            is_open = True
            continue
        at = min((token - first_time) * TIME_STEP_SEC, duration_sec)
        if is_open:
            found.append(Mark(start, max(start, at)))
        start, is_open = at, False
    if is_open:
        found.append(Mark(start, max(start, duration_sec)))
    return found, numbers


def units(
    decoded: Decoded,
    numbers: Sequence[int],
    edges: Sequence[tuple[float, float]] | None,
    first_time: int,
    read: Callable[[list[int]], str],
) -> list[Unit]:
    """Group the text tokens into units. `numbers` and `edges` are the segment and the times of each text token."""
    text_tokens = [
        (token, value) for token, value in zip(decoded.tokens, decoded.logprobs, strict=True) if token < first_time
    ]
    found: list[Unit] = []
    first = 0
    for last in range(len(text_tokens)):
        tokens = [token for token, _ in text_tokens[first : last + 1]]
        text = read(tokens)
        if text.endswith("\ufffd") and len(tokens) < MOST_BYTES and last + 1 < len(text_tokens):
            continue
        times = (edges[first][0], edges[last][1]) if edges else None
        values = tuple(value for _, value in text_tokens[first : last + 1])
        found.append(Unit(text, tuple(tokens), values, numbers[first], times))
        first = last + 1
    return found


def words(found: Sequence[Unit], *, by_letter: bool) -> list[Word]:
    """Group units into words: at spaces, or for a language without spaces, one word for each unit.

    Punctuation between spaces belongs to the word before it, or to the word after it if it opens something.
    """
    groups: list[list[Unit]] = []
    begins = True
    for unit in found:
        starts = by_letter or begins or unit.text[:1].isspace()
        if starts or not groups:
            groups.append([])
        groups[-1].append(unit)
        begins = unit.text[-1:].isspace()
    return [Word(tuple(group)) for group in _join_punctuation(groups)]


def _join_punctuation(groups: Sequence[list[Unit]]) -> list[list[Unit]]:
    joined: list[list[Unit]] = []
    waiting: list[Unit] = []
    for group in groups:
        if any(unit.is_spoken for unit in group):
            joined.append([*waiting, *group])
            waiting = []
        elif joined and not waiting and not _opens(group):
            joined[-1].extend(group)
        else:
            waiting += group
    if waiting and joined:
        joined[-1].extend(waiting)
    elif waiting:
        joined.append(waiting)
    return joined


def _opens(group: Sequence[Unit]) -> bool:
    text = "".join(unit.text for unit in group)
    return not text.strip() or (text[:1].isspace() and set(text.strip()) <= _OPENING)


def timed(found: Sequence[Word], duration_sec: float) -> list[Word]:
    """Return the words with their start and end, within `duration_sec`.

    Punctuation takes no time. Words that start together share the time up to the next word. A word at the end or the
    start of a sentence that is longer than twice the median, at most 1.4 s, is cut to that length, because the rest is
    a pause.
    """
    edges = _share([_spoken_edges(word) for word in found])
    median = min(LONGEST_MEDIAN_SEC, statistics.median([end - start for start, end in edges if end > start] or [0.0]))
    result: list[Word] = []
    for i, (word, edge) in enumerate(zip(found, edges, strict=True)):
        start, end = _cut_to_length(
            edge,
            2 * median,
            after_pause=i == 0 or timestamps.ends_sentence(found[i - 1].text),
            before_pause=i + 1 == len(found) or timestamps.ends_sentence(word.text),
        )
        result.append(dataclasses.replace(word, start=min(start, duration_sec), end=min(end, duration_sec)))
    return result


def _cut_to_length(
    edge: tuple[float, float], longest: float, *, after_pause: bool, before_pause: bool
) -> tuple[float, float]:
    """Return the start and end of a word, which is at most `longest` seconds long if there is a pause beside it."""
    start, end = edge
    if after_pause:
        return max(start, end - longest), end
    return start, min(end, start + longest) if before_pause else end


def _spoken_edges(word: Word) -> tuple[float, float]:
    """Return the start and end of a word without its punctuation, if that takes any time."""
    whole = [unit.edges for unit in word.units if unit.edges]
    spoken = [unit.edges for unit in word.units if unit.is_spoken and unit.edges]
    if spoken and spoken[-1][1] > spoken[0][0]:
        return spoken[0][0], spoken[-1][1]
    return whole[0][0], whole[-1][1]


def _share(edges: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Share the time of words that start together, or that end the text without any time, evenly."""
    groups: list[list[tuple[float, float]]] = []
    for edge in edges:
        if groups and (edge[0] == groups[-1][0][0] or edge[0] == edges[-1][1]):
            groups[-1].append(edge)
        else:
            groups.append([edge])
    shared: list[tuple[float, float]] = []
    for group in groups:
        start, step = group[0][0], (group[-1][1] - group[0][0]) / len(group)
        shared += [(start + i * step, start + (i + 1) * step) for i in range(len(group))]
    return shared


@dataclasses.dataclass(frozen=True, slots=True)
class Composition:
    """A window's text, words, segments and tokens."""

    text: str
    words: tuple[Span, ...]
    segments: tuple[Segment, ...]
    tokens: tuple[Token, ...]


def compose(
    decoded: Decoded,
    edges: Sequence[tuple[float, float]] | None,
    *,
    first_time: int,
    read: Callable[[list[int]], str],
    duration_sec: float,
    language: str,
    by_letter: bool,
    confidence: bool,
) -> Composition:
    """Return the text, words and segments of a window.

    `edges` are the start and end of each text token. Without them, there are no words, and the segments have the times
    of the time tokens. `confidence` says whether words and segments have one, and whether the tokens are listed.
    """
    spans, numbers = marks(decoded, first_time, duration_sec)
    found = units(decoded, numbers, edges, first_time, read)
    grouped = [word for word in words(found, by_letter=by_letter) if word.text.strip()]
    if edges is None:
        groups = [(list(group), spans[number]) for number, group in itertools.groupby(grouped, lambda one: one.segment)]
    else:
        grouped = timed(grouped, duration_sec)
        sentences = [
            [grouped[i] for i in places]
            for places in timestamps.sentences([Span(one.text, one.start, one.end) for one in grouped])
        ]
        groups = [(group, Mark(group[0].start, group[-1].end)) for group in sentences]
    return Composition(
        "".join(unit.text for unit in found).strip(),
        tuple(span for word in grouped for span in _spans(word, by_letter, confidence)) if edges is not None else (),
        tuple(_segment(group, mark, decoded, language, confidence) for group, mark in groups),
        tuple(Token(unit.text, sum(unit.logprobs)) for unit in found) if confidence else (),
    )


def _spans(word: Word, by_letter: bool, confidence: bool) -> Sequence[Span]:
    """Return the word as a span, or one span for each character of a language without spaces."""
    span = Span(word.text.strip(), word.start, word.end, mean_probability(word.units) if confidence else None)
    if not by_letter:
        return [span]
    return [dataclasses.replace(char, confidence=span.confidence) for char in timestamps.chars([span])]


def _segment(group: Sequence[Word], mark: Mark, decoded: Decoded, language: str, confidence: bool) -> Segment:
    """Return words as a segment with the times of `mark`."""
    found = [unit for word in group for unit in word.units]
    text = "".join(word.text for word in group).strip()
    logprobs = [logprob for unit in found for logprob in unit.logprobs]
    return Segment(
        text,
        mark.start,
        mark.end,
        mean_probability(found) if confidence else None,
        tokens=tuple(token for unit in found for token in unit.tokens),
        temperature=decoded.temperature,
        avg_logprob=statistics.fmean(logprobs),
        compression_ratio=compression_ratio(text),
        no_speech_prob=decoded.no_speech_prob,
        language=language,
    )
