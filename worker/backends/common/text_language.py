"""The language of a text, for models that write several languages without saying which.

    text, languages ──▶ py3langid: naive Bayes over the bytes ──▶ probabilities ──▶ code, or None if unsure

The model is part of the py3langid package (4.6 MB). Loading it takes about 0.5 s and 73 MB of memory, so a backend
calls `load` while it loads its own weights. The same text always has the same language.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

MIN_PROBABILITY = 0.7
"""Below this, the language is unknown. In 25 languages, no text of four words or more then has a wrong language, and 9
of 10 texts of four words have one (tests/test_text_language.py)."""
MAX_CHARACTERS = 10_000  # of the text are read, which takes about a millisecond


def load() -> None:
    """Load the model, so that the first text does not wait for it."""
    _identifier()


def identify(text: str, languages: Sequence[str] = ()) -> str | None:
    """Return the ISO 639-1 code of the language of the text, or None if it is uncertain, as in a short text.

    `languages` are the codes that the text may be in; if empty, every code of ISO 639-1 that the identifier knows.
    """
    if len(languages) == 1:
        return languages[0]
    start = text[:MAX_CHARACTERS]
    if not any(character.isalpha() for character in start):
        return None
    allowed = frozenset(languages)
    ranking = [
        (code, probability)
        for code, probability in _identifier().rank(start)
        if (code in allowed if allowed else len(code) == 2)
    ]
    total = sum(probability for _, probability in ranking)
    if not total:
        return None
    code, probability = ranking[0]
    return str(code) if probability / total >= MIN_PROBABILITY else None


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
