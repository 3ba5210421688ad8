"""A transcript and turns → the transcript with speakers. Pure functions.

    words ── the turn that overlaps most, else the nearest ──▶ words with speakers
    segments ── split where the speaker of their words changes ──▶ segments with speakers

A word has one speaker. Texts are cut and never changed: the words and the text of a transcript stay what they are.
If there is no turn, the speakers stay None, because nothing is known of them.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice

from worker.types import Segment, Span, SpeakerTurn, Transcript


def assign(transcript: Transcript, turns: Sequence[SpeakerTurn]) -> Transcript:
    """Return the transcript with a speaker for each word and segment. The turns may overlap."""
    if not turns:
        return transcript
    find = _Turns(turns)
    words = tuple(dataclasses.replace(word, speaker=find.speaker(word.start, word.end)) for word in transcript.words)
    of_segments = _words_of_segments(transcript.segments, words)
    if of_segments is None:
        segments = tuple(
            dataclasses.replace(segment, speaker=find.speaker(segment.start, segment.end))
            for segment in transcript.segments
        )
    else:
        segments = tuple(
            part
            for segment, own in zip(transcript.segments, of_segments, strict=True)
            for part in (_split(segment, own) if own else [_whole(segment, find.speaker(segment.start, segment.end))])
        )
    return dataclasses.replace(transcript, words=words, segments=segments)


class _Turns:
    """The turns, for the question who speaks at a time."""

    def __init__(self, turns: Sequence[SpeakerTurn]) -> None:
        self._turns = sorted(turns, key=lambda turn: (turn.start, turn.end))
        # For each turn, the turn with the latest end among itself and those before it. These ends never fall.
        self._last = list(accumulate(self._turns, _that_ends_last))

    def speaker(self, start: float, end: float) -> str:
        """Return the speaker whose turns overlap the times most, else that of the nearest turn; the earlier of two."""
        overlaps: dict[str, float] = {}
        for turn in self._from(start):
            if turn.start >= end:
                break
            if (overlap := min(end, turn.end) - max(start, turn.start)) > 0:
                overlaps[turn.speaker] = overlaps.get(turn.speaker, 0.0) + overlap
        if overlaps:
            return max(overlaps, key=lambda name: overlaps[name])
        return self._nearest(start, end).speaker

    def _from(self, start: float) -> Iterator[SpeakerTurn]:
        """Yield the turns in order, without those that end before `start`."""
        return islice(self._turns, bisect_left(self._last, start, key=lambda turn: turn.end), None)

    def _nearest(self, start: float, end: float) -> SpeakerTurn:
        after = bisect_left(self._turns, start, key=lambda turn: turn.start)
        before = self._last[after - 1] if after else None
        later = self._turns[after] if after < len(self._turns) else None
        if before is None or (later is not None and later.start - end < start - before.end):
            assert later is not None
            return later
        return before


def _that_ends_last(one: SpeakerTurn, other: SpeakerTurn) -> SpeakerTurn:
    return other if other.end > one.end else one


def _words_of_segments(segments: Sequence[Span], words: Sequence[Span]) -> list[list[Span]] | None:
    """Return the words of each segment, or None if the segments do not consist of the words.

    Words without letters, which may stand in either of two segments, are left out.
    """
    if _compact(segments) != _compact(words):
        return None
    ends = list(accumulate(len(_letters(segment.text)) for segment in segments))
    found: list[list[Span]] = [[] for _ in segments]
    position = 0
    for word in words:
        if not (length := len(_letters(word.text))):
            continue
        number = bisect_right(ends, position)
        position += length
        if position > ends[number]:
            return None  # the word is in two segments
        found[number].append(word)
    return found


def _split(segment: Span, words: Sequence[Span]) -> Iterator[Span]:
    """Yield the parts of a segment, each of one speaker. `words` are those of the segment, at least one."""
    groups: list[list[Span]] = []
    for word in words:
        if groups and groups[-1][-1].speaker == word.speaker:
            groups[-1].append(word)
        else:
            groups.append([word])
    if len(groups) == 1:
        yield _whole(segment, words[0].speaker)
        return
    rest = segment.text
    for number, group in enumerate(groups):
        is_last = number == len(groups) - 1
        cut = len(rest) if is_last else _place(rest, sum(len(_letters(word.text)) for word in group))
        yield _part(
            segment,
            rest[:cut].strip(),
            segment.start if number == 0 else group[0].start,
            segment.end if is_last else group[-1].end,
            group,
        )
        rest = rest[cut:]


def _whole(segment: Span, speaker: str | None) -> Span:
    return dataclasses.replace(segment, speaker=speaker)


def _part(segment: Span, text: str, start: float, end: float, words: Sequence[Span]) -> Span:
    """Return a part of a segment. What the decoder reports of the whole segment's tokens is not known of the part."""
    sure = [word.confidence for word in words if word.confidence is not None]
    confidence = sum(sure) / len(sure) if len(sure) == len(words) else None
    part = dataclasses.replace(
        segment, text=text, start=start, end=end, confidence=confidence, speaker=words[0].speaker
    )
    if isinstance(part, Segment):
        return dataclasses.replace(part, tokens=None, avg_logprob=None, compression_ratio=None)
    return part


def _place(text: str, letters: int) -> int:
    """Return how many characters of the text hold so many letters, and the spaces around them."""
    for place, char in enumerate(text):
        if letters == 0 and not char.isspace():
            return place
        letters -= not char.isspace()
    return len(text)


def _letters(text: str) -> str:
    """Return the text without spaces."""
    return "".join(text.split())


def _compact(spans: Sequence[Span]) -> str:
    return "".join(_letters(span.text) for span in spans)
