"""From timed tokens to words, and from words to segments. Pure functions; times in seconds.

NeMo can do this too, but only by a switch on its decoder that slows every batch and is never switched back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from worker.types import Span

SENTENCE_END = (".", "?", "!", "。", "？", "！")
# Without punctuation a pause this long ends a segment.
PAUSE_SEC = 2.0
_JOINS_LEFT = set(".,?!;:%)]}»”…。，？！")


def words(tokens: Iterable[Span], *, marker: str = "▁") -> tuple[Span, ...]:
    """Groups tokens into words. A token that begins with `marker` (or is a space) begins a word; lone punctuation joins
    the word before it, as it does in the text."""
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
    """The letters of tokens or words; those of one span share its time evenly."""
    found: list[Span] = []
    for span in spans:
        letters = span.text.replace(marker, " ").strip()
        step = (span.end - span.start) / max(1, len(letters))
        found += [Span(letter, span.start + i * step, span.start + (i + 1) * step) for i, letter in enumerate(letters)]
    return tuple(found)


def segments(spoken: Sequence[Span]) -> tuple[Span, ...]:
    """Groups words into segments, which end with a sentence or before a long pause."""
    groups: list[list[Span]] = []
    for word in spoken:
        if not groups or groups[-1][-1].text.endswith(SENTENCE_END) or word.start - groups[-1][-1].end > PAUSE_SEC:
            groups.append([])
        groups[-1].append(word)
    return tuple(Span(" ".join(w.text for w in group), group[0].start, group[-1].end) for group in groups)
