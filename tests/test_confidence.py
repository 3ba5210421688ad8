"""Confidences are NeMo's own: the same numbers as NeMo's decoders report with `max_prob`, `alpha: 1` and `min`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from conftest import DIGITS, FIXTURES, LABELS

from worker.backends import create
from worker.backends.common import timestamps
from worker.catalog import find
from worker.config import Settings
from worker.types import Batch, Clip, Options, Piece, Segment, Span, Transcript

pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
import torch
from omegaconf import OmegaConf

pytestmark = pytest.mark.slow

MODELS = ("parakeet-digits", "ctc-digits", "canary-digits")
NEMO = {
    "preserve_frame_confidence": True,
    "preserve_token_confidence": True,
    "preserve_word_confidence": True,
    "exclude_blank": True,
    "aggregation": "min",
    "method_cfg": {"name": "max_prob", "alpha": 1.0},
}


def load(name: str):
    made = create(find(str(FIXTURES / f"{name}.nemo")), Settings(device="cpu"))
    made.load()
    return made


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return load(request.param)


@pytest.fixture(scope="module")
def pieces() -> list[Piece]:
    """Clips under noise, of which the models are unsure."""
    noise = np.random.default_rng(1)
    clips = [soundfile.read(DIGITS / name, dtype="float32")[0] for name in LABELS]
    noisy = [clip + noise.normal(0, 0.02 * (i % 4), len(clip)).astype(np.float32) for i, clip in enumerate(clips)]
    options = Options("digits", language="en", timestamps=True, confidence=True)
    return [Piece(Clip(clip), options) for clip in noisy]


def asked(pieces, **options) -> Batch:
    return Batch(tuple(replace(piece, options=replace(piece.options, **options)) for piece in pieces))


def nemo_s(model, pieces) -> list:
    """What NeMo's own decoder reports for the same states, by NeMo's own switches."""
    nemo = model._model
    with torch.inference_mode():
        encoded, frames = model._nemo.encode(pieces)
        if hasattr(nemo, "transf_decoder"):
            before = nemo.decoding
            nemo.change_decoding_strategy(
                OmegaConf.create({"strategy": "greedy", "greedy": {"max_generation_delta": -1}, "confidence_cfg": NEMO})
            )
            states = nemo.encoder_decoder_proj(encoded.permute(0, 2, 1))
            mask = (torch.arange(states.shape[1]) < frames[:, None]).to(states.dtype)
            if nemo.use_transf_encoder:
                states = nemo.transf_encoder(encoder_states=states, encoder_mask=mask)
            prompt = model._prompt(replace(pieces[0].options, timestamps=False), "en", "en")
            found = nemo.decoding.decode_predictions_tensor(
                encoder_hidden_states=states,
                encoder_input_mask=mask,
                decoder_input_ids=torch.tensor([prompt] * len(pieces)),
                return_hypotheses=True,
            )
            nemo.decoding = before
            return found
        config = OmegaConf.create(OmegaConf.to_container(nemo.cfg.decoding))
        config = OmegaConf.merge(config, {"strategy": "greedy_batch", "confidence_cfg": NEMO})
        before = nemo.decoding
        nemo.change_decoding_strategy(config, verbose=False)
        if hasattr(nemo, "joint"):
            found = nemo.decoding.rnnt_decoder_predictions_tensor(encoded, frames, return_hypotheses=True)
        else:
            found = nemo.decoding.ctc_decoder_predictions_tensor(
                nemo.decoder(encoder_output=encoded), decoder_lengths=frames, return_hypotheses=True
            )
        nemo.decoding = before
        return found


def numbers(values) -> list[float]:
    return [float(value) for value in values]


def close(one, other) -> bool:
    return np.allclose(numbers(one), numbers(other), atol=1e-4)


def is_canary(model) -> bool:
    return hasattr(model._model, "transf_decoder")


def spelled(model, transcript: Transcript) -> tuple[Span, ...]:
    """The words of a transcript. Canary's time tokens would change its probabilities, so its words are without them."""
    if not is_canary(model):
        return transcript.words
    size = model._logits.out_features
    tokens = [
        timestamps.TimedToken(token.text.replace(" ", "▁"), 0, 0, timestamps.confidence(token.logprob, size))
        for token in transcript.tokens
    ]
    words = [Span(word, 0, 0) for word in transcript.text.split()]
    return timestamps.with_confidence(words, timestamps.tokens_of(words, tokens))


@pytest.mark.parametrize("punctuation", [True, False])
def test_words_have_nemo_s_confidences(model, pieces, punctuation):
    if is_canary(model):
        pieces = [replace(piece, options=replace(piece.options, punctuation=punctuation)) for piece in pieces]
    elif not punctuation:
        return
    doubts = 0
    for mine, theirs in zip(
        model.infer(asked(pieces, timestamps=not is_canary(model))), nemo_s(model, pieces), strict=True
    ):
        words = spelled(model, mine)
        assert [word.text for word in words] == theirs.text.split()
        assert close([word.confidence for word in words], theirs.word_confidence)
        doubts += sum(word.confidence < 0.9 for word in words)
    assert doubts >= 4, "the clips are too easy to tell measures apart"


def test_the_way_for_gpus_finds_the_same(pieces):
    model = load("parakeet-digits")
    expected = model.infer(asked(pieces))
    model._windowed = False
    for size in (1 << 25, 1):  # all tokens at once, and one at a time
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("worker.backends.parakeet.LOGITS_AT_ONCE", size)
            found = model.infer(asked(pieces))
        for mine, other in zip(found, expected, strict=True):
            assert [word.text for word in mine.words] == [word.text for word in other.words]
            assert close([token.logprob for token in mine.tokens], [token.logprob for token in other.tokens])


def test_every_level_has_it_or_none_has(model, pieces):
    for transcript in model.infer(asked(pieces)):
        if not transcript.text:
            continue
        assert all(0 <= span.confidence <= 1 for span in (*transcript.words, *transcript.segments, *transcript.chars))
        assert "".join(token.text for token in transcript.tokens).split() == transcript.text.split()
        assert sum(token.logprob for token in transcript.tokens) <= 0
        whole = [math.exp(token.logprob) for token in transcript.tokens]
        assert transcript.confidence == pytest.approx(sum(whole) / len(whole))
        (segment, *more) = transcript.segments
        assert isinstance(segment, Segment)
        assert segment.temperature is segment.no_speech_prob is None
        if not more:
            words = [word.confidence for word in transcript.words]
            assert segment.confidence == pytest.approx(sum(words) / len(words))
            following = [token.text for token in transcript.tokens[1:]] + [" "]
            logprobs = [  # a marker before another, or at the end, begins a word that never came
                token.logprob
                for token, after in zip(transcript.tokens, following, strict=True)
                if token.text.strip() or not after.startswith(" ")
            ]
            assert segment.avg_logprob == pytest.approx(sum(logprobs) / len(logprobs))
            assert len(segment.tokens) == len(logprobs)
        letters = iter(transcript.chars)
        for word in transcript.words:
            assert {next(letters).confidence for _ in word.text} == {word.confidence}
    for plain in model.infer(asked(pieces, confidence=False)):
        assert plain.tokens == ()
        assert plain.confidence is None
        assert all(span.confidence is None for span in (*plain.words, *plain.segments, *plain.chars))


def test_asking_changes_neither_text_nor_times(model, pieces):
    for mine, plain in zip(model.infer(asked(pieces)), model.infer(asked(pieces, confidence=False)), strict=True):
        assert mine.text == plain.text
        for name in ("words", "segments", "chars"):
            one, other = ([(s.text, s.start, s.end) for s in getattr(t, name)] for t in (mine, plain))
            assert one == other


def test_a_canary_whose_words_an_aligner_times(pieces):
    """The words come from the aligner, their confidences from the decoder."""
    from nemo.collections.asr.models import ASRModel

    model = load("canary-digits")
    model._aligner = ASRModel.restore_from(str(FIXTURES / "ctc-digits.nemo"), map_location="cpu").eval()
    options = {"punctuation": False}
    timed = model.infer(asked(pieces, **options))
    untimed = model.infer(asked(pieces, timestamps=False, **options))
    for mine, plain in zip(timed, untimed, strict=True):
        assert close([word.confidence for word in mine.words], [word.confidence for word in spelled(model, plain)])
