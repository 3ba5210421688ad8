"""NeMo's real path on the tiny digits Parakeet: right words from every format, and answers that depend on nothing
else."""

from __future__ import annotations

import dataclasses
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import DIGITS, LABELS, MODEL, edits, encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.backends import create
from worker.catalog import find
from worker.catalog.rows import EUROPEAN
from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import ModelUnavailable
from worker.protocol.request import parse
from worker.types import Batch, Clip, Options, Piece, Transcript

pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
import torch
from fixtures import train_parakeet
from test_vetting import variant

pytestmark = pytest.mark.slow

RATE = 16_000
NAME = str(MODEL)


def backend(name: str = NAME, **values):
    made = create(find(name), Settings(device="cpu", **values))
    made.load()
    return made


@pytest.fixture(scope="module")
def model():
    return backend(local_attention_after_sec=40)


@pytest.fixture(scope="module")
def clips() -> dict[str, Clip]:
    return {name: Clip(soundfile.read(DIGITS / name, dtype="float32")[0]) for name in LABELS}


@pytest.fixture(scope="module")
def heard(model, clips) -> dict[str, Transcript]:
    """Each clip alone: what everything else is compared with."""
    return {name: hear(model, clip)[0] for name, clip in clips.items()}


def hear(model, *given_clips: Clip, long: bool = False) -> list[Transcript]:
    return model.infer(Batch(tuple(Piece(clip, Options(NAME)) for clip in given_clips), long=long))


def right(heard: dict[str, Transcript]) -> list[str]:
    return [name for name in LABELS if heard[name].text == LABELS[name]]


def joined(clips: dict[str, Clip], names: list[str], pause_sec: float = 0.3) -> tuple[Clip, str]:
    pause = np.zeros(int(pause_sec * RATE), np.float32)
    parts = [part for name in names for part in (clips[name].samples, pause)]
    return Clip(np.concatenate(parts)), " ".join(LABELS[name] for name in names)


def test_held_out_strings_are_heard_right(heard):
    assert len(right(heard)) >= 31, {name: (heard[name].text, LABELS[name]) for name in set(LABELS) - set(right(heard))}


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mp3", ("-b:a", "64k")),
        ("m4a", ("-c:a", "aac", "-b:a", "64k")),
        ("ogg", ("-c:a", "libopus", "-b:a", "32k")),
        ("wav", ("-ar", "44100", "-ac", "2")),
        ("mp4", ("-f", "lavfi", "-i", "color=c=red:s=32x32:d=1", "-map", "0:a", "-map", "1:v")),
    ],
)
def test_the_same_words_from_every_format(tmp_path, heard, suffix, options):
    names = right(heard)[:12]
    paths = [encode(DIGITS / name, tmp_path / f"{Path(name).stem}.{suffix}", *options) for name in names]
    with Engine(Settings(model=NAME, device="cpu", allowed_paths=(tmp_path,), data_dir=tmp_path / "data")) as engine:
        request = parse({"timestamps": True, "inputs": [str(path) for path in paths]}, engine.settings)
        response = engine.submit(request).result(120)
    texts = [one.output.text for one in response.results]
    assert sum(text == LABELS[name] for text, name in zip(texts, names, strict=True)) >= 11, texts


@given(st.lists(st.sampled_from(sorted(LABELS)), min_size=2, max_size=10), st.integers(0, 99))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_together_equals_alone_whatever_the_order(model, clips, heard, names, seed):
    shuffled = random.Random(seed).sample(names, len(names))
    for order in (names, shuffled):
        assert hear(model, *(clips[name] for name in order)) == [heard[name] for name in order]


def test_a_short_clip_is_not_changed_by_long_ones_around_it(model, clips, heard):
    name = right(heard)[0]
    long_clip, _ = joined(clips, right(heard)[:10])
    assert hear(model, clips[name], long_clip)[0] == heard[name]


def test_words_have_times_that_rise_and_lie_within_the_clip(clips, heard):
    for name, transcript in heard.items():
        assert " ".join(word.text for word in transcript.words) == transcript.text
        assert " ".join(segment.text for segment in transcript.segments) == transcript.text
        assert "".join(char.text for char in transcript.chars) == transcript.text.replace(" ", "")
        edges = [edge for word in transcript.words for edge in (word.start, word.end)]
        assert all(0 <= edge <= clips[name].duration_sec for edge in edges)
        starts = edges[::2]
        assert starts == sorted(starts)
        assert all(word.end > word.start for word in transcript.words)


def test_times_move_with_the_audio(model, clips, heard):
    """The same words a second later have the same times a second later, within a frame or so."""
    moved = 0
    for name in right(heard)[:8]:
        late = Clip(np.concatenate([np.zeros(RATE, np.float32), clips[name].samples]))
        (transcript,) = hear(model, late)
        if transcript.text == heard[name].text:
            moved += 1
            for before, after in zip(heard[name].words, transcript.words, strict=True):
                assert after.start - before.start == pytest.approx(1.0, abs=0.33)
    assert moved >= 6


def test_a_word_of_under_a_second(model, clips, heard):
    single = [name for name in right(heard) if " " not in LABELS[name] and clips[name].duration_sec < 1.4]
    assert single, "the fixtures hold single digits"
    for name in single:
        clip = Clip(clips[name].samples[RATE // 5 : -RATE // 5])  # most of the silence around it cut off
        assert clip.duration_sec < 1
        (transcript,) = hear(model, clip)
        (word,) = transcript.words
        assert word.text == LABELS[name]
        assert 0 <= word.start < word.end <= clip.duration_sec


def test_long_audio_with_local_attention_has_the_right_words(model, clips, heard):
    clip, text = joined(clips, right(heard)[:24])
    assert clip.duration_sec > 40
    (transcript,) = hear(model, clip, long=True)
    said, wanted = transcript.text.split(), text.split()
    assert edits(said, wanted) <= 0.1 * len(wanted)


def test_a_long_file_leaves_no_trace(model, clips, heard):
    before = {name: value.clone() for name, value in model._model.state_dict().items()}
    clip, _ = joined(clips, sorted(LABELS))
    hear(model, clip, long=True)
    for name in right(heard)[:4]:
        assert hear(model, clips[name])[0] == heard[name]
    after = model._model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    encoder = model._model.encoder
    assert (encoder.self_attention_model, list(encoder.att_context_size)) == ("rel_pos", [-1, -1])


def test_local_attention_equals_full_attention_where_the_window_covers_all_and_differs_where_not(model):
    mel = torch.randn(1, 80, 800, generator=torch.Generator().manual_seed(0))
    encoder, length = model._model.encoder, torch.tensor([800])
    with torch.inference_mode():
        full, _ = encoder(audio_signal=mel, length=length)
        with model._local:
            local, _ = encoder(audio_signal=mel, length=length)
        assert (full - local).abs().max() < 1e-4
        long_mel = torch.randn(1, 80, 6400, generator=torch.Generator().manual_seed(0))
        with model._local:
            local, _ = encoder(audio_signal=long_mel, length=torch.tensor([6400]))
        full, _ = encoder(audio_signal=long_mel, length=torch.tensor([6400]))
        assert (full - local).abs().max() > 1e-3


def test_local_attention_is_restored_when_the_model_fails(model):
    encoder = model._model.encoder
    layers = [layer.self_attn for layer in encoder.layers]
    with pytest.raises(RuntimeError), model._local:
        raise RuntimeError
    assert [layer.self_attn for layer in encoder.layers] == layers
    assert encoder.self_attention_model == "rel_pos"


@pytest.mark.parametrize(
    "samples", [np.zeros(1, np.float32), np.zeros(RATE * 3, np.float32), np.full(900, 0.5, np.float32)]
)
def test_what_holds_no_words_is_empty_text(model, samples):
    (transcript,) = hear(model, Clip(samples))
    assert (transcript.text, transcript.words) == ("", ())


def test_odd_inputs_through_the_engine(tmp_path, heard):
    name = right(heard)[0]
    audio, rate = soundfile.read(DIGITS / name)
    odd = {"u8.wav": ("PCM_U8", audio[:, None]), "six.flac": ("PCM_16", np.repeat(audio[:, None], 6, axis=1))}
    paths = []
    for file, (subtype, data) in odd.items():
        soundfile.write(tmp_path / file, data, rate, subtype=subtype)
        paths.append(str(tmp_path / file))
    paths.append(str(encode(DIGITS / name, tmp_path / "96.flac", "-ar", "96000")))
    soundfile.write(tmp_path / "silence.wav", np.zeros(3 * RATE), RATE)
    soundfile.write(tmp_path / "one.wav", np.zeros(1), RATE)
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "hours.flac", np.zeros(3 * 3600 * 8000, np.int16), 8000)
    paths += [str(tmp_path / file) for file in ("silence.wav", "one.wav", "zero.wav", "hours.flac")]
    with Engine(Settings(model=NAME, device="cpu", allowed_paths=(tmp_path,), data_dir=tmp_path / "data")) as engine:
        response = engine.submit(parse({"inputs": paths}, engine.settings)).result(240)
    u8, six, high, silence, one, zero, hours = response.results
    assert [r.output.text for r in (u8, six, high)] == [LABELS[name]] * 3
    assert [r.output.text for r in (silence, one, hours)] == [""] * 3
    assert hours.duration_sec == 3 * 3600
    assert zero.error.code == "empty_audio"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["loading.lock"]


def test_a_missing_file_says_which():
    with pytest.raises(ModelUnavailable, match="/no/such"):
        backend("/no/such.nemo")


def test_no_device_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ModelUnavailable, match="DEVICE=cuda"):
        create(find(NAME), Settings(device="cuda")).load()


def random_model(kind: str, folder: Path) -> str:
    """A tiny model of another kind of the family, with random weights, saved as NeMo saves."""
    import nemo.collections.asr as nemo_asr
    from omegaconf import OmegaConf, open_dict

    torch.manual_seed(0)
    (folder / "tokenizer").mkdir()
    train_parakeet.tokenizer(folder / "tokenizer", [" ".join(train_parakeet.DIGITS)] * 20)
    config = train_parakeet.config(d_model=32, layers=1)
    with open_dict(config):
        config.tokenizer.dir = str(folder / "tokenizer")
        if kind != "tdt":
            del config.model_defaults.tdt_durations, config.model_defaults.num_tdt_durations
            config.joint.num_extra_outputs = 0
            config.decoding = {"strategy": "greedy_batch", "greedy": {"max_symbols": 5}, "beam": {"beam_size": 2}}
            config.loss = {"loss_name": "default"}
        ctc = OmegaConf.create(
            {
                "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
                "feat_in": None,
                "num_classes": -1,
                "vocabulary": [],
            }
        )
        if kind == "ctc":
            ctc.feat_in = 32
            config.decoder, config.decoding = ctc, {"strategy": "greedy_batch"}
            del config.joint, config.loss
            model = nemo_asr.models.EncDecCTCModelBPE(cfg=config)
        elif kind == "hybrid":
            config.aux_ctc = {
                "ctc_loss_weight": 0.3,
                "use_cer": False,
                "ctc_reduction": "mean_batch",
                "decoder": ctc,
                "decoding": {"strategy": "greedy_batch"},
            }
            model = nemo_asr.models.EncDecHybridRNNTCTCBPEModel(cfg=config)
        else:
            model = nemo_asr.models.EncDecRNNTBPEModel(cfg=config)
    path = folder / f"{kind}.nemo"
    model.save_to(str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["rnnt", "ctc", "hybrid"])
def test_the_other_kinds_of_the_family(kind, tmp_path, clips):
    model = backend(random_model(kind, tmp_path))
    some = list(clips.values())[:5]
    alone = [hear(model, clip)[0] for clip in some]
    assert hear(model, *some) == alone
    assert any(transcript.words for transcript in alone)
    for clip, transcript in zip(some, alone, strict=True):
        assert all(0 <= word.start <= word.end <= clip.duration_sec for word in transcript.words)
        assert " ".join(word.text for word in transcript.words).replace(" ", "") == transcript.text.replace(" ", "")
    long_clip = Clip(np.concatenate([clip.samples for clip in some]))
    first = hear(model, long_clip, long=True)
    assert hear(model, long_clip, long=True) == first


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_device_hears_what_the_processor_hears(clips, heard, dtype):
    on_device = create(find(NAME), Settings(device="cuda", dtype=dtype))
    on_device.load()
    texts = [transcript.text for transcript in hear(on_device, *clips.values())]
    same = sum(text == heard[name].text for text, name in zip(texts, clips, strict=True))
    assert same == len(clips) if dtype == "float32" else same >= len(clips) - 2


def test_durations_are_those_nemo_finds_for_a_clip_alone(model, clips):
    """NeMo's own are right for a batch of one; in a batch, 3.0.0 mixes them up between rows."""
    from copy import deepcopy

    from omegaconf import open_dict

    whole = model._model
    config = deepcopy(whole.cfg.decoding)
    with open_dict(config):
        config.tdt_include_token_duration = True
    kept = whole.decoding, whole.cfg.decoding
    whole.change_decoding_strategy(config, verbose=False)
    try:
        for clip in clips.values():
            with torch.inference_mode():
                mel, length = whole.preprocessor(
                    input_signal=torch.from_numpy(clip.samples)[None], length=torch.tensor([len(clip.samples)])
                )
                encoded, frames = whole.encoder(audio_signal=mel, length=length)
                (theirs,) = whole.decoding.rnnt_decoder_predictions_tensor(encoded, frames, return_hypotheses=True)
                ours, _ = model._rescore(encoded, [theirs.y_sequence.tolist()], [theirs.timestamp.tolist()], False)
            assert ours == [theirs.token_duration.tolist()]
    finally:
        whole.decoding, whole.cfg.decoding = kept


def test_the_marks_of_a_realtime_model_are_left_out_of_transcripts(tmp_path, heard, clips):
    """A copy of the model has the mark of an utterance's end in place of one of its words."""
    from sentencepiece import sentencepiece_model_pb2

    with tarfile.open(MODEL) as archive:
        (name,) = (one for one in archive.getnames() if one.endswith("_tokenizer.model"))
        tokenizer = sentencepiece_model_pb2.ModelProto.FromString(archive.extractfile(name).read())
    (piece,) = (one for one in tokenizer.pieces if one.piece == "▁seven")
    piece.piece = "<EOU>"
    changed = {name.removeprefix("./").replace(".", "__"): tokenizer.SerializeToString()}
    marking = backend(str(variant(MODEL, tmp_path / "eou.nemo", **changed)))
    told = {name: hear(marking, clips[name])[0] for name in LABELS if "seven" in heard[name].text.split()}
    assert len(told) > 3
    for name, one in told.items():
        expected = [word for word in heard[name].text.split() if word != "seven"]
        assert (one.text.split(), [word.text for word in one.words]) == (expected, expected)
    confident = Piece(clips[next(iter(told))], Options(NAME, confidence=True))
    (one,) = marking.infer(Batch((confident,)))
    assert all(token.text != "<EOU>" for token in one.tokens)
    assert all(word.confidence is not None for word in one.words)


def test_a_model_of_several_languages_says_which_one_it_wrote(clips):
    made = create(dataclasses.replace(find(NAME), languages=EUROPEAN), Settings(device="cpu"))
    made.load()
    long = [clip for name, clip in clips.items() if len(LABELS[name].split()) >= 4]
    found = hear(made, *long)
    assert {one.language for one in found} <= {"en", None}
    assert sum(one.language == "en" for one in found) >= 0.8 * len(found)
    assert [hear(made, clip)[0] for clip in long] == found
    silence = Clip(np.zeros(RATE, np.float32))
    assert hear(made, silence)[0].language is None
    (told,) = made.infer(Batch((Piece(silence, Options(NAME, language="de")),)))
    assert told.language == "de"
    english = create(dataclasses.replace(find(NAME), languages=("en",)), Settings(device="cpu"))
    english.load()
    assert hear(english, silence)[0].language == "en"  # a model of one language writes no other
