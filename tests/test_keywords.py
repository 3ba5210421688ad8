"""Keywords: they change the rows that asked for them and no other, raise the hit rate, and are within limits."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import soundfile
from conftest import DIGITS, FIXTURES, LABELS

from worker.catalog import find
from worker.config import Settings
from worker.errors import RequestError, Unsupported
from worker.protocol import openai
from worker.protocol.options import MAX_KEYWORDS
from worker.protocol.request import parse
from worker.types import Batch, Clip, Options, Piece, Transcript

pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
import torch

from worker.backends import create
from worker.backends.nemo import keywords
from worker.backends.nemo.greedy_ctc import decode

pytestmark = pytest.mark.slow

NAMES = sorted(LABELS)[:8]
PARAKEET = str(FIXTURES / "parakeet-digits.nemo")
KINDS = ("parakeet", "parakeet-nemo", "ctc", "canary")
DRY = Settings(skip_model_load=True)


@functools.cache
def model(kind: str):
    """The digits model of a kind. `parakeet-nemo` decodes as on a GPU, with NeMo's decoder."""
    made = create(find(str(FIXTURES / f"{kind.split('-', maxsplit=1)[0]}-digits.nemo")), Settings(device="cpu"))
    made.load()
    if kind == "parakeet-nemo":
        made._windowed = False
    return made


def clips(noise: float = 0.0) -> list[Clip]:
    rng = np.random.default_rng(0)
    read = [soundfile.read(DIGITS / name, dtype="float32")[0] for name in NAMES]
    return [Clip((one + noise * np.abs(one).max() * rng.standard_normal(len(one))).astype(np.float32)) for one in read]


def transcribe(kind: str, clips: list[Clip], lists: list[tuple[str, ...]], **options) -> list[Transcript]:
    pieces = [
        Piece(clip, Options("m", language="en", keywords=own, **options))
        for clip, own in zip(clips, lists, strict=True)
    ]
    return model(kind).infer(Batch(tuple(pieces)))


def texts(*args, **options) -> list[str]:
    return [transcript.text for transcript in transcribe(*args, **options)]


@pytest.mark.parametrize("kind", KINDS)
def test_keywords_change_the_row_that_asked_and_no_other(kind):
    plain = transcribe(kind, clips(), [()] * 8)
    lists = [(), ("wine", "sevent"), *[()] * 6]
    found = transcribe(kind, clips(), lists, keyword_weight=10.0)
    assert "wine" in found[1].text
    assert [found[0], *found[2:]] == [plain[0], *plain[2:]]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_different_keywords_have_together_what_each_has_alone(kind):
    lists = [("wine",), (), ("sevent",), ("wine", "sevent"), ("nine",), (), ("wine",), ("sixty", "fone")]
    together = texts(kind, clips(), lists, keyword_weight=8.0)
    alone = [texts(kind, [clip], [own], keyword_weight=8.0)[0] for clip, own in zip(clips(), lists, strict=True)]
    assert together == alone
    assert together != texts(kind, clips(), [()] * 8)


def test_our_decoder_finds_the_tokens_and_times_of_nemo_s():
    lists = [("wine",), (), ("sevent", "nine"), (), ("fone",), ("nine",), (), ("six two",)]
    for weight in (1.0, 5.0, 10.0):
        ours, theirs = (transcribe(kind, clips(), lists, keyword_weight=weight, timestamps=True) for kind in KINDS[:2])
        assert ours == theirs


def test_keywords_raise_the_hit_rate_of_what_noise_hides():
    noisy = [clip for seed in (0.03, 0.1) for clip in clips(seed)]
    labels = [LABELS[name] for name in NAMES] * 2
    plain = texts("parakeet", noisy, [()] * 16)
    helped = texts("parakeet", noisy, [(label,) for label in labels])
    assert sum(map(str.__eq__, helped, labels)) > sum(map(str.__eq__, plain, labels))


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_the_tokenizer_cannot_spell_change_nothing(kind):
    plain = transcribe(kind, clips(), [()] * 8)
    assert transcribe(kind, clips(), [("九", "<|en|>")] * 8, keyword_weight=20.0) == plain


def test_a_keyword_is_spelled_in_lower_case_if_the_model_has_no_capitals():
    capital = texts("parakeet", clips(), [("Wine",)] * 8, keyword_weight=10.0)
    assert capital == texts("parakeet", clips(), [("wine",)] * 8, keyword_weight=10.0)
    assert capital != texts("parakeet", clips(), [()] * 8)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_those_of_the_model_without_the_gains(kind):
    plain = transcribe(kind, clips(), [()] * 8, confidence=True)
    found = transcribe(kind, clips(), [("wine",)] * 8, keyword_weight=10.0, confidence=True)
    (changed, *_) = [pair for pair in zip(plain, found, strict=True) if pair[0].text != pair[1].text]
    assert changed[1].confidence < changed[0].confidence
    assert all(token.logprob <= 0 for token in changed[1].tokens)


def test_ctc_with_keywords_that_gain_nothing_finds_what_it_finds_without():
    scores = torch.randn(4, 50, 33, generator=torch.Generator().manual_seed(0)).mul(3).log_softmax(dim=-1)
    frames = torch.tensor([50, 31, 1, 44])
    tree = keywords.Tree([[1, 2, 3]], 32, keywords.TRANSDUCER_SCALING)
    follower = keywords.Follower([keywords.Row(tree, 1e-30)] * 4, 32)
    assert decode(scores, frames, logprobs=True, keywords=follower) == decode(scores, frames, logprobs=True)


def test_trees_are_made_once_for_each_list_and_bounded():
    trees = keywords.Trees(32, keywords.TRANSDUCER_SCALING)
    spell = keywords.speller(model("parakeet")._model)
    first = trees.of(("nine",), spell)
    assert first is not None
    assert trees.of(("nine",), spell) is first
    for number in range(keywords.TREES):
        trees.of(("nine", "x" * number), spell)
    assert len(trees._kept) == keywords.TREES
    assert trees.of(("nine",), spell) is not first


def options(**fields) -> Options:
    return parse({"inputs": ["a"], **fields}, DRY).items[0].options


def test_keywords_are_trimmed_and_an_empty_list_is_absent():
    assert options(keywords=[" New  York ", "", "Ada", "Ada"]).keywords == ("New York", "Ada")
    for empty in ([], [""], [" "], "", None):
        assert options(keywords=empty) == options()
    assert options(keywords=["Ada"], keyword_weight=2).kind == options().kind


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"keywords": ["x"] * (MAX_KEYWORDS + 1)}, "keywords.*at most 100"),
        ({"keywords": ["x" * 101]}, "keywords.*at most 100 characters"),
        ({"keywords": [1]}, "keywords"),
        ({"keywords": {"a": 1}}, "keywords"),
        ({"keyword_weight": 0}, "keyword_weight.*greater than 0"),
        ({"keyword_weight": 101}, "keyword_weight.*less than or equal to 100"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_limits_are_named(fields, says):
    with pytest.raises(RequestError, match=says):
        options(**fields)


def test_a_model_without_keywords_names_the_models_with_them():
    with pytest.raises(
        Unsupported, match=r"does not accept keywords\. Models that do: parakeet, .*canary.*whisper"
    ) as it:
        parse({"inputs": ["a"], "model": "pocketsphinx", "keywords": ["Ada"]}, Settings())
    assert it.value.param == "keywords"
    warning = parse(
        {"inputs": ["a"], "model": "pocketsphinx", "keywords": ["Ada"]}, Settings(unsupported_options="warn")
    )
    assert "does not accept keywords" in str(warning.items[0].warning)


def test_openai_s_field_is_the_option():
    payload, _ = openai.translate("/v1/audio/transcriptions", {"file": "a.wav", "keywords": ["Ada", ""]})
    assert payload["keywords"] == ["Ada"]
    assert json.dumps(payload)


def test_the_command_line_reads_a_file_of_keywords(tmp_path, capsys):
    from worker.entrypoints.cli.arguments import parser

    (tmp_path / "words").write_text("Ada Lovelace\n\n zwölf \n", encoding="utf-8")
    given = parser().parse_args(["transcribe", "a.wav", "--keywords", str(tmp_path / "words")])
    assert given.keywords == ["Ada Lovelace", "zwölf"]
    with pytest.raises(SystemExit):
        parser().parse_args(["transcribe", "a.wav", "--keywords", str(tmp_path / "none")])
    assert "cannot read" in capsys.readouterr().err


def test_keywords_ride_on_every_window_of_long_audio(tmp_path):
    """Of two inputs of one long file, that with keywords has them in each window, and the other in none."""
    from worker.engine.engine import Engine

    quiet = np.zeros(16_000, np.float32)
    said = [part for number in range(40) for part in (clips()[number % 8].samples, quiet)]
    path = tmp_path / "long.wav"
    soundfile.write(path, np.concatenate(said), 16_000)
    settings = Settings(
        model=PARAKEET, device="cpu", allowed_paths=(tmp_path,), data_dir=tmp_path / "data", detect_speech=False
    )
    fields = {"long_audio": "windows", "timestamps": ["word"], "keyword_weight": 20.0}
    with Engine(settings) as engine:
        inputs = [{"source": str(path), "keywords": ["wine"]}, {"source": str(path)}]
        request = parse({"inputs": inputs, **fields}, settings, trusted=True)
        helped, plain = (result.output for result in engine.submit(request).result(120).results)
    assert plain.words[-1].end > 60, "three windows at least"
    assert "wine" not in plain.text
    found = {int(word.start // 30) for word in helped.words if word.text == "wine"}
    assert found == set(range(int(plain.words[-1].end // 30) + 1))
