"""Timed tokens → words → segments. Pure functions; times are in seconds.

    tokens ── group ──▶ tokens of each word ── words ──▶ words ── segments ──▶ segments
    words of another source, tokens ── tokens_of ──▶ tokens of each word

Confidences follow NeMo's definition (`nemo.collections.asr.parts.utils.asr_confidence_utils`): a token's is NeMo's
measure `max_prob` with `alpha: 1`, and a word's is that of its least likely token (`aggregation: min`). NeMo does not
define one for segments: a segment's is the mean of its words' confidences.

NeMo can group tokens too, but only through a switch on its decoder that slows every batch and is never switched back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from worker.types import Segment, Span, Token

SENTENCE_END = (".", "?", "!", "。", "？", "！")
# In text without punctuation, a pause longer than this ends a segment.
PAUSE_SEC = 2.0
_JOINS_LEFT = set(".,?!;:%)]}»”…。，？！")

S = TypeVar("S", bound=Span)


@dataclass(frozen=True, slots=True)
class TimedToken(Span):
    """A token of the text, with its marker or space, and when it is spoken."""

    id: int = -1
    """The token's number in the vocabulary."""
    logprob: float | None = None
    """The natural logarithm of the token's probability. None: the request does not ask."""


def confidence(logprob: float, vocabulary: int) -> float:
    """Return the confidence in a token of a vocabulary of that size: 1 for a certain token, 0 for a pure guess.

    The formula is NeMo's `max_prob` with `alpha: 1`, (p V - 1) / (V - 1). The size counts the blank, if there is one.
    """
    return max(0.0, (math.exp(logprob) * vocabulary - 1) / (vocabulary - 1))


def plain(tokens: Iterable[TimedToken], *, marker: str = "▁") -> tuple[Token, ...]:
    """Return the tokens whose probability is known, for `Transcript.tokens`."""
    return tuple(Token(token.text.replace(marker, " "), token.logprob) for token in tokens if token.logprob is not None)


def group(tokens: Iterable[S], *, marker: str = "▁") -> list[list[S]]:
    """Return the tokens of each word.

    A token that starts with `marker` or with a space starts a word. Punctuation that forms a token by itself joins the
    preceding word, as it does in the text. A marker alone belongs to the word that the next token continues.
    """
    groups: list[list[S]] = []
    begin = True
    alone: list[S] = []
    for token in tokens:
        text = token.text.replace(marker, " ")
        begin = begin or text.startswith(" ")
        bare = text.strip()
        if not bare:
            alone = [token] if token.text == marker else alone
            continue
        own = [token] if text.startswith(" ") else [*alone, token]
        if groups and (set(bare) <= _JOINS_LEFT or not begin):
            groups[-1] += own
        else:
            groups.append(own)
        begin = text.endswith(" ")
        alone = []
    return groups


def words(tokens: Iterable[Span], *, marker: str = "▁") -> tuple[Span, ...]:
    """Group tokens into words, as `group` does."""
    return tuple(_word(own, marker) for own in group(tokens, marker=marker))


def chars(spans: Iterable[Span], *, marker: str = "▁") -> tuple[Span, ...]:
    """Split tokens or words into characters, which have the confidence of their span and share its time evenly."""
    found: list[Span] = []
    for span in spans:
        letters = span.text.replace(marker, " ").strip()
        step = (span.end - span.start) / max(1, len(letters))
        found += [
            Span(letter, span.start + i * step, span.start + (i + 1) * step, span.confidence)
            for i, letter in enumerate(letters)
        ]
    return tuple(found)


def tokens_of(words: Sequence[Span], tokens: Sequence[S], *, marker: str = "▁") -> list[list[S]]:
    """Return the tokens of each word of a text that is not divided as `group` divides it.

    The letters of the tokens must be those of the words. If they differ, the result is empty.
    """
    groups = group(tokens, marker=marker)
    starts: list[list[S]] = []  # for each letter of the text, the tokens that it starts or continues
    letters = ""
    for own in groups:
        held: list[S] = []
        for token in own:
            bare = token.text.replace(marker, " ").strip()
            held.append(token)
            if bare:
                letters += bare
                starts += [held] * len(bare)
                held = []
    position, found = 0, []
    for word in words:
        bare = "".join(word.text.split())
        if not letters.startswith(bare, position):
            return []
        parts = starts[position : position + len(bare)]
        found.append([token for i, part in enumerate(parts) if i == 0 or part is not parts[i - 1] for token in part])
        position += len(bare)
    return found


def with_confidence(words: Sequence[Span], tokens: Sequence[Sequence[Span]]) -> tuple[Span, ...]:
    """Return the words with the confidence of their tokens, or as they are if `tokens` is empty."""
    if not tokens:
        return tuple(words)
    return tuple(replace(word, confidence=_lowest(own)) for word, own in zip(words, tokens, strict=True))


def segments(words: Sequence[Span], tokens: Sequence[Sequence[TimedToken]] = ()) -> tuple[Span, ...]:
    """Group words into segments. A segment ends with a sentence or before a pause longer than `PAUSE_SEC`.

    `tokens` are the tokens of each word. With them, each segment reports its own and their mean log probability.
    """
    found: list[Span] = []
    for places in sentences(words):
        span = segment([words[i] for i in places])
        found.append(reporting(span, [token for i in places for token in tokens[i]]) if tokens else span)
    return tuple(found)


def sentences(words: Sequence[Span]) -> list[list[int]]:
    """Return the places of the words of each sentence. A pause longer than `PAUSE_SEC` ends a sentence too."""
    groups: list[list[int]] = []
    for i, word in enumerate(words):
        last = words[i - 1]
        if not groups or ends_sentence(last.text) or word.start - last.end > PAUSE_SEC:
            groups.append([])
        groups[-1].append(i)
    return groups


def ends_sentence(text: str) -> bool:
    """Return whether a sentence ends with the word, in quotation marks or brackets if they close with it."""
    return text.rstrip("\"'”’»)] ").endswith(SENTENCE_END)


def segment(words: Sequence[Span]) -> Span:
    """Return the segment of these words, of which there is at least one."""
    known = [word.confidence for word in words if word.confidence is not None]
    mean = sum(known) / len(known) if len(known) == len(words) else None
    return Span(" ".join(word.text for word in words), words[0].start, words[-1].end, mean)


def reporting(span: Span, tokens: Sequence[TimedToken]) -> Segment:
    """Return the span as a segment with its tokens and their mean log probability."""
    logprobs = [token.logprob for token in tokens if token.logprob is not None]
    return Segment(
        span.text,
        span.start,
        span.end,
        span.confidence,
        tokens=tuple(token.id for token in tokens),
        avg_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
    )


def _word(tokens: Sequence[Span], marker: str) -> Span:
    bare = [(token.text.replace(marker, " ").strip(), token) for token in tokens]
    spoken = [(text, token) for text, token in bare if text]
    start, end = spoken[0][1].start, spoken[0][1].end
    for text, token in spoken[1:]:
        if not set(text) <= _JOINS_LEFT:  # punctuation takes no time of its own
            end = max(end, token.end)
    return Span("".join(text for text, _ in spoken), start, end, _lowest(tokens))


def _lowest(tokens: Sequence[Span]) -> float | None:
    """Return the lowest of the confidences, or None if one is unknown."""
    known = [token.confidence for token in tokens if token.confidence is not None]
    return min(known) if known and len(known) == len(tokens) else None
