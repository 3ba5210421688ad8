"""The proof of CUDA graphs, on a CPU: NeMo's implementation for graphs runs without a graph, and with faulty ones."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import soundfile
from conftest import DIGITS, LABELS, MODEL

from worker.backends import create
from worker.backends.nemo import cuda_graphs
from worker.catalog import find
from worker.config import Settings
from worker.types import Batch, Clip, Options, Piece

pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
import torch
from nemo.collections.asr.parts.submodules.transducer_decoding.label_looping_base import (
    GreedyBatchedLabelLoopingComputerBase,
)
from test_parakeet import random_model

pytestmark = pytest.mark.slow

ROWS, FRAMES = 4, 400


def load(name: str, **values):
    made = create(find(name), Settings(device="cpu", batch_max_items=ROWS, short_max_sec=30, **values))
    made.load()
    made._windowed = False  # as on a GPU
    return made


class Graph:
    """NeMo's implementation for graphs, without a graph, and with a fault in what each call finds, if there is one."""

    def __init__(self, monkeypatch, fault=lambda hypotheses: None):
        self.calls, self.fault = [], fault
        monkeypatch.setattr(GreedyBatchedLabelLoopingComputerBase, "__call__", self.bound())

    def bound(self):
        def call(computer, x, out_len, prev_batched_state=None, multi_biasing_ids=None):
            if computer.cuda_graphs_mode is None:
                return computer.torch_impl(x, out_len)
            self.calls.append(tuple(x.shape[:2]))
            computer.cuda_graphs_mode = computer.CudaGraphsMode.NO_GRAPHS
            hypotheses, state = computer.cuda_graphs_impl(x, out_len)
            self.fault(hypotheses)
            return hypotheses, state

        return call


def empty(hypotheses):
    hypotheses.current_lengths.fill_(0)


def one_wrong_token(hypotheses):
    hypotheses.transcript[ROWS - 1, 0] += 1


def late_by_a_frame(hypotheses):
    hypotheses.timestamps[0] += 1


def broken(hypotheses):
    raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def captured(made, long=False) -> str | None:
    with torch.inference_mode():
        return cuda_graphs.capture(made._decoders[long], made._model, ROWS, FRAMES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["digits", "rnnt", "hybrid"])
def test_a_right_graph_is_proved_with_texts_of_any_model(kind, dtype, monkeypatch, tmp_path):
    made = load(str(MODEL) if kind == "digits" else random_model(kind, tmp_path), dtype=dtype)
    graph, texts = Graph(monkeypatch), []
    tokens = cuda_graphs.tokens
    monkeypatch.setattr(cuda_graphs, "tokens", lambda *args: texts.append(tokens(*args)) or texts[-1])
    before = {name: value.clone() for name, value in made._model.state_dict().items()}
    assert captured(made) is None
    assert graph.calls == [(ROWS, FRAMES), (ROWS, cuda_graphs.FRAMES)], "the capture, and the proof"
    for ids, starts in texts[0]:
        assert len(set(ids)) > 1, "the proof needs texts"
        assert len(set(starts)) < cuda_graphs.FRAMES, "and blanks"
    after = made._model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("fault", [empty, one_wrong_token, late_by_a_frame, broken])
def test_a_faulty_graph_is_found_and_both_decoders_work_without(fault, monkeypatch, caplog):
    made = load(str(MODEL))
    names = sorted(LABELS)[:ROWS]
    batch = Batch(
        tuple(Piece(Clip(soundfile.read(DIGITS / name, dtype="float32")[0]), Options(str(MODEL))) for name in names)
    )
    expected = made.infer(batch)
    assert all(transcript.text for transcript in expected)
    graph = Graph(monkeypatch, fault)
    if fault is not broken:
        assert made.infer(batch) != expected, "what the proof is for"
    made._capture(made._decoders[False], ROWS, 30.0)
    assert "without CUDA graphs" in caplog.text
    if fault is empty:
        assert f"{ROWS} of {ROWS} texts were wrong, and {ROWS} were empty" in caplog.text
    graph.calls.clear()
    made._capture(made._decoders[True], 1, 30.0)
    assert made.infer(batch) == expected
    assert made.infer(Batch(batch.pieces[:1], long=True)) == expected[:1]
    assert not graph.calls


def test_a_device_without_memory_for_the_graph_says_so(monkeypatch):
    made = load(str(MODEL))

    def full(_hypotheses):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    Graph(monkeypatch, full)
    bias = made._model.joint.joint_net[-1].bias.clone()
    with pytest.raises(torch.OutOfMemoryError):
        captured(made)
    assert torch.equal(made._model.joint.joint_net[-1].bias, bias)
    assert made._decoders[False].decoding.decoding_computer.state is None, "a part of a graph is left"


def test_warm_proves_the_largest_batch_and_the_first_long_clip_the_longest(monkeypatch):
    made = load(str(MODEL), max_audio_sec=60)
    graph = Graph(monkeypatch)
    made._device = types.SimpleNamespace(type="cuda")
    made.warm()
    frame_sec = made._frame_sec
    assert graph.calls == [(ROWS, int(30 / frame_sec) + 2), (ROWS, cuda_graphs.FRAMES)]
    graph.calls.clear()
    encoded = torch.zeros(1, made._model.encoder._feat_out, 20)
    monkeypatch.setattr(made, "_rescore", lambda encoded, ids, starts, logprobs: ([[1] * len(ids[0])], [[]]))
    with torch.inference_mode():
        for _ in range(2):
            made._transduce(encoded, torch.tensor([20]), True, False)
    assert graph.calls == [(1, int(60 / frame_sec) + 2), (1, cuda_graphs.FRAMES), (1, 20), (1, 20)]


@pytest.mark.parametrize("kind", ["digits", "rnnt"])
def test_a_setting_switches_graphs_off(kind, tmp_path, monkeypatch):
    name = str(MODEL) if kind == "digits" else random_model(kind, Path(tmp_path))
    graph = Graph(monkeypatch, broken)
    made = load(name, cuda_graphs=False)
    assert captured(made) is None
    assert not graph.calls
    assert all(decoder.decoding.decoding_computer.cuda_graphs_mode is None for decoder in made._decoders.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["digits", "rnnt"])
def test_the_graphs_of_a_gpu_are_proved(kind, dtype, tmp_path):
    name = str(MODEL) if kind == "digits" else random_model(kind, tmp_path)
    made = create(find(name), Settings(device="cuda", dtype=dtype))
    made.load()
    for long, rows in ((False, 16), (True, 1)):
        with torch.inference_mode():
            assert cuda_graphs.capture(made._decoders[long], made._model, rows, 7500) is None
        assert made._decoders[long].decoding.decoding_computer.cuda_graphs_mode is not None
