"""A transcript as subtitles, SubRip (.srt) or WebVTT (.vtt), or as the table of its segments (.tsv).

    Transcript ──▶ cues: at most two lines of some 42 characters, and seven seconds ──▶ srt or vtt

Cues break between words, and always at the end of a segment. Words are separated as in the transcript's text, which
puts no space between words in languages such as Chinese. A transcript without word times has one cue a segment; a
transcript without any times has one cue in all. A cue of punctuation alone is left out.

A view may limit the characters of a line, the lines of a cue, and the words of a line. No line or cue then exceeds a
limit, with two exceptions: a word that is longer than a line, and the number of lines of a cue without word times.

The page's `worker/entrypoints/http/ui/subtitles.js` follows the same rules for a view without limits, and a test
compares the two.
"""

from __future__ import annotations

import bisect
import itertools
import sys
import unicodedata
from collections.abc import Sequence

from worker.types import Span, Transcript, View

LINE_CHARS = 42
LINES = 2
CUE_CHARS = LINES * LINE_CHARS
CUE_SEC = 7.0
SHORTEST_SEC = 0.5  # the length of a cue whose words have none, because players do not show a cue without a length


_VIEW = View()


def srt(transcript: Transcript, duration_sec: float, view: View = _VIEW) -> str:
    """Return the transcript of a clip of `duration_sec` seconds as SubRip text; "" if nothing was said."""
    blocks = []
    for number, cue in enumerate(_cues(transcript, duration_sec, view), 1):
        text = cue.text.replace("-->", "->")  # a line with an arrow would be read as times
        times = f"{_clock(cue.start)} --> {_clock(cue.end)}".replace(".", ",")
        blocks.append(f"{number}\n{times}\n{text}\n")
    return "\n".join(blocks)


def vtt(transcript: Transcript, duration_sec: float, view: View = _VIEW) -> str:
    """Return the transcript of a clip of `duration_sec` seconds as WebVTT text; a header alone if nothing was said."""
    blocks = ["WEBVTT\n"]
    for cue in _cues(transcript, duration_sec, view):
        text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(cue.start)} --> {_clock(cue.end)}\n{text}\n")
    return "\n".join(blocks)


def tsv(transcript: Transcript, duration_sec: float) -> str:
    """Return the segments of the transcript, or its whole text, as the command line of Whisper writes them.

    The columns are the start and the end in milliseconds, and the text.
    """
    lines = ["start\tend\ttext\n"]
    for span in _segments(transcript, duration_sec):
        lines.append(f"{round(span.start * 1000)}\t{round(span.end * 1000)}\t{' '.join(span.text.split())}\n")
    return "".join(lines)


def _segments(transcript: Transcript, duration_sec: float) -> Sequence[Span]:
    """Return the segments; the whole text as one, if it has no segments; or nothing, if there is no text."""
    if not transcript.text:
        return ()
    return transcript.segments or (Span(transcript.text, 0.0, duration_sec),)


def _cues(transcript: Transcript, duration_sec: float, view: View) -> list[Span]:
    """Return the cues in order, with their lines broken."""
    if transcript.text and transcript.words:
        cues = _timed(transcript, view)
    else:
        spans = _segments(transcript, duration_sec)
        cues = [([f" {word}" for word in span.text.split()], span.start, span.end) for span in spans]
    return [_cue(texts, start, end, view) for texts, start, end in cues if not _is_punctuation("".join(texts))]


def _timed(transcript: Transcript, view: View) -> list[tuple[list[str], float, float]]:
    """Return the words of each cue with its start and end, of a transcript that has the times of its words."""
    segment_ends = set(itertools.accumulate(_letters(segment.text) for segment in transcript.segments))
    cues: list[tuple[list[str], float, float]] = []
    letters, is_open = 0, False
    for word, text in zip(transcript.words, _spaced_words(transcript), strict=True):
        texts, start, end = cues[-1] if is_open else ([], 0.0, 0.0)
        if texts and _fits([*texts, text], view) and word.end - start <= CUE_SEC:
            cues[-1] = ([*texts, text], start, max(end, word.end))
        else:
            cues.append(([text], word.start, word.end))
        letters += _letters(word.text)
        is_open = letters not in segment_ends
    return cues


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


def _cue(texts: Sequence[str], start: float, end: float, view: View) -> Span:
    """Return one cue of these words, with its lines broken between words."""
    lines = _balanced(texts, view) if _has_limits(view) else _in_the_middle(texts)
    text = "\n".join(lines)
    return Span(text, start, end if round(end * 1000) > round(start * 1000) else start + SHORTEST_SEC)


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


def _clock(seconds: float) -> str:
    """Return HH:MM:SS.mmm."""
    millis = round(seconds * 1000)
    return f"{millis // 3_600_000:02d}:{millis // 60_000 % 60:02d}:{millis // 1000 % 60:02d}.{millis % 1000:03d}"
