"""worker/audio/live.py: every split of a stream gives the same samples, and G.711 is libsndfile's."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st

from worker.audio.live import LiveAudio
from worker.types import SAMPLE_RATE

FORMATS = [("pcm16", 24_000), ("pcm16", 16_000), ("pcmu", 8_000), ("pcma", 8_000)]


def noise(seconds: float, rate: int) -> np.ndarray:
    return (np.random.default_rng(5).normal(0, 3000, round(seconds * rate))).astype("<i2")


def decoded(data: bytes, splits, encoding, rate) -> np.ndarray:
    stream = LiveAudio(encoding, rate)
    bounds = [0, *sorted(min(split, len(data)) for split in splits), len(data)]
    pieces = [stream.feed(data[a:b]) for a, b in itertools.pairwise(bounds)]
    return np.concatenate([*pieces, stream.flush()])


@pytest.mark.parametrize(("encoding", "rate"), FORMATS)
@given(splits=st.lists(st.integers(0, 12_000), max_size=12))
def test_any_split_gives_the_same_samples(encoding, rate, splits):
    data = noise(0.25, rate).tobytes()
    whole = decoded(data, [], encoding, rate)
    assert np.array_equal(decoded(data, splits, encoding, rate), whole)
    width = 2 if encoding == "pcm16" else 1
    assert len(whole) == pytest.approx(len(data) // width * SAMPLE_RATE / rate, abs=2)


@pytest.mark.parametrize(("encoding", "subtype"), [("pcmu", "ULAW"), ("pcma", "ALAW")])
def test_g711_is_decoded_as_libsndfile_does(encoding, subtype):
    data = bytes(range(256)) * 200
    raw = io.BytesIO(data)
    with soundfile.SoundFile(raw, samplerate=8_000, channels=1, format="RAW", subtype=subtype) as file:
        theirs = soxr.resample(file.read(dtype="float32"), 8_000, SAMPLE_RATE)
    ours = decoded(data, [], encoding, 8_000)
    assert np.abs(ours - theirs).max() < 1e-4


def test_a_resampled_tone_is_the_tone():
    time = np.arange(24_000) / 24_000
    tone = (np.sin(2 * np.pi * 440 * time) * 16_000).astype("<i2")
    ours = decoded(tone.tobytes(), [7, 4801], "pcm16", 24_000)
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000) * 16_000 / 2**15
    assert len(ours) == 16_000
    assert np.abs(ours - expected)[200:-200].max() < 1e-3


def test_a_stream_can_begin_again_after_a_flush():
    stream, data = LiveAudio("pcm16", 24_000), noise(0.2, 24_000).tobytes()
    first = np.concatenate([stream.feed(data), stream.flush()])
    assert np.array_equal(np.concatenate([stream.feed(data), stream.flush()]), first)


def test_half_a_sample_at_the_end_is_left_out():
    stream = LiveAudio("pcm16", 16_000)
    assert len(stream.feed(b"\x00\x10\x00")) == 1
    assert len(stream.flush()) == 0
    assert stream.feed(b"\x00\x40").tolist() == [0.5]
