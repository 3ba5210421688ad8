"""A transcript as cues: what a player shows at a time, with its lines broken.

    Transcript ──▶ cues: at most two lines of some 42 characters, and seven seconds

Cues break between words, and always at the end of a segment and where the speaker changes. Words are separated as in
the transcript's text, which puts no space between words in languages such as Chinese. A transcript without word times
has one cue a segment; a transcript without any times has one cue in all. A cue of punctuation alone is left out. Each
channel has cues of its own.

A view may limit the characters of a line, the lines of a cue, and the words of a line. No line or cue then exceeds a
limit, with two exceptions: a word that is longer than a line, and the number of lines of a cue without word times. A
view may also limit the reading speed: a cue is then shown longer, up to the start of the next cue.

The page's `worker/entrypoints/http/ui/subtitles.js` follows the same rules for a view without limits and audio whose
channels are mixed, and a test compares the two.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from worker.protocol.voices import channels, label, segments
from worker.types import Span, Transcript, View

LINE_CHARS = 42
LINES = 2
CUE_CHARS = LINES * LINE_CHARS
CUE_SEC = 7.0
SHORTEST_SEC = 0.5  # the length of a cue whose words have none, because players do not show a cue without a length


@dataclass(frozen=True, slots=True)
class _Words:
    """The words of a cue, each with the space before it, and the span of the first one."""

    texts: tuple[str, ...]
    span: Span
    end: float


def cues(transcript: Transcript, duration_sec: float, view: View) -> list[Span]:
    """Return the cues by their start, with their lines broken. A cue has the speaker and the channel of its words."""
    drafts = [_drafts(channel, duration_sec, view) for channel in channels(transcript)]
    found = [_cue(draft, view) for draft in heapq.merge(*drafts, key=lambda draft: draft.span.start)]
    return _readable(found, duration_sec, view.max_chars_per_sec) if view.max_chars_per_sec else found


def _drafts(transcript: Transcript, duration_sec: float, view: View) -> list[_Words]:
    """Return the words of the cues of one channel."""
    if transcript.text and transcript.words:
        drafts = _timed(transcript, view)
    else:
        spans = segments(transcript, duration_sec)
        drafts = [_Words(tuple(f" {word}" for word in span.text.split()), span, span.end) for span in spans]
    return [draft for draft in drafts if not _is_punctuation("".join(draft.texts))]


def _timed(transcript: Transcript, view: View) -> list[_Words]:
    """Return the words of each cue of a transcript that has the times of its words."""
    segment_ends = set(itertools.accumulate(_letters(segment.text) for segment in transcript.segments))
    drafts: list[_Words] = []
    letters, is_open = 0, False
    for word, text in zip(transcript.words, _spaced_words(transcript), strict=True):
        last = drafts[-1] if is_open and label(drafts[-1].span) == label(word) else None
        if last and _fits((*last.texts, text), view) and word.end - last.span.start <= CUE_SEC:
            drafts[-1] = _Words((*last.texts, text), last.span, max(last.end, word.end))
        else:
            drafts.append(_Words((text,), word, word.end))
        letters += _letters(word.text)
        is_open = letters not in segment_ends
    return drafts


def _letters(text: str) -> int:
    """Return the number of characters that are not white space.

    This count, not the times, locates the words in the segments: a model may time words and segments independently.
    """
    return sum(map(len, text.split()))


def _spaced_words(transcript: Transcript) -> list[str]:
    """Return the words, each after a space unless the text has it directly after the previous word."""
    words, position = [], 0
    for word in transcript.words:
        found = transcript.text.find(word.text, position, position + len(word.text) + CUE_CHARS)
        words.append(word.text if found == position else f" {word.text}")
        position = position if found < 0 else found + len(word.text)
    return words


def _cue(words: _Words, view: View) -> Span:
    """Return one cue of these words, with its lines broken between words."""
    lines = _balanced(words.texts, view) if _has_limits(view) else _in_the_middle(words.texts)
    start, end = words.span.start, words.end
    shown = end if round(end * 1000) > round(start * 1000) else start + SHORTEST_SEC
    return Span("\n".join(lines), start, shown, speaker=words.span.speaker, channel=words.span.channel)


def _readable(found: Sequence[Span], duration_sec: float, chars_per_sec: float) -> list[Span]:
    """Return the cues, each long enough to be read at this speed unless the next cue starts before."""
    nexts = [*(cue.start for cue in found[1:]), duration_sec]
    return [
        replace(cue, end=max(cue.end, min(after, cue.start + len(cue.text) / chars_per_sec)))
        for cue, after in zip(found, nexts, strict=True)
    ]


def _is_punctuation(text: str) -> bool:
    return all(char.isspace() or unicodedata.category(char).startswith("P") for char in text)


def _has_limits(view: View) -> bool:
    return bool(view.max_line_width or view.max_line_count or view.max_words_per_line)


def _fits(texts: Sequence[str], view: View) -> bool:
    """Return whether one cue may hold the words."""
    if not _has_limits(view):
        return len("".join(texts).lstrip(" ")) <= CUE_CHARS
    count = view.max_line_count or (1 if view.max_words_per_line else LINES)
    return len(_lines(texts, view.max_line_width or LINE_CHARS, view)) <= count


def _in_the_middle(texts: Sequence[str]) -> list[str]:
    """Return one line, or two if the text is too long for one. Two lines break as near to the middle as possible."""
    text = "".join(texts).lstrip(" ")
    breaks = list(itertools.accumulate(map(len, (texts[0].lstrip(" "), *texts[1:-1])))) if len(texts) > 1 else []
    if len(text) <= LINE_CHARS or not breaks:
        return [text]
    middle = min(breaks, key=lambda position: abs(position - len(text) // 2))
    return [text[:middle], text[middle:].lstrip(" ")]


def _balanced(texts: Sequence[str], view: View) -> list[str]:
    """Return as few lines as the view's limits allow, of widths as equal as possible."""
    width = view.max_line_width or LINE_CHARS
    count = len(_lines(texts, width, view))
    narrowest = bisect.bisect_left(range(width), -count, key=lambda narrower: -len(_lines(texts, narrower, view)))
    return _lines(texts, narrowest, view)


def _lines(texts: Sequence[str], width: int, view: View) -> list[str]:
    """Return lines of at most `width` characters, each filled before the next one begins."""
    limit = view.max_words_per_line or sys.maxsize
    lines: list[str] = []
    words = 0
    for text in texts:
        if lines and len(lines[-1]) + len(text) <= width and words < limit:
            lines[-1] += text
            words += 1
        else:
            lines.append(text.lstrip(" "))
            words = 1
    return lines
