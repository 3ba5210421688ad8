"""What Whisper's decoder reports, when it decodes again, and the times of its tokens, on a tiny checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from conftest import alike

pytest.importorskip("transformers", reason="transformers is not installed")
from fixtures import tiny_whisper
from test_whisper import CLIPS, RATE, ask, backend, clip, plain_starts

from worker.backends.common import vad
from worker.backends.whisper import alignment, decoding, steps
from worker.types import Clip

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def without_vad(monkeypatch):
    monkeypatch.setattr(vad, "is_available", lambda: False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return backend(tiny_whisper.save(tmp_path_factory.mktemp("whisper") / "many"))


@pytest.fixture
def calls(model, monkeypatch):
    """How many windows each call of `generate` decodes."""
    sizes: list[int] = []
    generate = model._model.generate

    def counted(**named):
        sizes.append(len(named["encoder_outputs"].last_hidden_state))
        return generate(**named)

    monkeypatch.setattr(model._model, "generate", counted)
    return sizes


def forward(model, one: Clip, before: list[int], tokens: list[int]):
    """The log probabilities after each id of the prompt and the tokens, in one pass: of shape (ids, vocabulary)."""
    import torch

    with torch.inference_mode():
        states, _ = model._encode([one.samples])
        ids = torch.tensor([[*before, *tokens]])
        logits = model._model(encoder_outputs=(states,), decoder_input_ids=ids).logits[0]
        return logits.log_softmax(dim=-1)


@pytest.mark.parametrize("prompt", [None, "a brown fox"])
def test_probabilities_are_those_of_the_model(model, prompt):
    (transcript,) = ask(model, CLIPS[:1], language="en", prompt=prompt, confidence=True, timestamps=True)
    ids = model._tokenizer.convert_tokens_to_ids
    before = [*(model._prompt_ids((), prompt).tolist() if prompt else []), *ids(["<|startoftranscript|>"])]
    truth = forward(model, CLIPS[0], [*before, *ids(["<|en|>", "<|transcribe|>"])], [])
    segments = transcript.segments
    assert segments
    silence = math.exp(truth[len(before) - 1, ids("<|nospeech|>")])
    assert [one.no_speech_prob for one in segments] == pytest.approx([silence] * len(segments), rel=1e-3)
    (plain,) = ask(model, CLIPS[:1], language="en", prompt=prompt, confidence=True)
    assert plain.segments == ()
    assert "".join(token.text for token in plain.tokens).strip() == plain.text
    prefix = [*before, *ids(["<|en|>", "<|transcribe|>", "<|notimestamps|>"])]
    rows = decoding_of(model, CLIPS[0], prompt)
    truth = forward(model, CLIPS[0], prefix, list(rows.tokens)).clone()
    truth[len(prefix) - 1, model._ids.end] = -math.inf  # the end token may not come first
    first = truth[len(prefix) - 1].log_softmax(dim=-1)
    wanted = [first[rows.tokens[0]]] + [truth[len(prefix) + i, token] for i, token in enumerate(rows.tokens[1:])]
    assert rows.logprobs == pytest.approx([float(value) for value in wanted], abs=1e-3)


def decoding_of(model, one: Clip, prompt: str | None) -> decoding.Decoded:
    """What the decoder writes for one clip in text mode."""
    found: list[decoding.Decoded] = []
    decode = decoding.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "decode", lambda *all: found.extend(decode(*all)) or found)
        ask(model, [one], language="en", prompt=prompt)
    return found[0]


def test_only_windows_that_fail_are_decoded_again(model, calls, monkeypatch):
    plain = ask(model, CLIPS, language="en")
    assert calls == [4], "a temperature of the request is used alone"
    means = sorted(decoding_of(model, one, None).avg_logprob for one in CLIPS)
    monkeypatch.setattr(decoding, "MAX_COMPRESSION_RATIO", math.inf)
    monkeypatch.setattr(decoding, "MIN_AVG_LOGPROB", (means[1] + means[2]) / 2)
    calls.clear()
    kept = ask(model, CLIPS, language="en", temperature=None)
    assert calls == [4, 5, 5], "each of the two at all higher temperatures at once"
    same = [alike(one, other) for one, other in zip(kept, plain, strict=True)]
    assert sum(same) >= 2


def test_sampled_windows_are_the_same_alone_and_together(model, calls):
    alone = [ask(model, [one], language="en", temperature=None, timestamps=True)[0] for one in CLIPS]
    assert len(calls) == 4 * 2, "random weights write nothing probable"
    assert alike(ask(model, CLIPS, language="en", temperature=None, timestamps=True), alone)
    assert alike(ask(model, CLIPS[::-1], language="en", temperature=None, timestamps=True), alone[::-1])


def test_a_window_without_speech_has_no_text_and_is_not_decoded_again(model, calls, monkeypatch):
    monkeypatch.setattr(decoding, "NO_SPEECH_PROB", -1.0)
    for transcript in ask(model, CLIPS, language="en", temperature=None, timestamps=True):
        assert (transcript.text, transcript.words, transcript.segments) == ("", (), ())
    assert calls == [4]


def decoded(text: str, logprob: float, no_speech_prob: float = 0.0) -> decoding.Decoded:
    return decoding.Decoded((1, 2), (logprob, logprob), logprob, text, 0.0, no_speech_prob)


def test_loops_and_improbable_texts_are_rejected():
    loop = decoded("thank you " * 20, -0.1)
    assert decoding.compression_ratio(loop.text) > 2.4
    assert decoding._is_rejected(loop)
    assert decoding._is_rejected(decoded("a text", -1.1))
    assert not decoding._is_rejected(decoded("a text", -0.9))
    assert not decoding._is_rejected(decoded("a text", -1.1, no_speech_prob=0.7))
    assert decoded("a text", -1.1, no_speech_prob=0.7).is_silence
    assert not decoded("a text", -0.9, no_speech_prob=0.7).is_silence
    better, worse = decoded("a text", -1.2), decoded("another", -1.5)
    assert decoding._best([loop, worse, better, worse]) is better
    assert decoding._best([worse, decoded("fine", -0.5)]).text == "fine"


def test_token_times_are_those_of_the_published_method(model):
    """A plain reference: attention before its softmax is not needed, because a part of a softmax is rescaled."""
    import torch

    signs = ["<|startoftranscript|>", "<|de|>", "<|translate|>", "<|notimestamps|>"]
    before = model._tokenizer.convert_tokens_to_ids(signs)
    texts = [[10, 20, 30, 40, 50, 60], [70, 80], [11, 21, 31, 41]]
    rows = [[*before, *text, model._ids.end] for text in texts]
    clips = [clip(4.0, 1), clip(9.0, 2), clip(29.0, 3)]
    with torch.inference_mode():
        states, frames = model._encode([one.samples for one in clips])
        found = alignment.token_times(model._model, states, rows, len(before), frames, model._heads, 0.02)
        for row, count, state, times in zip(rows, frames, states, found, strict=True):
            with alignment._record(model._model.model.decoder, model._heads) as maps:
                model._model.model.decoder(input_ids=torch.tensor([row]), encoder_hidden_states=state[None])
            weights = np.stack([maps[head][0].numpy() for head in model._heads])[:, :, :count]
            wanted = reference(weights.astype(np.float64), len(before))
            assert np.array(times) == pytest.approx(np.array(wanted), abs=0.021)


def reference(weights: np.ndarray, prefix: int) -> list[tuple[float, float]]:
    """Times by the description of whisper/timing.py, of attention of shape (heads, tokens, frames)."""
    weights = weights / weights.sum(axis=-1, keepdims=True)
    weights = (weights - weights.mean(axis=1, keepdims=True)) / weights.std(axis=1, keepdims=True)
    padded = np.pad(weights, ((0, 0), (0, 0), (3, 3)), mode="reflect")
    smooth = np.stack([np.median(padded[:, :, i : i + 7], axis=-1) for i in range(weights.shape[-1])], axis=-1)
    starts = plain_starts(-smooth.mean(axis=0)[prefix - 1 : -1])
    return [(start * 0.02, end * 0.02) for start, end in itertools.pairwise(starts)]


def test_the_median_filter_is_the_median():
    import torch

    values = np.random.default_rng(0).standard_normal((2, 3, 50)).astype(np.float32)
    padded = np.pad(values, ((0, 0), (0, 0), (3, 3)), mode="reflect")
    wanted = np.stack([np.median(padded[:, :, i : i + 7], axis=-1) for i in range(50)], axis=-1)
    assert np.array_equal(alignment.smoothed(torch.tensor(values)).numpy(), wanted)


def test_silence_and_noise_have_no_text_with_the_detector(model, monkeypatch):
    monkeypatch.undo()
    if not vad.is_available():
        pytest.skip("silero-vad is not installed")
    noise = Clip((0.05 * np.random.default_rng(0).standard_normal(5 * RATE)).astype(np.float32))
    (transcript,) = ask(model, [noise], language="en", timestamps=True)
    assert (transcript.text, transcript.words, transcript.segments) == ("", (), ())


def test_only_a_text_that_repeats_itself_ends_early():
    import torch

    loops = steps.Loops(first_time=1000)
    varied = list(range(64))
    looped = [7, 8, 1000, *([1, 2, 3] * 30)]
    timed = [token for number in range(16) for token in (1000 + number, 1, 2, 1001 + number)]
    rows = torch.tensor([varied, looped[-64:], timed])
    assert loops(rows, None).tolist() == [False, True, True]
    assert loops(rows[:, :56], None).tolist() == [False, False, False], "too short to tell"
    rows[1, 40] = 9
    assert loops(rows, None).tolist() == [False, False, True]


def test_a_forbidden_token_is_not_written(model, monkeypatch):
    decode, written = decoding.decode, list[tuple[int, ...]]()

    def recorded(*arguments):
        rows = decode(*arguments)
        written.append(rows[0].tokens)
        return rows

    monkeypatch.setattr(decoding, "decode", recorded)
    for name in ("forbidden_first", "forbidden"):
        ask(model, CLIPS[:1], language="en")
        forbidden = (*getattr(model._ids, name), written[-1][0])
        monkeypatch.setattr(model, "_ids", dataclasses.replace(model._ids, **{name: forbidden}))
    ask(model, CLIPS[:1], language="en")
    first, second, third = written
    assert second[0] != first[0]
    assert second[0] not in third


def test_the_tokens_that_a_checkpoint_forbids_are_taken_from_its_settings(model):
    assert model._ids.end in model._ids.forbidden_first
    assert model._model.generation_config.begin_suppress_tokens is None
