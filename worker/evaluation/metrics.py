"""Two texts → how many of their words and characters differ, and where. Pure functions over jiwer's alignment.

    basic     lower case, without white space at the ends, any other white space one space. Punctuation counts.
    whisper   the normaliser of Whisper's paper, by whisper-normalizer: its English one where the language is English
              (numbers, contractions, British spelling), its basic one otherwise. Both drop punctuation and
              whatever stands in brackets.

A character error rate counts the spaces between words as characters. A rate is errors / reference words: more than 1
where much was inserted. Where the reference is empty there is nothing to divide by, and the rate is the number of
insertions, as if it had one word: 0 if nothing was heard; in a corpus these insertions are added to the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

NORMALIZERS = ("basic", "whisper")


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of a reference's words, or characters. `hits` are those that were right."""

    hits: int = 0
    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.insertions + self.deletions

    @property
    def reference(self) -> int:
        """How many the reference has."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        return self.errors / max(self.reference, 1)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.insertions + other.insertions,
            self.deletions + other.deletions,
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of words that are all alike, all replaced (as many by as many), all inserted, or all deleted."""

    kind: Literal["equal", "substitute", "insert", "delete"]
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]


def normalize(text: str, normalizer: str = "basic", language: str | None = None) -> str:
    """The text as it is compared: its words with one space between them. `language`: an ISO code, if it is known."""
    if normalizer == "whisper":
        text = _whisper(english=(language or "").lower().partition("-")[0] == "en")(text)
    return " ".join(text.lower().split())


def words(reference: str, hypothesis: str) -> Counts:
    """The word errors of a normalised text."""
    import jiwer

    return _counts(jiwer.process_words(reference, hypothesis))


def characters(reference: str, hypothesis: str) -> Counts:
    """The character errors of a normalised text."""
    import jiwer

    return _counts(jiwer.process_characters(reference, hypothesis))


def align(reference: str, hypothesis: str) -> tuple[Chunk, ...]:
    """Two normalised texts side by side, all of their words in order."""
    import jiwer

    done = jiwer.process_words(reference, hypothesis)
    given, heard = done.references[0], done.hypotheses[0]
    return tuple(
        Chunk(
            chunk.type,  # type: ignore[arg-type]
            tuple(given[chunk.ref_start_idx : chunk.ref_end_idx]),
            tuple(heard[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in done.alignments[0]
    )


def _counts(done: Any) -> Counts:
    return Counts(done.hits, done.substitutions, done.insertions, done.deletions)


@functools.cache
def _whisper(*, english: bool) -> Callable[[str], str]:
    from whisper_normalizer.basic import BasicTextNormalizer  # type: ignore[import-untyped]
    from whisper_normalizer.english import EnglishTextNormalizer  # type: ignore[import-untyped]

    made: Callable[[str], str] = EnglishTextNormalizer() if english else BasicTextNormalizer()
    return made
