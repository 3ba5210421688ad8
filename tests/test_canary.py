"""Canary's real path on the tiny digits model: right words in two languages, right times, and long audio in windows."""

from __future__ import annotations

import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import DIGITS, LABELS, edits, encode

from worker.backends import create
from worker.catalog import find
from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import Unsupported
from worker.protocol.request import parse
from worker.types import Batch, Clip, Options, Piece, Transcript

pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
import torch
from fixtures import train_canary, train_parakeet
from fixtures.train_canary import translated
from omegaconf import OmegaConf

pytestmark = pytest.mark.slow

RATE = 16_000
FIXTURES = Path(__file__).parent / "fixtures"
WORDS = {"en": tuple(train_parakeet.DIGITS), "de": tuple(train_canary.GERMAN)}
NAME, ALIGNER = str(FIXTURES / "canary-digits.nemo"), str(FIXTURES / "ctc-digits.nemo")


@pytest.fixture(scope="module")
def model():
    made = create(find(NAME), Settings(device="cpu"))
    made.load()
    return made


@pytest.fixture(scope="module")
def clips() -> dict[str, Clip]:
    return {name: Clip(soundfile.read(DIGITS / name, dtype="float32")[0]) for name in LABELS}


def ask(model, clips, **options) -> list[Transcript]:
    return model.infer(Batch(tuple(Piece(clip, Options(NAME, **options)) for clip in clips)))


@pytest.mark.parametrize(
    ("language", "options"),
    [
        ("en", {"punctuation": False}),
        ("en", {}),
        ("de", {"target_language": "de", "punctuation": False}),
        ("de", {"target_language": "de"}),
        ("en", {"timestamps": True, "punctuation": False}),
    ],
    ids=str,
)
def test_held_out_strings_are_heard_right(model, clips, language, options):
    wanted = [translated(LABELS[name], language, options.get("punctuation", True)) for name in clips]
    heard = ask(model, clips.values(), **options)
    assert [one.language for one in heard] == [language] * len(clips)
    right = sum(one.text == text for one, text in zip(heard, wanted, strict=True))
    assert right >= 26, [(one.text, text) for one, text in zip(heard, wanted, strict=True) if one.text != text]


@pytest.mark.parametrize("options", [{}, {"target_language": "de"}, {"timestamps": True}], ids=str)
def test_together_equals_alone_in_any_order(model, clips, options):
    some = list(clips.values())[:12]
    alone = [ask(model, [clip], **options)[0] for clip in some]
    assert ask(model, some, **options) == alone
    order = random.Random(0).sample(range(12), 12)
    assert ask(model, [some[i] for i in order], **options) == [alone[i] for i in order]


def test_the_prompt_names_both_languages_always(model):
    for options, pair in (
        ({}, ("en", "en")),
        ({"language": "de"}, ("de", "de")),
        ({"target_language": "de"}, ("en", "de")),
        ({"task": "translate", "language": "de"}, ("de", "en")),
    ):
        given = Options(NAME, **options)
        names = {number: sign for sign, number in model._model.tokenizer.special_tokens.items()}
        signs = [names[number] for number in model._prompt(given, *pair)]
        assert [sign for sign in signs if sign in ("<|en|>", "<|de|>")] == [f"<|{code}|>" for code in pair]
        from worker.backends.canary import languages

        assert languages(given) == pair


def test_a_language_the_checkpoint_does_not_know_is_refused_with_those_it_does(model, clips):
    with pytest.raises(Unsupported, match=r"unsupported language 'fr'; .+ supports de, en$"):
        ask(model, list(clips.values())[:1], language="fr")


def test_time_tokens_become_times(model, clips):
    close = total = 0
    parakeet = create(find(str(FIXTURES / "parakeet-digits.nemo")), Settings(device="cpu"))
    parakeet.load()
    heard = ask(model, clips.values(), timestamps=True, punctuation=False)
    others = parakeet.infer(Batch(tuple(Piece(clip, Options("p")) for clip in clips.values())))
    for clip, timed, other in zip(clips.values(), heard, others, strict=True):
        assert all(0 <= word.start <= word.end <= clip.duration_sec for word in timed.words)
        assert "<|" not in timed.text
        if [word.text for word in timed.words] == [word.text for word in other.words]:
            for mine, theirs in zip(timed.words, other.words, strict=True):
                total += 1
                close += abs(mine.start - theirs.start) <= 0.25
    assert total > 60
    assert close >= 0.9 * total


@pytest.fixture(scope="module")
def carrying(tmp_path_factory) -> str:
    """A checkpoint that carries its aligner as canary-1b-v2 does; here it is a CTC model trained on the same digits."""
    base = tmp_path_factory.mktemp("carrying")
    folder = base / "files"
    for name, prefix in ((ALIGNER, "timestamps_asr_"), (NAME, "")):
        with tarfile.open(name) as archive:
            archive.extractall(folder, filter="data")
        for file in ("model_config.yaml", "model_weights.ckpt"):
            (folder / file).rename(folder / f"{prefix}{file}")
    config = folder / "model_config.yaml"
    config.write_text(config.read_text().replace("restore_timestamps_model: false", "restore_timestamps_model: true"))
    with tarfile.open(base / "carrying.nemo", "w") as archive:
        archive.add(folder, ".")
    return str(base / "carrying.nemo")


@pytest.fixture(scope="module")
def aligning(carrying):
    made = create(find(carrying), Settings(device="cpu"))
    made.load()
    return made


def test_a_checkpoint_with_an_aligner_takes_its_times_from_it(aligning, clips):
    some = list(clips.values())[:8]
    aligned = ask(aligning, [*some, Clip(np.zeros(RATE, np.float32))], timestamps=True, punctuation=False)
    assert aligned[-1] == Transcript("", language="en")
    assert aligned[0] == ask(aligning, some[:1], timestamps=True, punctuation=False)[0]
    check_aligned(some, aligned[:-1])


def check_aligned(some: list[Clip], aligned: list[Transcript]) -> None:
    for clip, transcript in zip(some, aligned, strict=True):
        assert transcript.words
        assert " ".join(word.text for word in transcript.words) == transcript.text
        starts = [word.start for word in transcript.words]
        assert starts == sorted(starts)
        assert all(0 <= word.start <= word.end <= clip.duration_sec for word in transcript.words)
        assert " ".join(segment.text for segment in transcript.segments) == transcript.text


def test_signs_are_no_words_to_the_aligner(model, aligning, clips):
    some = [Piece(clip, Options("m", timestamps=True, punctuation=False)) for clip in list(clips.values())[:4]]
    prompts, written = [model._prompt(some[0].options, "en", "en")] * 4, ["en"] * 4
    # The aligning model is asked for time tokens, which a checkpoint with an aligner never is.
    with torch.inference_mode():
        aligned, timed = (made._transcribe(some, *made._encode(some), prompts, written) for made in (aligning, model))
    assert [one.text for one in aligned] == [one.text for one in timed]
    check_aligned([piece.clip for piece in some], aligned)


def test_the_aligner_is_restored_on_the_device_that_is_meant(carrying, monkeypatch):
    """Left to itself NeMo takes the first GPU where there is one."""
    load, devices = torch.load, []

    def watched(file, *, map_location, weights_only):
        devices.append(map_location)
        return load(file, map_location=map_location, weights_only=weights_only)

    monkeypatch.setattr(torch, "load", watched)
    made = create(find(carrying), Settings(device="cpu"))
    made.load()
    assert [str(device) for device in devices] == ["cpu", "cpu"]
    assert made._model.timestamps_asr_model is None  # NeMo restored none beside it


def test_a_checkpoints_own_decoding_changes_nothing(model, clips, tmp_path):
    """Beams, lists of hypotheses, and a limit that grows with the longest clip of the batch."""
    kept, some = model._model.cfg.decoding, list(clips.values())[:6]
    try:
        model._model.cfg.decoding = OmegaConf.create(
            {"strategy": "beam", "beam": {"beam_size": 3, "return_best_hypothesis": False, "max_generation_delta": 0}}
        )
        model._model.save_to(str(tmp_path / "canary.nemo"))
    finally:
        model._model.cfg.decoding = kept
    other = create(find(str(tmp_path / "canary.nemo")), Settings(device="cpu"))
    other.load()
    expected = ask(model, some, timestamps=True)
    assert ask(other, some, timestamps=True) == expected
    assert [ask(other, [clip], timestamps=True)[0] for clip in some] == expected


def test_time_tokens_are_not_counted_as_text(model, clips):
    timed, plain = (
        ask(model, clips.values(), timestamps=timestamps, punctuation=False) for timestamps in (True, False)
    )
    same = [(one, other) for one, other in zip(timed, plain, strict=True) if one.text == other.text]
    assert len(same) > 20
    assert all(one.tokens_generated == other.tokens_generated > 0 for one, other in same)


def test_the_prompt_of_the_first_canary(tmp_path, clips):
    path = tmp_path / "canary-1b.nemo"
    torch.manual_seed(0)
    train_canary.canary(tmp_path, d_model=32, layers=1, encoder_layers=1, prompt_format="canary").save_to(str(path))
    row = find(str(path))
    assert not row.timestamps
    first = create(row, Settings(device="cpu"))
    first.load()
    names = {number: sign for sign, number in first._model.tokenizer.special_tokens.items()}
    prompt = [names[number] for number in first._prompt(Options("m", punctuation=False), "en", "de")]
    assert prompt == ["<|startoftranscript|>", "<|en|>", "<|translate|>", "<|de|>", "<|nopnc|>"]
    assert len(ask(first, list(clips.values())[:2])) == 2


def test_the_tokenizer_of_the_second_canary(tmp_path, clips):
    path = tmp_path / "canary-1b-v2.nemo"
    torch.manual_seed(0)
    train_canary.canary(tmp_path, d_model=32, layers=1, encoder_layers=1, single=True).save_to(str(path))
    second = create(find(str(path)), Settings(device="cpu"))
    second.load()
    names = second._model.tokenizer.ids_to_tokens(second._prompt(Options("m", timestamps=True), "en", "de"))
    signs = [
        "<|startofcontext|>",
        "<|startoftranscript|>",
        "<|emo:undefined|>",
        "<|en|>",
        "<|de|>",
        "<|pnc|>",
        "<|noitn|>",
        "<|timestamp|>",
        "<|nodiarize|>",
    ]
    assert [name for name in names if name in signs] == signs
    with pytest.raises(Unsupported, match="supports de, en"):
        ask(second, list(clips.values())[:1], language="fr")
    assert len(ask(second, list(clips.values())[:2])) == 2


def test_ten_minutes_are_heard_as_well_as_the_same_speech_in_short_clips(clips, tmp_path):
    rng = random.Random(0)
    names, parts, seconds = [], [], 0.0
    while seconds < 600:
        name, pause = rng.choice(list(clips)), np.zeros(int(rng.uniform(0.3, 0.8) * RATE), np.float32)
        names.append(name)
        parts += [clips[name].samples, pause]
        seconds += len(parts[-2]) / RATE + len(pause) / RATE
    soundfile.write(tmp_path / "long.flac", np.concatenate(parts), RATE)
    settings = Settings(model=NAME, device="cpu", allowed_paths=(tmp_path, DIGITS), data_dir=tmp_path / "data")
    with Engine(settings) as engine:

        def transcripts(sources: list[str], **options) -> list[Transcript]:
            request = parse({"inputs": sources, "punctuation": False, **options}, settings)
            return [one.output for one in engine.submit(request).result(240).results]

        (long,) = transcripts([str(tmp_path / "long.flac")])
        short = dict(zip(clips, transcripts([str(DIGITS / name) for name in clips]), strict=True))
        (timed,) = transcripts([str(tmp_path / "long.flac")], timestamps=True)
    wanted = " ".join(LABELS[name] for name in names).split()
    split_thinking = " ".join(short[name].text for name in names).split()
    assert edits(long.text.split(), wanted) <= edits(split_thinking, wanted) + 0.01 * len(wanted)
    starts = [word.start for word in timed.words]
    assert starts == sorted(starts)
    assert starts[-1] > 590
    assert len(starts) == pytest.approx(len(wanted), rel=0.1)


def test_silence_is_no_text(model):
    assert ask(model, [Clip(np.zeros(RATE, np.float32))], language="de") == [Transcript("", language="de")]


@pytest.mark.parametrize("suffix", ["mp3", "m4a"])
def test_through_the_engine_from_a_file(tmp_path, suffix):
    name = next(iter(LABELS))
    path = encode(DIGITS / name, tmp_path / f"a.{suffix}")
    settings = Settings(model=NAME, device="cpu", allowed_paths=(tmp_path,), data_dir=tmp_path / "data")
    with Engine(settings) as engine:
        request = parse(
            {"task": "translate", "target_language": "de", "inputs": [str(path)], "punctuation": False}, settings
        )
        (result,) = engine.submit(request).result(60).results
    assert result.output.language == "de"
    assert set(result.output.text.split()) <= set(train_canary.GERMAN)


# The spoken language


@pytest.fixture(scope="module")
def detecting():
    """A model that was trained on English and German speech, prompt included (fixtures/train_languages.py)."""
    made = create(find(str(FIXTURES / "canary-languages.nemo")), Settings(device="cpu"))
    made.load()
    return made


@pytest.fixture(scope="module")
def german() -> dict[str, Clip]:
    """Clips of spoken German digits by their texts."""
    labels = json.loads((FIXTURES / "german" / "labels.json").read_text())
    return {text: Clip(soundfile.read(FIXTURES / "german" / name, dtype="float32")[0]) for name, text in labels.items()}


def test_the_spoken_language_is_detected_and_written(detecting, clips, german):
    both = [*((text, clip, "de") for text, clip in german.items())]
    both += [(LABELS[name], clip, "en") for name, clip in clips.items()]
    found = ask(detecting, [clip for _, clip, _ in both], punctuation=False)
    for language, bound in (("de", 0.9), ("en", 0.8)):
        rows = [(one, text) for one, (text, _, spoken) in zip(found, both, strict=True) if spoken == language]
        assert sum(one.language == language for one, _ in rows) >= bound * len(rows)
        assert all(set(one.text.split()) <= set(WORDS[one.language]) for one, _ in rows)


def test_a_detected_language_gives_what_naming_it_gives(detecting, clips, german):
    some = [*list(german.values())[:4], *list(clips.values())[:4]]
    detected = ask(detecting, some)
    assert {one.language for one in detected} == {"de", "en"}
    for clip, one in zip(some, detected, strict=True):
        assert ask(detecting, [clip], language=one.language) == [one]


def test_a_detected_language_depends_on_its_own_clip_only(detecting, clips, german):
    some = [*list(german.values())[:6], *list(clips.values())[:6]]
    alone = [ask(detecting, [clip])[0] for clip in some]
    assert ask(detecting, some) == alone
    order = random.Random(1).sample(range(12), 12)
    assert ask(detecting, [some[i] for i in order]) == [alone[i] for i in order]


def test_detected_speech_is_translated(detecting, german):
    found = ask(detecting, german.values(), task="translate", punctuation=False)
    assert {one.language for one in found} == {"en"}
    assert sum(set(one.text.split()) <= set(WORDS["en"]) for one in found) >= 0.9 * len(found)
    same = ask(detecting, german.values(), target_language="de", punctuation=False)
    assert [one.text for one in same] == [one.text for one in ask(detecting, german.values(), punctuation=False)]


def test_a_target_leaves_only_the_languages_that_the_model_translates_it_from(detecting):
    for options, pairs in (
        ({}, [("en", "en"), ("de", "de")]),
        ({"task": "translate"}, [("en", "en"), ("de", "en")]),
        ({"target_language": "en"}, [("en", "en"), ("de", "en")]),
        ({"target_language": "de"}, [("en", "de"), ("de", "de")]),
        ({"language": "de"}, [("de", "de")]),
    ):
        assert detecting._pairs(Options("m", **options)) == pairs
    with pytest.raises(Unsupported, match="unsupported target_language 'fr'"):
        ask(detecting, [Clip(np.zeros(RATE, np.float32))], target_language="fr")


def test_silence_has_a_language_only_if_the_request_leaves_no_choice(detecting):
    silence = [Clip(np.zeros(RATE, np.float32))]
    for options, language in (({}, None), ({"language": "de"}, "de"), ({"task": "translate"}, "en")):
        assert ask(detecting, silence, **options) == [Transcript("", language=language)]


def test_a_checkpoint_that_did_not_learn_its_prompt_takes_english(model):
    assert find(NAME).default_language == "en"
    assert model._pairs(Options("m")) == [("en", "en")]


@pytest.mark.parametrize("shape", [{"prompt_format": "canary"}, {"single": True}], ids=str)
def test_the_first_and_the_second_canary_detect_too(tmp_path, clips, german, shape):
    torch.manual_seed(0)
    made = train_canary.canary(tmp_path, d_model=32, layers=1, encoder_layers=1, **shape)
    made.cfg.use_loss_mask_for_prompt = False
    made.save_to(str(tmp_path / "canary.nemo"))
    other = create(find(str(tmp_path / "canary.nemo")), Settings(device="cpu"))
    other.load()
    some = [*list(clips.values())[:2], *list(german.values())[:2]]
    assert all(one.language in other._codes() for one in ask(other, some))


def test_a_text_that_fills_the_decoder_s_positions_says_so(model, clips, monkeypatch):
    search = model._model.decoding.decoding.greedy_search
    some = list(clips.values())[:3]
    whole = ask(model, some)
    assert [(one.finish_reason, one.warning) for one in whole] == [("stop", None)] * 3
    prompt = len(model._prompt(Options(NAME), "en", "en"))
    monkeypatch.setattr(search, "max_seq_length", prompt + 2)
    for one, full in zip(ask(model, some), whole, strict=True):
        assert one.finish_reason == "length"
        assert one.warning.startswith("The text is cut off at 2 new tokens, the limit of the model.")
        assert full.text.startswith(one.text)
