"""Nemotron ASR with tiny checkpoints: clips, live audio that gives the same tokens, languages, and the ways in."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from conftest import DIGITS, LABELS, alike
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import serving

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from fixtures import tiny_nemotron
from test_handler import run
from test_package import ROOT
from tokenizers import decoders

from worker.backends import create
from worker.backends.common.silence import is_silent
from worker.backends.nemotron_asr.backend import NemotronAsr
from worker.backends.nemotron_asr.greedy import Tokens
from worker.backends.nemotron_asr.streaming import Stream
from worker.catalog import find
from worker.config import Settings
from worker.errors import Unsupported
from worker.types import SAMPLE_RATE, Batch, Clip, Live, Options, Piece, Transcript

pytestmark = pytest.mark.slow

FRAME_SEC = 0.08


def load(folder: Path, **values) -> NemotronAsr:
    model = create(find(str(folder)), Settings(device="cpu", **values))
    assert isinstance(model, NemotronAsr)
    model.load()
    return model


@pytest.fixture(scope="module")
def english(tmp_path_factory) -> Path:
    return tiny_nemotron.save(tmp_path_factory.mktemp("english"))


@pytest.fixture(scope="module")
def languages(tmp_path_factory) -> Path:
    return tiny_nemotron.save(tmp_path_factory.mktemp("languages"), multilingual=True)


@pytest.fixture(scope="module", params=[("english", 80), ("english", 160), ("english", 560), ("languages", 1120)])
def model(request):
    """A model that streams with the chunks of a length, and transcribes clips with the same lookahead."""
    folder, chunk_ms = request.param
    made = load(request.getfixturevalue(folder), realtime_chunk_ms=chunk_ms)
    made._lookahead = round(chunk_ms / 80) - 1
    yield made
    made.close()


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [soundfile.read(DIGITS / name, dtype="float32")[0] for name in list(LABELS)[:5]]


def transcribe(model: NemotronAsr, clips: list[np.ndarray], **options) -> list[Transcript]:
    return model.infer(Batch(tuple(Piece(Clip(clip), Options("m", **options)) for clip in clips)))


def advance(model: NemotronAsr, parts: list[tuple[np.ndarray, object, bool]], **options) -> list[Transcript]:
    """Run the next pieces of streams: the samples, the state and whether the stream ends."""
    pieces = (Piece(Clip(clip), Options("m", **options), live=Live(state, ends)) for clip, state, ends in parts)
    return model.infer(Batch(tuple(pieces)))


def stream(model: NemotronAsr, clip: np.ndarray, cuts: list[int], **options) -> list[Transcript]:
    """What a stream says after each of its pieces."""
    said: list[Transcript] = []
    for piece in np.split(clip, sorted(cuts)):
        state = said[-1].live_state if said else None
        said += advance(model, [(piece, state, len(said) == len(cuts))], **options)
    return said


# Live audio


@settings(max_examples=12)
@given(data=st.data())
def test_live_audio_in_any_pieces_gives_the_tokens_of_the_clip(model, clips, data):
    clip = data.draw(st.sampled_from(clips))
    clip = clip[: data.draw(st.integers(0, len(clip)))]
    cuts = data.draw(st.lists(st.integers(0, len(clip)), max_size=6))
    whole = None if is_silent(clip) else transcribe(model, [clip], confidence=True)[0]
    said = stream(model, clip, cuts, confidence=True)
    for before, after in itertools.pairwise(said):
        assert after.text.startswith(before.text)
    if whole is not None:
        assert said[-1].text == whole.text
        assert alike(said[-1].tokens, whole.tokens)


def test_a_character_of_several_tokens_appears_once_it_is_complete(tmp_path, monkeypatch):
    """Tokens may be bytes. What a stream says is never taken back, so that the deltas are the transcript."""
    monkeypatch.setattr(tiny_nemotron, "PIECES", [*tiny_nemotron.PIECES, "<0xE5>", "<0xA5>", "<0xBD>"])
    plain = tiny_nemotron.tokenizer

    def with_bytes(pieces: list[str]) -> transformers.ParakeetTokenizer:
        made = plain(pieces)
        made.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
        return made

    monkeypatch.setattr(tiny_nemotron, "tokenizer", with_bytes)
    model = load(tiny_nemotron.save(tmp_path))
    ids = model._tokenizer.convert_tokens_to_ids(["▁fox", "▁", "<0xE5>", "<0xA5>", "<0xBD>", "a"])
    steps = iter(range(1, len(ids) + 1))

    def stream_of(*_args, **_options) -> list[Stream]:
        count = next(steps)
        return [replace(start, ids=tuple(ids[:count]), starts=tuple(range(count)))]

    start = model._streaming.start()
    monkeypatch.setattr(model._streaming, "advance", stream_of)
    said = stream(model, np.zeros(600, np.float32), [100, 200, 300, 400, 500])
    assert said[-1].text == "fox 好a"
    for before, after in itertools.pairwise(said):
        assert after.text.startswith(before.text)


def test_a_long_stream_forgets_what_the_clip_s_frames_do_not_see(model, clips):
    long = np.concatenate(3 * clips)
    said = stream(model, long, list(range(16_000, len(long), 16_000)))
    assert said[-1].text == transcribe(model, [long])[0].text
    state = said[-2].live_state
    assert len(state.samples) < 2 * SAMPLE_RATE
    assert len(said[-1].text) > len(said[10].text) > 0


def test_the_text_of_a_chunk_comes_with_the_chunk(model, clips):
    """Each piece of a chunk's length takes the encoder a chunk further."""
    chunk = round((model._lookahead + 1) * FRAME_SEC * SAMPLE_RATE)
    state, long = None, np.concatenate(clips)
    for number in range(4):
        (said,) = advance(model, [(long[number * chunk : (number + 1) * chunk], state, False)])
        state = said.live_state
        assert state.frames == (number + 1) * (model._lookahead + 1)


def test_streams_of_any_age_share_batches_and_change_nothing_for_each_other(model, clips):
    chunk = 7_000
    alone = [[said.text for said in stream(model, clip, list(range(chunk, len(clip), chunk)))] for clip in clips]
    pieces = [np.split(clip, range(chunk, len(clip), chunk)) for clip in clips]
    together: list[list[str]] = [[] for _ in clips]
    states: list[object] = [None] * len(clips)
    for step in range(2 * len(clips) + max(map(len, pieces))):
        rows = [i for i in range(len(clips)) if 0 <= step - 2 * i < len(pieces[i])]  # each starts two pieces later
        parts = [(pieces[i][step - 2 * i], states[i], step - 2 * i == len(pieces[i]) - 1) for i in rows]
        for i, said in zip(rows, advance(model, parts) if parts else [], strict=True):
            together[i].append(said.text)
            states[i] = said.live_state
    assert together == alone
    assert len({texts[-1] for texts in together}) > 1


def test_a_piece_can_run_again(model, clips):
    """A batch that fails is run again, so a state is never changed."""
    (first,) = advance(model, [(clips[0][:20_000], None, False)])
    second, again = (advance(model, [(clips[0][20_000:], first.live_state, True)])[0] for _ in range(2))
    assert second.text == again.text == transcribe(model, [clips[0]])[0].text


def test_the_lookahead_is_the_longest_one_within_the_chunk(english):
    for chunk_ms, frames in ((80, 1), (159, 1), (160, 2), (560, 7), (1119, 7), (2000, 14)):
        model = load(english, realtime_chunk_ms=chunk_ms)
        (said,) = advance(model, [(np.zeros(3 * SAMPLE_RATE, np.float32), None, False)])
        assert said.live_state.frames % frames == 0
        assert 3 - said.live_state.frames * FRAME_SEC <= (frames + 1) * FRAME_SEC


# Clips


def test_a_short_clip_ends_where_it_ends_beside_a_long_one(english, clips):
    """`generate` of transformers keeps decoding the padding of the short one."""
    model = load(english)
    long = np.concatenate(clips)
    together = transcribe(model, [long, clips[0]], timestamps=True, confidence=True)
    for clip, transcript in zip([long, clips[0]], together, strict=True):
        assert alike(transcribe(model, [clip], timestamps=True, confidence=True)[0], transcript)
        assert 0 < transcript.words[-1].end <= len(clip) / SAMPLE_RATE
        assert "".join(word.text for word in transcript.words) == transcript.text.replace(" ", "")


def test_the_tokens_are_those_of_transformers_for_one_clip(english, clips):
    import torch

    model = load(english)
    for clip in clips:
        features = model._extractor([clip], sampling_rate=SAMPLE_RATE, return_tensors="pt")
        with torch.inference_mode():
            made = model._model.generate(**features, num_lookahead_tokens=13).sequences[0].tolist()
            ours = model._transcribe([Piece(Clip(clip), Options("m"))], None, False)[0]
        tokens = [number for number in made if number not in (0, model._model.config.blank_token_id)]
        assert ours.ids[: len(tokens)] == tokens
        assert len(tokens) > 0.8 * len(ours.ids)  # `generate` ends at a number of steps, in which it counts the blanks


def test_no_audio_is_too_short(english):
    model = load(english)
    noise = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)
    for count in (1, 100, 159, 160, 161, 400, 1280, 4000):
        (transcript,) = transcribe(model, [noise[:count]], timestamps=True)
        assert all(word.end <= count / SAMPLE_RATE for word in transcript.words)
        assert isinstance(stream(model, noise[:count], [])[-1].text, str)


# Languages


def test_the_language_is_a_prompt_and_its_tag_no_part_of_the_text(languages, clips):
    model = load(languages)
    auto, german, swedish = (transcribe(model, clips[:1], language=code)[0] for code in (None, "de", "sv"))
    assert len({auto.text, german.text, swedish.text}) > 1, "the prompt changes nothing"
    assert (german.language, swedish.language) == ("de", "sv")
    thai = transcribe(model, clips[:1], language="th")[0]  # the processor knows th-TH only
    assert thai.language == "th"
    with pytest.raises(Unsupported, match=r"'xx'.*supports .*de"):
        transcribe(model, clips[:1], language="xx")
    tag, the = model._tokenizer.convert_tokens_to_ids(["<fr-FR>", "\u2581the"])
    transcript = model._transcript(Piece(Clip(clips[0]), Options("m")), Tokens([the, tag, the], [0, 1, 2], []))
    assert (transcript.text, transcript.language) == ("the the", "fr")
    assert [word.text for word in transcript.words] == ["the", "the"]


def test_the_rows_and_what_a_folder_says(english, languages):
    assert find("nemotron-asr").id == "nvidia/nemotron-3.5-asr-streaming-0.6b"
    assert len(find("nemotron-asr").languages) == 35
    assert find("nemotron-asr-en").languages == ("en",)
    assert find(str(english)).languages == (), "its files do not say"
    assert find("someone/nemotron-3.5-asr-mine").backend == find(str(languages)).backend == "nemotron_asr"
    assert find(str(languages)).languages == ()
    assert all(find(name).live for name in ("nemotron-asr", "nemotron-asr-en", str(english)))


# The ways in


def test_http_the_command_line_and_a_job_transcribe_the_same(english, tmp_path):
    name = next(iter(LABELS))
    values = {"model": str(english), "device": "cpu", "data_dir": tmp_path, "allowed_paths": (DIGITS,)}
    with serving(Settings(**values)) as url:
        with (DIGITS / name).open("rb") as file:
            form = {"model": str(english), "response_format": "verbose_json", "timestamp_granularities[]": "word"}
            response = httpx.post(f"{url}/v1/audio/transcriptions", files={"file": file}, data=form, timeout=60)
        body = response.json()
    assert response.status_code == 200, body
    assert body["text"]
    assert "".join(word["word"] for word in body["words"]) == body["text"].replace(" ", "")
    environment = os.environ | {"DEVICE": "cpu", "DATA_DIR": str(tmp_path / "cli"), "MODEL": str(english)}
    command = [sys.executable, "-m", "worker", "transcribe", str(DIGITS / name)]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["text"] == body["text"]
    (job,) = run([{"inputs": [str(DIGITS / name)], "timestamps": True}], MODEL=str(english))
    assert body["text"] in job
