"""How alike two clips are: by their features and by their words. Pure functions."""

from __future__ import annotations

import unicodedata

import numpy as np
from rapidfuzz import fuzz

APOSTROPHES = "'’"  # within a word: dropped, where other punctuation parts words


def audio_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The cosine of two vectors of shape (width,): -1 to 1, not stretched. 0 if one of them is all zeros, like no
    other."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return min(1.0, max(-1.0, float(a @ b) / size)) if size else 0.0


def text_similarity(one: str, other: str) -> float:
    """0 to 1: the share of letters that both texts have in the same order, case and punctuation aside. Two texts
    without a letter are alike (1), one without and one with are not (0)."""
    a, b = normalized(one), normalized(other)
    return float(fuzz.ratio(a, b)) / 100 if a or b else 1.0


def normalized(text: str) -> str:
    """The words alone, case-folded, one space between them."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(_kept(char) for char in folded).split())


def _kept(char: str) -> str:
    if char in APOSTROPHES:
        return ""
    return " " if unicodedata.category(char)[0] in "PS" else char
