"""The windowed decoder gives what NeMo's own gives, for networks of every shape, with random weights and random
sound."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit is not installed")
import torch
from nemo.collections.asr.modules.rnnt import RNNTDecoder, RNNTJoint, StatelessTransducerDecoder
from nemo.collections.asr.parts.submodules.rnnt_greedy_decoding import GreedyBatchedRNNTInfer, GreedyBatchedTDTInfer

from worker.backends.common.timestamps import confidence
from worker.backends.nemo import greedy_transducer

pytestmark = pytest.mark.slow

VOCABULARY, WIDTH = 12, 16
SURE = {"preserve_frame_confidence": True, "confidence_method_cfg": {"name": "max_prob", "alpha": 1.0}}


def networks(seed: int, layers: int, extra: int, blank_bias: float):
    torch.manual_seed(seed)
    prednet = {"pred_hidden": 16, "pred_rnn_layers": layers, "t_max": None, "dropout": 0.0, "context_size": 2}
    decoder = (RNNTDecoder if layers else StatelessTransducerDecoder)(prednet, VOCABULARY)
    joint = RNNTJoint(
        {"joint_hidden": 16, "activation": "relu", "dropout": 0.0, "encoder_hidden": WIDTH, "pred_hidden": 16},
        num_classes=VOCABULARY,
        vocabulary=[str(i) for i in range(VOCABULARY)],
        num_extra_outputs=extra,
        log_softmax=False,
    )
    last = joint.joint_net[-1]
    with torch.no_grad():
        last.weight.mul_(4)
        last.bias[VOCABULARY] += blank_bias
    return decoder.eval().requires_grad_(False), joint.eval().requires_grad_(False)


@given(
    seed=st.integers(0, 10**6),
    layers=st.sampled_from([0, 1, 2]),
    blank_bias=st.sampled_from([0.0, 1.0, 2.5]),
    most=st.sampled_from([1, 2, 5, 10]),
    durations=st.sampled_from([[], [0, 1, 2, 3, 4], [0, 1, 8, 40]]),
    lengths=st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 33, 90]), min_size=1, max_size=5),
)
@settings(max_examples=150, deadline=None)
def test_it_finds_what_nemo_finds(seed, layers, blank_bias, most, durations, lengths):
    decoder, joint = networks(seed, layers, len(durations), blank_bias)
    sound = torch.randn(len(lengths), WIDTH, max(*lengths, 1))
    if durations:
        theirs = GreedyBatchedTDTInfer(
            decoder, joint, VOCABULARY, durations, max_symbols_per_step=most, include_duration=True, **SURE
        )
    else:
        theirs = GreedyBatchedRNNTInfer(decoder, joint, VOCABULARY, max_symbols_per_step=most, **SURE)
    with torch.inference_mode():
        (expected,) = theirs(encoder_output=sound, encoded_lengths=torch.tensor(lengths))
        ours = greedy_transducer.decode(decoder, joint, sound, torch.tensor(lengths), durations, most, logprobs=True)
        for row, (mine, other) in enumerate(zip(ours, expected, strict=True)):
            assert mine.ids == other.y_sequence.tolist()
            assert mine.starts == other.timestamp.tolist()
            sure = [confidence(logprob, VOCABULARY + 1) for logprob in mine.logprobs]
            assert sure == pytest.approx(other.non_blank_frame_confidence, abs=1e-5)
            if durations and lengths[row]:  # NeMo's durations are right for a batch of one only
                ((alone,),) = theirs(
                    encoder_output=sound[row : row + 1, :, : lengths[row]],
                    encoded_lengths=torch.tensor(lengths[row : row + 1]),
                )
                assert mine.durations == alone.token_duration.tolist()


@given(seed=st.integers(0, 10**6), window=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_the_size_of_the_window_changes_nothing(seed, window):
    decoder, joint = networks(seed, 1, 5, 1.5)
    sound, lengths = torch.randn(3, WIDTH, 70), torch.tensor([70, 3, 41])
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        before = greedy_transducer.decode(decoder, joint, sound, lengths, [0, 1, 2, 3, 4], 5)
        patch.setattr(greedy_transducer, "WINDOW", window)
        assert greedy_transducer.decode(decoder, joint, sound, lengths, [0, 1, 2, 3, 4], 5) == before


@pytest.mark.parametrize(("shared", "expected"), [(1, 2), (10**9, 1)])
def test_small_steps_run_in_one_thread_and_large_ones_in_all(monkeypatch, shared, expected):
    monkeypatch.setattr(greedy_transducer, "SHARED", shared)
    decoder, joint = networks(0, 1, 0, 0.0)
    seen = []
    decoder.prediction.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    joint.joint_net.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            greedy_transducer.decode(decoder, joint, torch.randn(2, WIDTH, 20), torch.tensor([20, 9]), [], 10)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {expected}
