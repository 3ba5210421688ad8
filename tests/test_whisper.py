"""Whisper on tiny checkpoints of random weights: the real features, encoder, generation and alignment, and what they
promise."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import soundfile
from conftest import alike, check_embeddings

pytest.importorskip("transformers", reason="transformers is not installed")
from fixtures import tiny_whisper

from worker.backends import create
from worker.backends.common import vad
from worker.backends.whisper import alignment, decoding
from worker.catalog import find
from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import ModelUnavailable, Unsupported
from worker.protocol.request import parse
from worker.types import Batch, Clip, Options, Piece, Transcript

pytestmark = pytest.mark.slow

RATE = 16_000


@pytest.fixture(autouse=True)
def without_vad(monkeypatch):
    """Nobody speaks in these synthetic clips, so the detector would leave nothing of them."""
    monkeypatch.setattr(vad, "is_available", lambda: False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("whisper")
    return {
        "many": tiny_whisper.save(base / "many"),
        "english": tiny_whisper.save(base / "english", multilingual=False),
        "plain": tiny_whisper.save(base / "plain", heads=()),
        "short": tiny_whisper.save(base / "short", positions=120),
    }


def backend(name: object):
    made = create(find(str(name)), Settings(device="cpu"))
    made.load()
    return made


@pytest.fixture(scope="module")
def model(folders):
    return backend(folders["many"])


def clip(seconds: float, seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * (200 + 170 * seed) * t) * (1 + np.sin(5 * t)) / 2 + 0.05 * rng.standard_normal(
        len(t)
    )
    return Clip(wave.astype(np.float32))


CLIPS = [clip(seconds, seed) for seed, seconds in enumerate((3.0, 9.0, 29.5, 0.4))]


def ask(model, clips: list[Clip], **options) -> list:
    if options.get("task") != "embed":
        options.setdefault("max_new_tokens", 16)
        options.setdefault("temperature", 0.0)  # what random weights write is improbable at each temperature
    return model.infer(Batch(tuple(Piece(one, Options("m", **options)) for one in clips)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"language": "en"},
        {"task": "translate", "language": "de"},
        {"timestamps": True},
        {"prompt": "a brown fox", "language": "en"},
    ],
    ids=str,
)
def test_together_equals_alone_in_any_order(model, options):
    alone = [ask(model, [one], **options)[0] for one in CLIPS]
    assert len({one.text for one in alone}) > 1, "random weights that say the same to everything would prove nothing"
    assert alike(ask(model, CLIPS, **options), alone)
    assert alike(ask(model, CLIPS[::-1], **options), alone[::-1])


def test_the_language_is_detected_clip_by_clip_or_taken_as_given(model):
    detected = [one.language for one in ask(model, CLIPS)]
    assert len(set(detected)) > 1
    assert all(len(code) in (2, 3) for code in detected)
    assert [one.language for one in ask(model, CLIPS, language="de")] == ["de"] * 4
    assert [one.text for one in ask(model, CLIPS[:1], language=detected[0])] == [ask(model, CLIPS[:1])[0].text]
    with pytest.raises(Unsupported, match=r"unsupported language 'xx'; .+ supports .*de.*en"):
        ask(model, CLIPS[:1], language="xx")


def test_the_language_is_detected_among_those_of_the_request(model):
    detected = [one.language for one in ask(model, CLIPS)]
    others = tuple(code for code in ("de", "fr", "ja", "en") if code not in detected[:1])
    among = [one.language for one in ask(model, CLIPS, languages=others)]
    assert set(among) <= set(others)
    assert among[0] != detected[0]
    assert [one.language for one in ask(model, CLIPS, languages=tuple(set(detected)))] == detected
    assert [one.language for one in ask(model, CLIPS)] == detected, "the next request has every language again"
    with pytest.raises(Unsupported, match="unsupported language 'xx'") as caught:
        ask(model, CLIPS[:1], languages=("de", "xx"))
    assert caught.value.param == "languages"


def test_translation_is_told_to_the_model_and_in_the_answer(model):
    translated = ask(model, CLIPS, task="translate", language="de")
    assert [one.language for one in translated] == ["en"] * 4
    assert translated == ask(model, CLIPS, language="de", target_language="en")
    assert [one.text for one in translated] != [one.text for one in ask(model, CLIPS, language="de")]
    assert ask(model, CLIPS, language="en", target_language="en") == ask(model, CLIPS, language="en")


def test_a_translation_is_spelt_in_words_whatever_was_spoken(model):
    options = {"task": "translate", "language": "zh", "timestamps": True}
    assert any(len(word.text) > 1 for transcript in ask(model, CLIPS, **options) for word in transcript.words)
    assert ask(model, [Clip(np.zeros(RATE, np.float32))], **options)[0].language == "en"


def letters(text: str) -> str:
    return "".join(char for char in text if char.isascii() and char.isalpha())


def test_times_rise_and_lie_within_the_clip(model):
    transcripts = ask(model, CLIPS, timestamps=True, max_new_tokens=60)
    assert any(transcript.words for transcript in transcripts)
    for one, transcript in zip(CLIPS, transcripts, strict=True):
        for spans in (transcript.segments, transcript.words):  # random bytes are half letters: only whole ones compare
            assert letters("".join(span.text for span in spans)) == letters(transcript.text)
        assert bool(transcript.words) == bool(transcript.text)
        for spans in (transcript.words, transcript.segments, transcript.chars):
            assert all(0 <= span.start <= span.end <= one.duration_sec for span in spans)
            assert all(before.start <= after.start for before, after in itertools.pairwise(spans))


def test_without_alignment_heads_there_are_segments_and_no_words(folders):
    (transcript,) = ask(backend(folders["plain"]), CLIPS[:1], timestamps=True)
    assert transcript.segments
    assert transcript.words == ()


def test_alignment_heads_that_the_decoder_lacks_are_left_out(model, tmp_path):
    """A distilled checkpoint may still name those of the model it was made from."""
    other = backend(tiny_whisper.save(tmp_path / "x", heads=((9, 0), *tiny_whisper.HEADS, (0, 7))))
    assert ask(other, CLIPS, timestamps=True) == ask(model, CLIPS, timestamps=True)
    assert ask(backend(tiny_whisper.save(tmp_path / "y", heads=((9, 0),))), CLIPS[:1], timestamps=True)[0].words == ()


@pytest.mark.parametrize("multilingual", [True, False])
def test_an_old_checkpoint_lacks_nothing(tmp_path, multilingual):
    """Its generation settings say nothing of languages, tasks and times: the tokenizer and the vocabulary's size do."""
    old = backend(tiny_whisper.save(tmp_path / "old", multilingual=multilingual, old=True))
    told = backend(tiny_whisper.save(tmp_path / "new", multilingual=multilingual))._model.generation_config
    for name in ("is_multilingual", "no_timestamps_token_id", "prev_sot_token_id", "lang_to_id", "task_to_id"):
        assert getattr(old._model.generation_config, name, None) == getattr(told, name, None)
    for options in ({}, {"timestamps": True}, {"language": "en", "prompt": "a brown fox"}):
        alone = [ask(old, [one], **options)[0] for one in CLIPS]
        assert alike(ask(old, CLIPS, **options), alone)
    if multilingual:
        assert ask(old, CLIPS[:1], task="translate", language="de")[0].language == "en"
        assert len({one.language for one in ask(old, CLIPS)}) > 1


def test_a_checkpoint_for_english_alone_translates_nothing(folders):
    english = backend(folders["english"])
    for options in ({"task": "translate"}, {"task": "translate", "language": "de"}, {"target_language": "en"}):
        with pytest.raises(Unsupported, match="English only"):
            ask(english, [*CLIPS[:1], Clip(np.zeros(RATE, np.float32))], **options)
    with pytest.raises(Unsupported, match="English only"):
        ask(english, [Clip(np.zeros(RATE, np.float32))], language="de")
    with pytest.raises(Unsupported, match="English only") as caught:
        ask(english, CLIPS[:1], languages=("de", "fr"))
    assert caught.value.param == "languages"
    assert ask(english, CLIPS[:1], languages=("de", "en"))[0].language == "en"


def test_a_checkpoint_for_english_alone_is_told_no_language(folders):
    english = backend(folders["english"])
    assert [one.language for one in ask(english, CLIPS, timestamps=True)] == ["en"] * 4
    with pytest.raises(Unsupported, match="English only"):
        ask(english, CLIPS[:1], language="de")


def test_silence_and_next_to_nothing_are_no_text(model):
    silence, blip = Clip(np.zeros(3 * RATE, np.float32)), Clip(np.full(100, 0.5, np.float32))
    first, second, third = ask(model, [silence, blip, CLIPS[0]], language="en")
    assert (first.text, second.text) == ("", "")
    assert third == ask(model, [CLIPS[0]], language="en")[0]


def test_prompts_bias_and_do_not_leak_and_may_differ_within_a_batch(model):
    prompts = [None, "a brown fox", "the lazy dog in the rain", "a brown fox"]
    pieces = [
        Piece(one, Options("m", language="en", prompt=prompt, max_new_tokens=16, temperature=0.0))
        for one, prompt in zip(CLIPS, prompts, strict=True)
    ]
    together = model.infer(Batch(tuple(pieces)))
    assert alike(together, [model.infer(Batch((piece,)))[0] for piece in pieces])
    plain = ask(model, CLIPS, language="en")
    assert together[0] == plain[0]
    assert [one.text for one in together[1:]] != [one.text for one in plain[1:]]
    assert all(prompt not in one.text for prompt, one in zip(prompts[1:], together[1:], strict=True))
    assert ask(model, CLIPS[:1], language="en", prompt="fox " * 2000)[0].text is not None


def test_keywords_are_the_beginning_of_the_prompt_and_may_differ_within_a_batch(model):
    lists = [(), ("fox",), ("fox", "rain"), ("fox",)]
    options = Options("m", language="en", max_new_tokens=16, temperature=0.0)
    pieces = [Piece(one, dataclasses.replace(options, keywords=own)) for one, own in zip(CLIPS, lists, strict=True)]
    together = model.infer(Batch(tuple(pieces)))
    alone = [model.infer(Batch((piece,)))[0] for piece in pieces]
    assert [one.text for one in together] == [one.text for one in alone]
    ids = model._prompt_ids(("fox", "rain"), "a dog").tolist()
    assert model._tokenizer.decode(ids[1:]).strip() == "fox, rain. a dog"
    assert model._prompt_ids((), None) is None
    assert ids[:1] == model._tokenizer.get_prompt_ids("a dog").tolist()[:1]
    full = model._prompt_ids(("fox",) * 3000, "a dog")
    assert len(full) == model._room // 2
    kept = model._tokenizer.decode(model._prompt_ids(("fox",), "dog " * 3000).tolist()[1:])
    assert kept.strip().startswith("fox.")
    bad = Piece(CLIPS[1], dataclasses.replace(options, keywords=("<|endoftext|>",)))
    with pytest.raises(Unsupported, match="control token") as caught:
        model.infer(Batch((bad,)))
    assert caught.value.param == "keywords"


def test_a_prompt_with_a_sign_of_the_models_own_is_refused_before_anything_is_written(model):
    told: list[str] = []
    options = Options("m", language="en", max_new_tokens=8)
    good = Piece(CLIPS[0], options, on_text=told.append)
    bad = Piece(CLIPS[1], dataclasses.replace(options, prompt="hi <|startoftranscript|> there"))
    with pytest.raises(Unsupported, match="contains a control token") as caught:
        model.infer(Batch((good, bad)))
    assert caught.value.param == "prompt"
    assert told == []


def test_tokens_counted_are_those_of_the_text(model):
    for one in ask(model, CLIPS, language="en", max_new_tokens=7):
        assert 0 <= one.tokens_generated <= 7


@pytest.mark.parametrize("prompt", [None, "fox " * 2000])
def test_more_tokens_than_the_decoder_holds_may_be_asked_for(folders, prompt):
    (transcript,) = ask(backend(folders["short"]), CLIPS[:1], language="en", max_new_tokens=5000, prompt=prompt)
    assert transcript.tokens_generated <= 112


def test_what_follows_the_end_token_is_nothing_whatever_pads_it(model):
    letter, ids = model._tokenizer.convert_tokens_to_ids("a"), model._ids
    prompt = [
        letter,
        ids.start,
        *model._tokenizer.convert_tokens_to_ids(["<|en|>", "<|transcribe|>", "<|notimestamps|>"]),
    ]
    assert decoding._written([*prompt, ids.end, letter, letter], ids) == []
    assert decoding._written([*prompt, letter, ids.end, letter], ids) == [letter]
    assert decoding._written([*prompt, letter, letter], ids) == [letter, letter]


def test_generation_gives_the_ids_alone_and_copies_no_cache(model, monkeypatch):
    generate, given = model._model.generate, []

    def both(**named):
        with_cache = generate(**named | {"logits_processor": []}, return_dict_in_generate=True)
        given.append((generate(**named), with_cache["sequences"]))
        return given[-1][0]

    monkeypatch.setattr(model._model, "generate", both)
    for options in ({}, {"timestamps": True, "prompt": "a brown fox"}):
        ask(model, CLIPS, **options)
    assert len(given) == 2
    for ids, with_cache in given:
        assert ids.equal(with_cache)


def test_a_cancelled_piece_stops_at_the_next_token_and_the_others_go_on(model):
    told: list[str] = []
    options = Options("m", language="en", max_new_tokens=40, temperature=0.0)
    (alone,) = model.infer(Batch((Piece(CLIPS[1], options),)))
    watched = Piece(CLIPS[0], options, cancelled=lambda: len(told) > 2, on_text=told.append)
    first, second = model.infer(Batch((watched, Piece(CLIPS[1], options))))
    (whole,) = model.infer(Batch((Piece(CLIPS[0], options),)))
    assert first.tokens_generated < whole.tokens_generated
    assert "".join(told).strip() == first.text
    assert second == alone


def test_embeddings_are_of_the_audio_and_not_of_its_padding(model):
    check_embeddings(functools.partial(ask, model, task="embed"), [*CLIPS, clip(41.5, 5)], width=16, frame_rate=50.0)


def test_a_long_clip_through_the_engine(folders, tmp_path):
    path = tmp_path / "long.wav"
    pause = np.zeros(RATE // 2, np.float32)
    soundfile.write(
        path, np.concatenate([part for seed in range(9) for part in (clip(7.5, seed).samples, pause)]), RATE
    )
    settings = Settings(model=str(folders["many"]), device="cpu", allowed_paths=(tmp_path,), data_dir=tmp_path / "data")
    with Engine(settings) as engine:
        request = parse({"inputs": [str(path)], "timestamps": True, "language": "en", "max_new_tokens": 30}, settings)
        (result,) = engine.submit(request).result(60).results
    assert isinstance(result.output, Transcript)
    assert result.duration_sec == 72
    starts = [word.start for word in result.output.words]
    assert starts == sorted(starts)
    assert starts[0] < 25
    assert starts[-1] > 45
    assert result.output.segments[-1].end <= 72


def test_the_cheapest_path_is_that_of_plain_dynamic_programming():
    rng = np.random.default_rng(0)
    for tokens, frames in ((1, 1), (1, 9), (4, 4), (5, 40), (12, 30), (6, 3)):
        cost = rng.standard_normal((tokens, frames))
        assert alignment.path_starts(cost) == plain_starts(cost)


def plain_starts(cost: np.ndarray) -> list[int]:
    tokens, frames = cost.shape
    total = np.full((tokens, frames), np.inf)
    for i, j in itertools.product(range(tokens), range(frames)):
        steps = [total[a, b] for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 and b >= 0]
        total[i, j] = cost[i, j] + (min(steps) if steps else 0.0)
    starts, i, j = [0] * tokens, tokens - 1, frames - 1
    while i > 0:
        options = {(a, b): total[a, b] for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 and b >= 0}
        a, b = min(options, key=options.__getitem__)
        if a < i:
            starts[i] = j
        i, j = a, b
    return starts


def test_times_follow_the_attention():
    """Attention that moves on at known frames gives those frames back."""
    import torch

    truth = [0, 12, 20, 45, 60]
    attention = torch.full((2, 2 + len(truth) + 1, 100), 0.001)
    edges = [*truth, 80, 100]
    for token, (begin, end) in enumerate(itertools.pairwise(edges)):
        attention[:, 1 + token, begin:end] = 1.0  # the row that predicts the token
    times = alignment._times(attention, 2, 0.02)
    assert [round(start / 0.02) for start, _ in times] == pytest.approx(truth, abs=2)
    assert times[-1][1] == pytest.approx(1.6, abs=0.05)


def test_a_missing_checkpoint_says_which():
    with pytest.raises(ModelUnavailable, match="/no/such/folder"):
        create(dataclasses.replace(find("whisper"), id="/no/such/folder"), Settings(device="cpu")).load()


def test_compile_without_a_compiler_is_refused_at_load(folders):
    from torch._inductor import config

    made = create(find(str(folders["many"])), Settings(device="cpu", compile=True))
    with config.patch("cpp.cxx", (None, "/nonexistent/g++")), pytest.raises(ModelUnavailable, match="COMPILE=1"):
        made.load()
