"""A transcript as subtitles: SubRip (.srt) or WebVTT (.vtt).

    Transcript ──▶ cues: at most two lines of 42 characters and seven seconds ──▶ srt or vtt

Cues break between words, and always at the end of a segment. Words are separated as in the transcript's text, which
puts no space between words in languages such as Chinese. A transcript without word times has one cue a segment; a
transcript without any times has one cue in all.

The page's `worker/entrypoints/http/ui/subtitles.js` follows the same rules, and a test compares the two.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from worker.types import Span, Transcript

LINE_CHARS = 42
CUE_CHARS = 2 * LINE_CHARS
CUE_SEC = 7.0
SHORTEST_SEC = 0.5  # the length of a cue whose words have none, because players do not show a cue without a length


def srt(transcript: Transcript, duration_sec: float) -> str:
    """Return the transcript of a clip of `duration_sec` seconds as SubRip text; "" if nothing was said."""
    blocks = []
    for number, cue in enumerate(_cues(transcript, duration_sec), 1):
        text = cue.text.replace("-->", "->")  # a line with an arrow would be read as times
        times = f"{_clock(cue.start)} --> {_clock(cue.end)}".replace(".", ",")
        blocks.append(f"{number}\n{times}\n{text}\n")
    return "\n".join(blocks)


def vtt(transcript: Transcript, duration_sec: float) -> str:
    """Return the transcript of a clip of `duration_sec` seconds as WebVTT text; a header alone if nothing was said."""
    blocks = ["WEBVTT\n"]
    for cue in _cues(transcript, duration_sec):
        text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(cue.start)} --> {_clock(cue.end)}\n{text}\n")
    return "\n".join(blocks)


def _cues(transcript: Transcript, duration_sec: float) -> list[Span]:
    """Return the cues in order, with their lines broken."""
    if not transcript.text:
        return []
    if not transcript.words:
        spans = transcript.segments or (Span(transcript.text, 0.0, duration_sec),)
        return [_cue([f" {word}" for word in span.text.split()], span.start, span.end) for span in spans]
    segment_ends = set(itertools.accumulate(_letters(segment.text) for segment in transcript.segments))
    cues: list[tuple[list[str], float, float]] = []
    letters, is_open = 0, False
    for word, text in zip(transcript.words, _spaced_words(transcript), strict=True):
        texts, start, end = cues[-1] if is_open else ([], 0.0, 0.0)
        if texts and len("".join(texts).lstrip(" ")) + len(text) <= CUE_CHARS and word.end - start <= CUE_SEC:
            cues[-1] = ([*texts, text], start, max(end, word.end))
        else:
            cues.append(([text], word.start, word.end))
        letters += _letters(word.text)
        is_open = letters not in segment_ends
    return [_cue(*cue) for cue in cues]


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


def _cue(texts: Sequence[str], start: float, end: float) -> Span:
    """Return one cue of these words; text that is too long for a line breaks near the middle, between words."""
    text = "".join(texts).lstrip(" ")
    breaks = list(itertools.accumulate(map(len, (texts[0].lstrip(" "), *texts[1:-1])))) if len(texts) > 1 else []
    if len(text) > LINE_CHARS and breaks:
        middle = min(breaks, key=lambda position: abs(position - len(text) // 2))
        text = f"{text[:middle]}\n{text[middle:].lstrip(' ')}"
    return Span(text, start, end if round(end * 1000) > round(start * 1000) else start + SHORTEST_SEC)


def _clock(seconds: float) -> str:
    """Return HH:MM:SS.mmm."""
    millis = round(seconds * 1000)
    return f"{millis // 3_600_000:02d}:{millis // 60_000 % 60:02d}:{millis // 1000 % 60:02d}.{millis % 1000:03d}"
