"""Parakeet on a device with little memory: the length that full attention may have, local attention and windows for
what does not fit, and convolutions in pieces."""

from __future__ import annotations

import contextlib
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from conftest import DIGITS, LABELS, MODEL, edits

from worker.backends import create
from worker.catalog import find
from worker.config import Settings
from worker.engine.engine import Engine
from worker.errors import OutOfMemory
from worker.protocol.request import parse
from worker.types import Batch, Clip, Options, Piece

pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
import torch
from nemo.collections.asr.parts.submodules.subsampling import ConvSubsampling
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from worker.backends.nemo import encoder, local_attention, subsampling
from worker.backends.nemo.local_attention import LocalAttention, longest_full_sec

pytestmark = pytest.mark.slow

NAME = str(MODEL)
RATE = 16_000
GIB = 1024**3
SAID = [name for name in sorted(LABELS) if len(LABELS[name].split()) >= 3][:14]


def backend(**values):
    made = create(find(NAME), Settings(device="cpu", **values))
    made.load()
    return made


@pytest.fixture(scope="module")
def model():
    return backend()


@pytest.fixture(scope="module")
def clip() -> Clip:
    """Some 40 s of digits."""
    parts = [soundfile.read(DIGITS / name, dtype="float32")[0] for name in SAID]
    return Clip(np.concatenate([part for speech in parts for part in (speech, np.zeros(RATE // 2, np.float32))]))


def transcribe(made, *clips: Clip):
    return made.infer(Batch(tuple(Piece(each, Options(NAME)) for each in clips)))


class Full:
    """An encoder on a device that runs out of memory on clips longer than `fits_sec`, for its first `times` of them."""

    def __init__(self, monkeypatch, fits_sec=30.0, times=1):
        self.times, self.frames, self.calls = times, fits_sec * 100, []
        self.encode = subsampling.encode
        monkeypatch.setattr(encoder.subsampling, "encode", self)

    def __call__(self, conformer, mel, lengths):
        self.calls.append(conformer.self_attention_model)
        if mel.shape[-1] > self.frames and self.times:
            self.times -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 38.00 GiB")
        return self.encode(conformer, mel, lengths)


def test_a_clip_that_does_not_fit_is_transcribed_with_local_attention(model, clip, monkeypatch, caplog):
    with model._local:
        expected = transcribe(model, clip)
    device = Full(monkeypatch)
    found = transcribe(model, clip)
    assert device.calls == ["rel_pos", "rel_pos_local_attn"]
    assert found == expected
    assert len(found[0].text.split()) > 30
    assert "LOCAL_ATTENTION_AFTER_SEC" in caplog.text
    assert model._model.encoder.self_attention_model == "rel_pos"
    transcribe(model, clip)
    assert device.calls[2:] == ["rel_pos"], "the next clip may fit"


def test_a_batch_that_does_not_fit_is_left_to_the_engine(model, clip, monkeypatch):
    device = Full(monkeypatch, times=9)
    with pytest.raises(OutOfMemory):
        transcribe(model, clip, clip)
    assert device.calls == ["rel_pos"]


def test_other_errors_are_not_tried_again(model, clip, monkeypatch):
    device = Full(monkeypatch, times=0)
    monkeypatch.setattr(device, "encode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        transcribe(model, clip)
    assert device.calls == ["rel_pos"]


@pytest.mark.parametrize(("times", "way"), [(1, "local attention"), (2, "windows")])
def test_no_word_is_lost_when_a_clip_does_not_fit(times, way, clip, tmp_path, monkeypatch, caplog):
    soundfile.write(tmp_path / "long.wav", clip.samples, RATE)
    settings = Settings(model=NAME, device="cpu", allowed_paths=(tmp_path,), data_dir=tmp_path / "data")
    said = " ".join(LABELS[name] for name in SAID).split()
    with Engine(settings) as engine:
        request = parse({"inputs": [str(tmp_path / "long.wav")], "timestamps": True}, settings)
        (plain,) = engine.submit(request).result(120).results
        device = Full(monkeypatch, times=times)
        deltas = []
        (result,) = engine.submit(request, on_text=lambda _, text: deltas.append(text)).result(120).results
    assert device.calls[:2] == ["rel_pos", "rel_pos_local_attn"]
    assert set(device.calls[2:]) == ({"rel_pos"} if times == 2 else set())
    assert way in caplog.text
    assert result.warning is None
    assert "".join(deltas) in ("", result.output.text)
    assert [word.text for word in result.output.words] == result.output.text.split()
    for transcript in (result.output, plain.output):
        assert edits(transcript.text.split(), said) <= 0.1 * len(said)
    starts = [word.start for word in result.output.words]
    assert starts == sorted(starts)


def test_clips_too_long_for_full_attention_run_alone_and_change_no_other(clip):
    made = backend(local_attention_after_sec=10)
    short = Clip(clip.samples[: 4 * RATE])
    middle = Clip(clip.samples[: 15 * RATE])
    alone = [transcribe(made, each)[0] for each in (clip, short, middle)]
    assert transcribe(made, clip, short, middle) == alone
    with made._local:
        assert transcribe(made, clip) == alone[:1]


# The length of full attention


def conformer(**values):
    """An encoder of the size of parakeet-tdt-0.6b with one layer, whose weights take no memory in fake mode."""
    from nemo.collections.asr.modules import ConformerEncoder
    from omegaconf import OmegaConf

    config = {
        "feat_in": 128,
        "n_layers": 1,
        "d_model": 1024,
        "use_bias": False,
        "subsampling": "dw_striding",
        "subsampling_factor": 8,
        "subsampling_conv_channels": 256,
        "n_heads": 8,
        "xscaling": False,
        "pos_emb_max_len": 64,
        "conv_kernel_size": 9,
        "dropout": 0.0,
        "dropout_pre_encoder": 0.0,
        "dropout_emb": 0.0,
        **values,
    }
    made = ConformerEncoder(**config).eval().requires_grad_(False)
    made._cfg = OmegaConf.create(config)
    return made


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensors that are alive at a time, of those made inside."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.sizes = 0, 0, {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    self.alive += storage.nbytes()
                    self.peak = max(self.peak, self.alive)
                    weakref.finalize(storage, self.free, key)
        return result

    def free(self, key):
        self.alive -= self.sizes.pop(key)


@pytest.fixture(scope="module")
def full_size():
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        return conformer()


def peak_bytes(encoder, seconds: float, local: bool = False) -> int:
    """The bytes that the encoder takes for a clip, in float32."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode(), PeakBytes() as counted:
        mel = torch.empty(1, 128, int(seconds * 100))
        lengths = torch.full((1,), mel.shape[-1], dtype=torch.long)
        if local:
            with LocalAttention(encoder):
                subsampling.encode(encoder, mel, lengths)
        else:
            subsampling.encode(encoder, mel, lengths)
    return counted.peak


@pytest.mark.parametrize("seconds", [600, 1000, 1440])
def test_full_attention_takes_the_memory_that_the_formula_says(full_size, seconds):
    matrix = 8 * (seconds / 0.08) ** 2 * 4
    assert peak_bytes(full_size, seconds) == pytest.approx(local_attention.MATRICES * matrix, rel=0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_takes_the_memory_that_was_counted():
    seconds, made = 600, conformer().to("cuda", torch.bfloat16)
    mel = torch.zeros(1, 128, seconds * 100, device="cuda", dtype=torch.bfloat16)
    lengths = torch.full((1,), mel.shape[-1], device="cuda")
    for context, counted in (
        (contextlib.nullcontext(), local_attention.MATRICES * 8 * 7500**2 * 2),
        (LocalAttention(made), 2e9),
    ):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.inference_mode(), context:
            subsampling.encode(made, mel, lengths)
        assert torch.cuda.max_memory_allocated() - before == pytest.approx(counted, rel=0.1)


def test_four_hours_take_under_10_gb_in_bfloat16(full_size):
    assert peak_bytes(full_size, 4 * 3600, local=True) / 2 < 10e9


def test_the_convolutions_of_a_long_clip_take_no_more_than_those_of_ten_minutes(full_size):
    assert peak_bytes(full_size, 2400, local=True) < 1.1 * peak_bytes(full_size, 600, local=True)


@pytest.mark.parametrize(
    ("gib", "dtype", "seconds"),
    [
        (5, torch.bfloat16, 500),
        (20, torch.bfloat16, 1000),
        (20, torch.float32, 707),
        (34, torch.bfloat16, 1304),
        (80, torch.bfloat16, 1440),
    ],
)
def test_full_attention_is_as_long_as_the_free_memory_of_a_gpu_allows(full_size, monkeypatch, gib, dtype, seconds):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((gib - 1) * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GIB)  # 1 GiB of which is free
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * GIB)
    of_gpu = local_attention._bytes_for_attention(torch.device("cuda"))
    monkeypatch.setattr(local_attention, "_bytes_for_attention", lambda device: of_gpu)
    encoder = SimpleNamespace(layers=full_size.layers, parameters=lambda: iter([torch.empty(1, dtype=dtype)]))
    assert longest_full_sec(encoder, 0.08) == pytest.approx(seconds, abs=1)


def test_a_cpu_gives_half_its_memory_to_attention(monkeypatch):
    monkeypatch.setattr(local_attention.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**22}.__getitem__)
    assert local_attention._bytes_for_attention(torch.device("cpu")) == 8 * GIB


def test_the_setting_goes_before_the_memory(monkeypatch, model):
    monkeypatch.setattr(local_attention, "_bytes_for_attention", lambda device: 1.0)
    assert backend()._full_attention_sec < 1
    assert backend(local_attention_after_sec=3000)._full_attention_sec == 3000


# Convolutions in pieces


@pytest.mark.parametrize("kind", ["dw_striding", "striding"])
@pytest.mark.parametrize("factor", [4, 8])
def test_pieces_are_convolved_to_the_states_of_the_whole(kind, factor):
    torch.manual_seed(0)
    whole = ConvSubsampling(kind, factor, 80, 48, 16).eval()
    for frames in (1, 7, 8, 9, 63, 64, 65, 801, 998):
        for lengths in ([frames], [frames, max(1, frames // 2), max(1, frames - 5), 0]):
            mel, counts = torch.randn(len(lengths), frames, 80), torch.tensor(lengths)
            with torch.inference_mode():
                expected, expected_counts = whole(x=mel, lengths=counts)
                for size in (8, 16, 200):
                    states, found_counts = subsampling.subsample(whole, mel, counts, size * len(lengths))
                    assert states.shape == expected.shape
                    assert found_counts.tolist() == expected_counts.tolist()
                    assert (states - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("piece_frames", [8, 1000, subsampling.PIECE_FRAMES])
def test_the_encoder_s_states_are_nemo_s(model, clip, monkeypatch, piece_frames):
    monkeypatch.setattr(subsampling.subsample, "__defaults__", (piece_frames,))
    encoder, preprocessor = model._model.encoder, model._model.preprocessor
    samples = torch.from_numpy(clip.samples)[None].repeat(2, 1)
    with torch.inference_mode():
        mel, lengths = preprocessor(input_signal=samples, length=torch.tensor([samples.shape[1], 5 * RATE]))
        expected, expected_frames = encoder(audio_signal=mel, length=lengths)
        states, frames = subsampling.encode(encoder, mel, lengths)
    assert frames.tolist() == expected_frames.tolist()
    assert (states - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("values", [{"causal_downsampling": True}, {"subsampling": "stacking"}])
def test_other_convolutions_are_left_to_nemo(values):
    encoder = conformer(d_model=32, n_heads=2, feat_in=80, subsampling_conv_channels=8, **values)
    mel, lengths = torch.randn(1, 80, 901), torch.tensor([901])
    with torch.inference_mode():
        expected, expected_frames = encoder(audio_signal=mel, length=lengths)
        states, frames = subsampling.encode(encoder, mel, lengths)
    assert torch.equal(states, expected)
    assert frames.tolist() == expected_frames.tolist()
