"""Audio and Music Flamingo on tiny checkpoints of random weights: the real processor, tower and generation."""

from __future__ import annotations

import dataclasses
import functools
import threading

import numpy as np
import pytest
import soundfile
from conftest import check_embeddings

pytest.importorskip("transformers", reason="transformers is not installed")
import torch
import transformers
from fixtures import tiny_flamingo

from worker.backends import create
from worker.backends.common.audio_tower import WINDOW
from worker.backends.flamingo import CAPTIONS, TAIL, TRANSCRIBE
from worker.catalog import find
from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import ModelUnavailable
from worker.protocol.request import parse
from worker.types import Analysis, Batch, Caption, Clip, Embedding, Message, Options, Piece, Reply, Transcript

pytestmark = pytest.mark.slow

RATE = 16_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("flamingo")
    return {"audio": tiny_flamingo.save(base / "audio"), "music": tiny_flamingo.save(base / "music", music=True)}


def backend(name: object, **values):
    made = create(find(str(name)), Settings(device="cpu", **values))
    made.load()
    return made


@pytest.fixture(scope="module")
def models(folders):
    return {kind: backend(folder) for kind, folder in folders.items()}


@pytest.fixture(params=["audio", "music"])
def model(request, models):
    return models[request.param]


def clip(seconds: float, seed: int = 0) -> Clip:
    """Noise with a moving tone, different for each seed."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * (200 + 170 * seed) * t * (1 + 0.1 * np.sin(t))) + 0.05 * rng.standard_normal(len(t))
    return Clip(wave.astype(np.float32))


def ask(model, clips: list[Clip], **options) -> list:
    options.setdefault("max_new_tokens", 12)
    return model.infer(Batch(tuple(Piece(one, Options("m", **options)) for one in clips)))


CLIPS = [clip(seconds, seed) for seed, seconds in enumerate((1.3, 7.0, 41.5, 0.3))]


@pytest.mark.parametrize("task", ["transcribe", "caption", "chat"])
def test_together_equals_alone_in_any_order(model, task):
    alone = [ask(model, [one], task=task)[0] for one in CLIPS]
    assert len({one.text for one in alone}) > 1, "random weights that say the same to everything would prove nothing"
    assert ask(model, CLIPS, task=task) == alone
    assert ask(model, CLIPS[::-1], task=task) == alone[::-1]


def test_generation_is_greedy_unless_a_temperature_is_given(model):
    assert model._model.generation_config.do_sample, "the checkpoint would sample if it were left to itself"
    assert ask(model, CLIPS[:2], task="caption") == ask(model, CLIPS[:2], task="caption", temperature=0.0)
    torch.manual_seed(0)
    warm = {ask(model, CLIPS[:1], task="caption", temperature=1.5, max_new_tokens=20)[0].text for _ in range(4)}
    assert len(warm) > 1


def test_each_piece_of_a_batch_may_be_asked_something_else(model):
    prompts = ["what is this?", "brown fox in the rain, tell me more about it", None]
    pieces = [
        Piece(one, Options("m", task="caption", prompt=prompt, max_new_tokens=12))
        for one, prompt in zip(CLIPS, prompts, strict=False)
    ]
    together = model.infer(Batch(tuple(pieces)))
    assert together == [model.infer(Batch((piece,)))[0] for piece in pieces]
    one = [
        model.infer(
            Batch((dataclasses.replace(pieces[0], options=dataclasses.replace(pieces[0].options, prompt=prompt)),))
        )[0]
        for prompt in prompts
    ]
    assert len({caption.text for caption in one}) > 1


def test_the_repetition_penalty_does_not_touch_what_pads_a_short_prompt(model, monkeypatch):
    """A shorter row is padded on its left, and must not shun the token that it is padded with: here that token is just
    a little likelier than the one that the row would begin with."""
    options = Options("m", task="chat", prompt="hi", max_new_tokens=8)
    short, long = (
        Piece(CLIPS[0], options),
        Piece(CLIPS[1], dataclasses.replace(options, prompt="the fox in the rain " * 5)),
    )
    generate, given = model._model.generate, []
    monkeypatch.setattr(
        model._model, "generate", lambda **named: given.append((named["input_ids"], generate(**named))) or given[-1][1]
    )
    model.infer(Batch((short,)))
    prompt, ids = given[0]
    begins, penalty = ids[0, prompt.shape[1]], model._model.generation_config.repetition_penalty
    assert penalty == 1.05
    head, pad = model._model.get_output_embeddings().weight, model._processor.tokenizer.pad_token_id
    with torch.no_grad():
        kept = head[pad].clone()
        head[pad] = head[begins] * (1.02 / penalty if begins in prompt else 1.02)
        try:
            alone = [model.infer(Batch((piece,)))[0] for piece in (short, long)]
            assert alone[0].completion_tokens == 0
            assert model.infer(Batch((short, long))) == alone
        finally:
            head[pad] = kept


def test_styles_are_prompts_of_their_kind(models):
    for kind, model in models.items():
        for style in ("detailed", "brief", "technical"):
            (turn,) = model._conversation(Piece(CLIPS[0], Options("m", task="caption", style=style)))
            assert turn["content"][0]["text"] == CAPTIONS[kind][style]


def test_audio_flamingo_next_is_asked_about_audio_though_of_the_music_class(tmp_path):
    model = backend(tiny_flamingo.save(tmp_path / "audio-flamingo-next-hf", music=True))
    assert model._model.config.model_type == "musicflamingo"
    for task, text in (("caption", CAPTIONS["audio"]["detailed"]), ("transcribe", TRANSCRIBE)):
        (turn,) = model._conversation(Piece(CLIPS[0], Options("m", task=task)))
        assert turn["content"][0]["text"] == text


def test_tokens_counted_are_those_that_were_written(model):
    (caption,) = ask(model, CLIPS[:1], task="caption", max_new_tokens=5)
    assert isinstance(caption, Caption)
    assert caption.tokens_generated <= 5
    (reply,) = ask(model, CLIPS[:1], task="chat", max_new_tokens=5)
    assert isinstance(reply, Reply)
    assert (reply.completion_tokens, reply.finish_reason) == (5, "length")
    assert reply.prompt_tokens > 32, "the audio's own places are part of the prompt"


def test_a_conversation_holds_its_history_and_its_audio_where_it_was_given(model):
    turns = (
        Message("system", "be brief"),
        Message("user", "hello"),
        Message("assistant", "yes"),
        Message("user", "what is it?"),
    )
    piece = Piece(CLIPS[0], Options("m", task="chat", messages=turns, max_new_tokens=8))
    said = model._conversation(piece)
    assert [turn["role"] for turn in said] == ["system", "user", "assistant", "user"]
    assert [len(turn["content"]) for turn in said] == [1, 2, 1, 1]
    last = dataclasses.replace(turns[3], audio=True)
    moved = dataclasses.replace(piece, options=dataclasses.replace(piece.options, messages=(*turns[:3], last)))
    assert [len(turn["content"]) for turn in model._conversation(moved)] == [1, 1, 1, 2]
    replies = [model.infer(Batch((one,)))[0] for one in (piece, moved)]
    assert model.infer(Batch((piece, moved))) == replies


def test_text_is_streamed_as_it_is_written_and_adds_up(model):
    heard: dict[int, list[str]] = {0: [], 1: []}
    options = Options("m", task="chat", max_new_tokens=16)
    pieces = [Piece(one, options, on_text=heard[i].append) for i, one in enumerate(CLIPS[:2])]
    replies = model.infer(Batch(tuple(pieces)))
    for i, reply in enumerate(replies):
        assert "".join(heard[i]).strip() == reply.text
        assert len(heard[i]) > 2


def test_a_cancelled_piece_stops_at_the_next_token_and_the_others_go_on(model):
    seen: list[str] = []
    stopped = threading.Event()

    def listen(text: str) -> None:
        seen.append(text)
        if len(seen) == 3:
            stopped.set()

    options = Options("m", task="chat", max_new_tokens=40)
    (alone,) = model.infer(Batch((Piece(CLIPS[1], options),)))
    watched = Piece(CLIPS[0], options, cancelled=stopped.is_set, on_text=listen)
    first, second = model.infer(Batch((watched, Piece(CLIPS[1], options))))
    assert first.completion_tokens < 40
    assert second == alone


def test_embeddings_are_the_towers_states_without_padding(model):
    check_embeddings(functools.partial(ask, model, task="embed"), CLIPS, width=16, frame_rate=25.0)


def test_analyze_gives_the_caption_and_the_embedding_of_one_pass(model):
    passes: list[int] = []
    hook = model._tower.register_forward_hook(lambda *_: passes.append(1))
    analyses = ask(model, CLIPS[:3], task="analyze")
    hook.remove()
    assert len(passes) == 1
    captions, embeddings = ask(model, CLIPS[:3], task="caption"), ask(model, CLIPS[:3], task="embed")
    for analysis, caption, embedding in zip(analyses, captions, embeddings, strict=True):
        assert isinstance(analysis, Analysis)
        assert analysis.caption == caption
        assert analysis.embedding.values.shape == embedding.values.shape
        assert np.allclose(analysis.embedding.values, embedding.values, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 100, 320, 321, 641, WINDOW, WINDOW + 1, WINDOW + TAIL, WINDOW + TAIL + 1])
def test_no_length_makes_it_fail(model, samples):
    odd = Clip((0.1 * np.random.default_rng(1).standard_normal(samples)).astype(np.float32))
    captions = ask(model, [odd, CLIPS[0]], task="caption", max_new_tokens=3)
    assert captions[1] == ask(model, [CLIPS[0]], task="caption", max_new_tokens=3)[0]
    (embedding,) = ask(model, [odd], task="embed")
    assert abs(len(embedding.values) - samples / 640) <= 1.5
    assert len(ask(model, [odd, CLIPS[0]], task="analyze", max_new_tokens=3)[0].embedding.values) == len(
        embedding.values
    )


def test_thoughts_are_told_apart():
    from worker.backends.common.generation import split_thinking

    assert split_thinking("<think>a guitar?</think> Rock.") == ("Rock.", "a guitar?")
    assert split_thinking("Rock.") == ("Rock.", None)
    assert split_thinking("<think>a guitar, or") == ("", "a guitar, or")


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ('The spoken content of the audio is "hello there".', "hello there"),
        ("hello there.", "hello there."),
        ("The content of the input audio is 'it's here'.", "it's here"),
    ],
)
def test_the_framing_of_a_transcript_comes_off(said, text):
    from worker.backends.flamingo import _strip_preamble

    assert _strip_preamble(said) == text


def test_the_tower_alone_gives_the_same_embeddings(folders, models):
    for kind, folder in folders.items():
        alone = backend(f"{folder}:audio_tower")
        assert not hasattr(alone, "_model")
        for one, other in zip(ask(alone, CLIPS, task="embed"), ask(models[kind], CLIPS, task="embed"), strict=True):
            assert np.allclose(one.values, other.values, atol=1e-5)
        assert 0 < alone.weight_bytes() < models[kind].weight_bytes() / 2


def test_the_tower_is_a_small_part_of_the_full_size_model():
    with torch.device("meta"):
        whole = transformers.AudioFlamingo3ForConditionalGeneration(tiny_flamingo.full_size())
    everything, tower = (sum(p.numel() for p in module.parameters()) for module in (whole, whole.model.audio_tower))
    assert everything > 8e9
    assert tower < 0.1 * everything


def test_bfloat16_loads_and_answers(folders):
    half = backend(folders["audio"], dtype="bfloat16")
    assert len(ask(half, CLIPS[:2], task="analyze")) == 2


def test_a_missing_checkpoint_says_which():
    with pytest.raises(ModelUnavailable, match="nvidia/audio-flamingo-3-hf"):
        backend("audio-flamingo", hf_hub_offline=True)


def test_every_task_through_the_engine(folders, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, CLIPS[1].samples, RATE)
    settings = Settings(model=str(folders["audio"]), device="cpu", allowed_paths=(tmp_path,), data_dir=tmp_path / "d")
    with Engine(settings) as engine:

        def result(**payload):
            request = parse({"inputs": [str(path)], **payload}, engine.settings)
            (one,) = engine.submit(request).result(60).results
            return one

        assert isinstance(result(task="transcribe", max_new_tokens=8).output, Transcript)
        assert isinstance(result(task="caption", max_new_tokens=8).output, Caption)
        assert isinstance(result(task="chat", max_new_tokens=8, prompt="what?").output, Reply)
        assert isinstance(result(task="embed").output, Embedding)
        assert isinstance(result(task="analyze", max_new_tokens=8).output, Analysis)
        long = tmp_path / "long.flac"
        soundfile.write(long, np.zeros(601 * 8000, np.int16), 8000)
        request = parse({"inputs": [str(long)], "task": "caption"}, engine.settings)
        (failure,) = engine.submit(request).result(60).results
        assert failure.error.code == "too_long"
        assert "600 s" in failure.error.message
        told: list[tuple[int, str]] = []
        request = parse({"inputs": [str(path)], "task": "chat", "max_new_tokens": 12}, engine.settings)
        (reply,) = engine.submit(request, on_text=lambda index, text: told.append((index, text))).result(60).results
        assert "".join(text for _, text in told).strip() == reply.output.text


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The spoken content of the audio is 'Wir nahmen den frühen Zug nach Hause.'.", "de"),
        ("Nous avons pris le premier train du matin.", "fr"),
        ("", None),
    ],
)
def test_the_language_of_a_transcript_is_that_of_its_text_without_the_preamble(models, monkeypatch, text, language):
    monkeypatch.setattr(models["audio"], "_read", lambda ids: text)  # random weights write no language
    (transcript,) = ask(models["audio"], CLIPS[:1], task="transcribe")
    assert transcript.language == language


def test_texts_that_a_limit_cuts_off_say_so(model):
    for task in ("transcribe", "caption", "chat", "analyze"):
        (output,) = ask(model, CLIPS[:1], task=task, max_new_tokens=2)
        text = output.caption if task == "analyze" else output
        assert text.finish_reason == "length"
        assert text.warning.startswith("The text is cut off at max_new_tokens (2)")


def test_compile_without_a_compiler_is_refused_at_load(folders):
    from torch._inductor import config

    made = create(find(str(folders["audio"])), Settings(device="cpu", compile=True))
    with config.patch("cpp.cxx", (None, "/nonexistent/g++")), pytest.raises(ModelUnavailable, match="COMPILE=1"):
        made.load()
