"""Error rates: counted by hand, and as properties against a plain edit distance."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from worker.evaluation import metrics
from worker.evaluation.metrics import Counts

WORDS = st.lists(st.sampled_from(["a", "b", "c", "né", "語"]), max_size=12).map(" ".join)


def distance(one: list[str], other: list[str]) -> int:
    """Levenshtein's, row by row."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        before, row = row, [i]
        for j, right in enumerate(other, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (left != right)))
    return row[-1]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts", "rate"),
    [
        ("the cat sat", "the cat sat", Counts(hits=3), 0.0),
        ("the cat sat on the mat", "the bat sat on mat", Counts(hits=4, substitutions=1, deletions=1), 2 / 6),
        ("see you", "see you next week", Counts(hits=2, insertions=2), 2 / 2),
        ("see you next", "", Counts(deletions=3), 1.0),
        ("yes", "oh yes yes yes", Counts(hits=1, insertions=3), 3.0),
        ("", "", Counts(), 0.0),
        ("", "what was that", Counts(insertions=3), 3.0),
    ],
)
def test_words_counted_by_hand(reference, hypothesis, counts, rate):
    assert metrics.words(reference, hypothesis) == counts
    assert counts.rate == rate


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("kitten", "sitting", Counts(hits=4, substitutions=2, insertions=1)),
        ("a b", "ab", Counts(hits=2, deletions=1)),
        ("日本語", "日本", Counts(hits=2, deletions=1)),
    ],
)
def test_characters_counted_by_hand(reference, hypothesis, counts):
    assert metrics.characters(reference, hypothesis) == counts


def test_the_rate_of_a_corpus_is_over_all_its_words():
    counts = [Counts(hits=1, substitutions=1), Counts(insertions=2), Counts(hits=8)]
    assert sum(counts, Counts()).rate == 3 / 10


@given(WORDS, WORDS)
def test_as_few_errors_as_there_can_be(reference, hypothesis):
    for count, parts in ((metrics.words, str.split), (metrics.characters, list)):
        counts = count(reference, hypothesis)
        assert counts.errors == distance(parts(reference), parts(hypothesis))
        assert counts.reference == len(parts(reference))
        assert counts.hits + counts.substitutions + counts.insertions == len(parts(hypothesis))


@given(WORDS, WORDS)
def test_either_text_may_be_the_reference(one, other):
    there, back = metrics.words(one, other), metrics.words(other, one)
    assert there.errors == back.errors
    assert there.insertions - there.deletions == back.deletions - back.insertions
    assert metrics.words(one, one) == Counts(hits=len(one.split()))


@given(WORDS, WORDS)
def test_the_alignment_holds_every_word_and_adds_up_to_the_counts(reference, hypothesis):
    chunks = metrics.align(reference, hypothesis)
    assert [word for chunk in chunks for word in chunk.reference] == reference.split()
    assert [word for chunk in chunks for word in chunk.hypothesis] == hypothesis.split()
    size = dict.fromkeys(("equal", "substitute", "insert", "delete"), 0)
    for chunk in chunks:
        size[chunk.kind] += max(len(chunk.reference), len(chunk.hypothesis))
        assert (chunk.reference == chunk.hypothesis) == (chunk.kind == "equal")
        assert chunk.kind != "substitute" or len(chunk.reference) == len(chunk.hypothesis)
    assert Counts(*size.values()) == metrics.words(reference, hypothesis)


@pytest.mark.parametrize(
    ("text", "normalizer", "language", "normal"),
    [
        ("  Hello,\t WORLD \n again ", "basic", "en", "hello, world again"),
        ("Ünïcode ÇA\u00a0va", "basic", None, "ünïcode ça va"),
        ("Mr. Brown's colour: twenty-one!", "whisper", "en", "mister brown is color 21"),
        ("Twenty-One, [noise] yes.", "whisper", "en-US", "21 yes"),
        ("Grüße, twenty one!", "whisper", "de", "grüße twenty one"),
        ("Twenty one.", "whisper", None, "twenty one"),
        (" \n", "whisper", "en", ""),
    ],
)
def test_normalisation(text, normalizer, language, normal):
    assert metrics.normalize(text, normalizer, language) == normal


LONG = 1 << 16  # characters, as a label over HTTP may have


@pytest.mark.parametrize(
    "text", ["[" * LONG, "(" * LONG, "<(" * (LONG // 2), " " * LONG, "a " + "[" * LONG + "]" + "(" * LONG]
)
@pytest.mark.parametrize("language", ["en", "de"])
def test_no_text_takes_whispers_normalizer_long(text, language):
    started = time.process_time()
    assert metrics.normalize(text, "whisper", language) in ("", "a")
    assert time.process_time() - started < 2


@pytest.mark.parametrize("text", ["1" * 5000, "9" * 4300 + " million"])
def test_a_number_that_python_does_not_read_is_only_a_word(text):
    assert metrics.normalize(text, "whisper", "en") == text.strip()


@given(st.text("a ()[]<>'.1", max_size=30), st.booleans())
def test_texts_are_what_whispers_normalizer_makes_of_them(text, english):
    """The shortcut for brackets that nothing closes changes no text."""
    theirs = EnglishTextNormalizer() if english else BasicTextNormalizer()
    assert metrics.normalize(text, "whisper", "en" if english else "de") == " ".join(theirs(text).split())


@given(st.text(), st.sampled_from(metrics.NORMALIZERS), st.sampled_from([None, "en", "de"]))
def test_a_normal_text_has_one_space_between_its_words(text, normalizer, language):
    normal = metrics.normalize(text, normalizer, language)
    assert normal == " ".join(normal.split())
    assert metrics.words(normal, normal).errors == 0
