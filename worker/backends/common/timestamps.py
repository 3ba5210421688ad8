"""Timed tokens → words → segments. Pure functions; times are in seconds.

NeMo can group tokens too, but only through a switch on its decoder that slows every batch and is never switched back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from worker.types import Span

SENTENCE_END = (".", "?", "!", "。", "？", "！")
# In text without punctuation, a pause longer than this ends a segment.
PAUSE_SEC = 2.0
_JOINS_LEFT = set(".,?!;:%)]}»”…。，？！")


def words(tokens: Iterable[Span], *, marker: str = "▁") -> tuple[Span, ...]:
    """Group tokens into words.

    A token that starts with `marker` or with a space starts a word. Punctuation that forms a token by itself joins the
    preceding word, as it does in the text.
    """
    found: list[Span] = []
    begin = True
    for token in tokens:
        text = token.text.replace(marker, " ")
        begin = begin or text.startswith(" ")
        bare = text.strip()
        if not bare:
            continue
        joins = set(bare) <= _JOINS_LEFT
        if found and (joins or not begin):
            last = found[-1]
            end = last.end if joins else max(last.end, token.end)  # punctuation takes no time of its own
            found[-1] = Span(last.text + bare, last.start, end)
        else:
            found.append(Span(bare, token.start, token.end))
        begin = text.endswith(" ")
    return tuple(found)


def chars(spans: Iterable[Span], *, marker: str = "▁") -> tuple[Span, ...]:
    """Split tokens or words into characters. The characters of a span share its time evenly."""
    found: list[Span] = []
    for span in spans:
        letters = span.text.replace(marker, " ").strip()
        step = (span.end - span.start) / max(1, len(letters))
        found += [Span(letter, span.start + i * step, span.start + (i + 1) * step) for i, letter in enumerate(letters)]
    return tuple(found)


def segments(words: Sequence[Span]) -> tuple[Span, ...]:
    """Group words into segments. A segment ends with a sentence or before a pause longer than `PAUSE_SEC`."""
    groups: list[list[Span]] = []
    for word in words:
        if not groups or groups[-1][-1].text.endswith(SENTENCE_END) or word.start - groups[-1][-1].end > PAUSE_SEC:
            groups.append([])
        groups[-1].append(word)
    return tuple(Span(" ".join(w.text for w in group), group[0].start, group[-1].end) for group in groups)
