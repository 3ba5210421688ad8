"""Word and character errors between a label and a transcript. Pure functions over jiwer's alignment.

    whisper   the normalizer of the Whisper paper (Radford et al. 2022, appendix C) from whisper-normalizer: the English
              normalizer (numbers, contractions, British spelling) if the language is English, else the paper's basic
              one. Both drop punctuation and all text in brackets.
    plain     lower case; white space at the ends is dropped and the rest becomes single spaces. Punctuation counts.
    basic     the earlier name of `plain`. It is not the paper's basic normalizer.

The word error rate is (substitutions + insertions + deletions) / reference words, and the character error rate is the
same over characters, including the spaces between words. A rate exceeds 1 if the hypothesis has many insertions. An
empty reference has no words to divide by; its rate is the number of insertions, as if it had one word, hence 0 for an
empty hypothesis. In a corpus, these insertions add to those of the other files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

PLAIN = ("plain", "basic")
NORMALIZERS = ("whisper", *PLAIN)


@dataclass(frozen=True, slots=True)
class Counts:
    """The outcome of the words, or characters, of a reference. `hits` counts the correct ones."""

    hits: int = 0
    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0

    @property
    def errors(self) -> int:
        """Return substitutions + insertions + deletions."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def reference(self) -> int:
        """Return the number of words, or characters, in the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Return errors / reference; for an empty reference, the number of insertions."""
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
    """A run of words that are all equal, all substituted (one word for one), all inserted, or all deleted.

    `reference` is empty for an insertion, and `hypothesis` for a deletion.
    """

    kind: Literal["equal", "substitute", "insert", "delete"]
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]


def normalize(text: str, normalizer: str, language: str | None = None) -> str:
    """Return the text in the form that is compared: normalized words, separated by single spaces.

    `normalizer` is one of NORMALIZERS. `language` is the ISO code of the text, or None if it is not known.
    """
    if normalizer == "whisper":
        text = _whisper(text, english=(language or "").lower().partition("-")[0] == "en")
    return " ".join(text.lower().split())


def _whisper(text: str, *, english: bool) -> str:
    """Return what Whisper's normalizer makes of a text, in time linear in its length."""
    normalize_english, normalize_any = _normalizers()
    text = " ".join(_without_unclosed(_without_unclosed(text, "[<", "]>"), "(", ")").split())
    if not english:
        return normalize_any(text)
    try:
        return normalize_english(text)
    except (AssertionError, ValueError):  # a number of more digits than Python reads
        return normalize_any(text)


def _without_unclosed(text: str, opening: str, closing: str) -> str:
    """Return the text with spaces for the brackets that nothing closes, as the normalizer has them.

    The normalizer's expressions take time quadratic in the number of these brackets.
    """
    end = max(map(text.rfind, closing)) + 1
    return text[:end] + text[end:].translate(dict.fromkeys(map(ord, opening), " "))


def words(reference: str, hypothesis: str) -> Counts:
    """Return the word counts of a normalized hypothesis against a normalized reference."""
    import jiwer

    return _counts(jiwer.process_words(reference, hypothesis))


def characters(reference: str, hypothesis: str) -> Counts:
    """Return the character counts of a normalized hypothesis against a normalized reference."""
    import jiwer

    return _counts(jiwer.process_characters(reference, hypothesis))


def align(reference: str, hypothesis: str) -> tuple[Chunk, ...]:
    """Align two normalized texts: the chunks hold all words of both, in order."""
    import jiwer

    alignment = jiwer.process_words(reference, hypothesis)
    reference_words, hypothesis_words = alignment.references[0], alignment.hypotheses[0]
    return tuple(
        Chunk(
            chunk.type,  # type: ignore[arg-type]
            tuple(reference_words[chunk.ref_start_idx : chunk.ref_end_idx]),
            tuple(hypothesis_words[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in alignment.alignments[0]
    )


def _counts(alignment: Any) -> Counts:
    return Counts(alignment.hits, alignment.substitutions, alignment.insertions, alignment.deletions)


@functools.cache
def _normalizers() -> tuple[Callable[[str], str], Callable[[str], str]]:
    """Return Whisper's normalizer for English and the one for any language."""
    from whisper_normalizer.basic import BasicTextNormalizer  # type: ignore[import-untyped]
    from whisper_normalizer.english import EnglishTextNormalizer  # type: ignore[import-untyped]

    return EnglishTextNormalizer(), BasicTextNormalizer()
