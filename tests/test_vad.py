"""worker/backends/common/vad.py: the spans of the package silero-vad, in bounded memory, on any thread."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st

from worker.backends.common import vad
from worker.errors import Cancelled, ModelUnavailable
from worker.types import SAMPLE_RATE

ROOT = Path(__file__).resolve().parent.parent
needs_weights = pytest.mark.skipif(not vad.is_available(), reason="needs onnxruntime and silero-vad")


def digits(first: int, last: int) -> np.ndarray:
    paths = [ROOT / "tests" / "fixtures" / "digits" / f"{number:02}.flac" for number in range(first, last)]
    return np.concatenate([soundfile.read(path, dtype="float32")[0] for path in paths])


def week() -> np.ndarray:
    samples, rate = soundfile.read(ROOT / "samples" / "week.wav", dtype="float32")
    return soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE)


@needs_weights
@pytest.mark.slow
@pytest.mark.parametrize("make", [week, lambda: digits(0, 16), lambda: np.concatenate([week(), digits(5, 9), week()])])
@pytest.mark.filterwarnings("ignore")
def test_the_spans_are_those_of_silero_s_own_code(make):
    torch = pytest.importorskip("torch")
    silero_vad = pytest.importorskip("silero_vad")
    samples = make()
    theirs = silero_vad.get_speech_timestamps(torch.from_numpy(samples), silero_vad.load_silero_vad(onnx=True))
    ours = vad.speech(samples)
    assert len(ours) == len(theirs) > 0
    for (start, end), span in zip(ours, theirs, strict=True):
        assert start == pytest.approx(span["start"] / SAMPLE_RATE, abs=1e-4)
        assert end == pytest.approx(span["end"] / SAMPLE_RATE, abs=1e-4)


@needs_weights
def test_speech_between_silences_is_found_where_it_is():
    silence, spoken = np.zeros(4 * SAMPLE_RATE, np.float32), week()
    spans = vad.speech(np.concatenate([silence, spoken, silence]))
    assert spans
    assert 3.5 < spans[0][0] < 5
    assert spans[-1][1] < 4 + len(spoken) / SAMPLE_RATE + 0.5


@needs_weights
@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, SAMPLE_RATE])
def test_silence_of_any_length_has_no_speech(length):
    assert vad.speech(np.zeros(length, np.float32)) == []
    assert len(list(vad.probabilities(np.zeros(length, np.float32)))) == -(-length // vad.FRAME)


@needs_weights
def test_the_state_is_kept_between_blocks(monkeypatch):
    samples = week()
    whole = list(vad.probabilities(samples))
    monkeypatch.setattr(vad, "BLOCK", 7)
    assert list(vad.probabilities(samples)) == pytest.approx(whole, abs=1e-4)


@needs_weights
def test_threads_share_one_network_and_get_the_same_spans(monkeypatch):
    vad._load.cache_clear()
    samples, barrier = week(), threading.Barrier(4)

    def run(_):
        barrier.wait()
        return vad.speech(samples)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(4)))
    assert all(result == results[0] for result in results)
    assert vad._load.cache_info().misses == 1


@needs_weights
def test_memory_does_not_grow_with_the_length():
    def peak(minutes: int) -> int:
        samples = np.zeros(minutes * 60 * SAMPLE_RATE, np.float32)
        tracemalloc.start()
        vad.speech(samples)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    vad.speech(week())
    assert peak(4) < 1.2 * peak(1) + 100_000


@needs_weights
@pytest.mark.slow
def test_neither_torch_nor_the_package_is_imported():
    code = (
        "import sys, numpy; from worker.backends.common import vad; vad.speech(numpy.zeros(9999, numpy.float32));"
        "assert 'onnxruntime' in sys.modules; assert not {'torch', 'silero_vad'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_importing_the_module_loads_no_library():
    code = "import sys; from worker.backends.common import vad; assert 'onnxruntime' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@needs_weights
def test_the_search_stops_when_the_request_is_canceled():
    answers = iter([False, False, True])
    with pytest.raises(Cancelled):
        vad.speech(np.zeros(3600 * SAMPLE_RATE, np.float32), lambda: next(answers))


def test_missing_weights_are_an_error_that_says_what_to_install(monkeypatch):
    vad._load.cache_clear()
    monkeypatch.setattr(vad, "_weights", lambda: None)
    assert not vad.is_available()
    with pytest.raises(ModelUnavailable, match="pip install"):
        vad.speech(np.zeros(9999, np.float32))


@given(st.lists(st.floats(0, 1), max_size=200))
def test_spans_are_ordered_long_enough_and_apart(values):
    length_sec = len(values) * vad.FRAME / SAMPLE_RATE
    spans = list(vad._spans(values, length_sec))
    for start, end in spans:
        assert 0 <= start < end <= length_sec
        assert end - start > vad.MIN_SPEECH_SEC
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert start - end >= vad.MIN_SILENCE_SEC > 2 * vad.PAD_SEC


def test_a_probability_between_the_two_thresholds_keeps_the_state():
    values = [0.4] * 10 + [0.9] + [0.4] * 20 + [0.1] * 10
    length_sec = len(values) * vad.FRAME / SAMPLE_RATE
    (span,) = vad._spans(values, length_sec)
    assert span == pytest.approx((10 * 0.032, 31 * 0.032))


@needs_weights
@given(splits=st.lists(st.integers(0, 36), max_size=6))
def test_audio_that_arrives_bit_by_bit_has_the_same_probabilities(splits):
    samples = week()[: 36 * vad.FRAME]
    detector, bounds = vad.Detector(), [0, *sorted(splits), 36]
    pieces = [samples[a * vad.FRAME : b * vad.FRAME] for a, b in itertools.pairwise(bounds)]
    found = [probability for piece in pieces for probability in detector.probabilities(piece)]
    assert found == pytest.approx(list(vad.probabilities(samples)), abs=1e-6)


RULES = st.builds(
    vad.Rules,
    starts=st.floats(0, 1),
    ends=st.floats(0, 1),
    min_speech_sec=st.floats(0, 1),
    max_speech_sec=st.floats(0.01, 3) | st.just(float("inf")),
    min_silence_sec=st.floats(0, 2),
    pad_sec=st.floats(0, 1),
)


@given(st.lists(st.floats(0, 1), max_size=200), RULES)
def test_with_any_rules_spans_are_in_order_and_no_longer_than_allowed(values, rules):
    length_sec = len(values) * vad.FRAME / SAMPLE_RATE
    bare = list(vad._spans(values, length_sec, rules))
    for start, end in bare:
        assert end - start > rules.min_speech_sec
        assert end - start <= max(vad.FRAME / SAMPLE_RATE, rules.max_speech_sec - 2 * rules.pad_sec) + 1e-9
    spans = vad._padded(bare, rules.pad_sec, length_sec)
    assert all(0 <= start < end <= length_sec for start, end in spans)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_long_speech_is_cut_at_its_last_silence():
    values = [0.9] * 20 + [0.0] * 4 + [0.9] * 20 + [0.0] * 4 + [0.9] * 20
    length_sec = len(values) * 0.032
    spans = list(vad._spans(values, length_sec, vad.Rules(min_silence_sec=1, max_speech_sec=1.5, pad_sec=0)))
    assert [(round(start / 0.032), round(end / 0.032)) for start, end in spans] == [(0, 20), (24, 68)]


def test_long_speech_without_silence_is_cut_at_the_limit():
    spans = list(vad._spans([0.9] * 100, 3.2, vad.Rules(max_speech_sec=1, pad_sec=0, min_speech_sec=0)))
    assert [round(end - start, 3) for start, end in spans] == [0.992, 0.992, 0.992, 0.224]
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(spans))
