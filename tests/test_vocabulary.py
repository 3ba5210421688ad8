"""Whisper's steps over the vocabulary, made faster: `generate` returns what it returned before."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
import torch
import transformers
from transformers import generation

from tests.fixtures import tiny_whisper
from worker.backends.common import vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_whisper.save(tmp_path_factory.mktemp("whisper"))


def load(folder):
    return transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("prompt", [None, [5, 6, 7]])
def test_generate_writes_what_it_wrote_before(folder, timestamps, prompt):
    slow, fast = load(folder), load(folder)
    vocabulary.speed_up(fast)
    assert fast.proj_out.weight is fast.model.decoder.embed_tokens.weight
    torch.manual_seed(3)
    states = transformers.modeling_outputs.BaseModelOutput(torch.randn(3, 1500, 16))
    named = {
        "encoder_outputs": states,
        "return_timestamps": timestamps,
        "force_unique_generate_call": True,
        "max_new_tokens": 40,
        "language": "en",
    }
    if prompt:
        start = slow.generation_config.prev_sot_token_id
        named["prompt_ids"] = torch.tensor([start, *prompt])
    free = slow.generate(**named)
    # The first three tokens that the model prefers are forbidden, one of them at the first step only.
    new = free[:, -40:] if free.shape[1] > 40 else free
    forbidden, first = sorted({*new[:, 1].tolist(), *new[:, 2].tolist()}), sorted({*new[:, 0].tolist()})
    named |= {"suppress_tokens": forbidden, "begin_suppress_tokens": first}
    expected = slow.generate(**named)
    assert not torch.equal(expected, free)
    assert torch.equal(fast.generate(**named), expected)


def test_no_rule_that_searches_the_vocabulary_is_left(folder):
    model = load(folder)
    vocabulary.speed_up(model)
    settings = model.generation_config
    settings.suppress_tokens, settings.begin_suppress_tokens, settings.no_speech_threshold = [1, 2], [3], None
    rules = model._retrieve_logit_processors(settings, None, 4, 1, "cpu")
    searching = (generation.SuppressTokensLogitsProcessor, generation.SuppressTokensAtBeginLogitsProcessor)
    assert len(rules) == 2
    assert not any(isinstance(rule, searching) for rule in rules)


def test_the_rule_of_the_first_step_applies_to_that_step_only():
    rule = vocabulary.Suppress(torch.tensor([1]), 7)
    rule.set_begin_index(2)
    ids = torch.zeros(1, 3, dtype=torch.long)
    assert rule(ids[:, :2], torch.zeros(1, 3)).tolist() == [[0.0, -float("inf"), 0.0]]
    assert rule(ids, torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


def test_an_empty_list_of_forbidden_tokens_forbids_nothing(folder):
    model = load(folder)
    vocabulary.speed_up(model)
    settings = model.generation_config
    settings.suppress_tokens, settings.begin_suppress_tokens, settings.no_speech_threshold = [], [], None
    scores = torch.ones(2, 5)
    for rule in model._retrieve_logit_processors(settings, None, 1, 1, "cpu"):
        scores = rule(torch.zeros(2, 1, dtype=torch.long), scores)
    assert scores.eq(1).all()
