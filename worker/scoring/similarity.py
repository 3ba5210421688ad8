"""The similarity of two clips, by their features and by their words. Pure functions."""

from __future__ import annotations

import unicodedata

import numpy as np
from rapidfuzz import fuzz

APOSTROPHES = "'’"  # dropped inside a word, while other punctuation separates words


def audio_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Return the cosine similarity, from -1 to 1, of two vectors of shape (width,); 0 if either is all zeros."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return min(1.0, max(-1.0, float(a @ b) / norm)) if norm else 0.0


def text_similarity(one: str, other: str) -> float:
    """Return the similarity of two texts from 0 to 1, regardless of case and punctuation.

    The measure is rapidfuzz's `ratio`, the normalized indel similarity: twice the length of the longest common
    subsequence of characters, divided by the length of both texts. Two texts without any letter have similarity 1; a
    text with letters and a text without any have similarity 0.
    """
    a, b = normalize(one), normalize(other)
    return float(fuzz.ratio(a, b)) / 100 if a or b else 1.0


def normalize(text: str) -> str:
    """Return the words alone, case-folded, separated by single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(_without_punctuation(char) for char in folded).split())


def _without_punctuation(char: str) -> str:
    if char in APOSTROPHES:
        return ""
    return " " if unicodedata.category(char)[0] in "PS" else char
