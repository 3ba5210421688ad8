"""WAV that needs no decoding is read as the decoding process would; every other file is left to it."""

from __future__ import annotations

import io
import os
import struct
import tempfile

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from worker.audio import decode_process, wav
from worker.errors import Cancelled

FORMAT = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)


def chunk(name: bytes, data: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(data) if size is None else size) + data + b"\0" * (len(data) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def opened(tmp_path, data: bytes) -> io.FileIO:
    (tmp_path / "a.wav").write_bytes(data)
    return io.FileIO(tmp_path / "a.wav")


def nothing(_size: int) -> None:
    pass


def refuse(size: int) -> int:
    raise AssertionError(f"{size} bytes are within the limit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("wave")


@pytest.mark.parametrize("kind", [io.FileIO, lambda path: io.BytesIO(path.read_bytes())])
def test_any_file_can_be_read_that_way(tmp_path, kind):
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, 700_000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    with kind(tmp_path / "a.wav") as file:
        assert np.array_equal(wav.read(file, nothing), samples / np.float32(2**15))


@given(
    samples=st.binary(max_size=400),
    fmt=st.sampled_from((FORMAT, FORMAT + b"\0\0")),
    before=st.lists(st.tuples(st.sampled_from((b"PAD ", b"abcd", b"iXML")), st.binary(max_size=60)), max_size=3),
    between=st.binary(max_size=30),
    after=st.binary(max_size=30),
    promised=st.none() | st.integers(0, 500),
)
def test_what_is_read_is_what_libsndfile_reads(folder, samples, fmt, before, between, after, promised):
    size = len(samples) if promised is None else promised
    data = riff(
        *(chunk(name, body) for name, body in before),
        chunk(b"fmt ", fmt),
        chunk(b"junk", between),
        chunk(b"data", samples, size),
    ) + (chunk(b"abcd", after) if after else b"")
    with opened(folder, data) as file:
        found = wav.read(file, nothing)
        if found is None:
            start = data.index(b"data" + struct.pack("<I", size)) + 8
            assert size == 0 or size % 2 or start + size > len(data)
            return
        with tempfile.TemporaryFile() as decoded:
            size, channels, warning = decode_process.store(
                decode_process.by_sndfile(file.fileno()), decoded.fileno(), 1 << 20, refuse
            )
            expected = np.frombuffer(decoded.read(), np.float32)
    assert (size, channels, warning) == (found.nbytes, 1, None)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("options", "reads"),
    [
        ({}, True),
        ({"format": "WAVEX"}, False),
        ({"format": "RF64"}, False),
        ({"format": "FLAC"}, False),
        ({"endian": "BIG"}, False),
        ({"subtype": "PCM_24"}, False),
        ({"subtype": "PCM_U8"}, False),
        ({"subtype": "FLOAT"}, False),
        ({"samplerate": 8000}, False),
        ({"channels": 2}, False),
    ],
)
def test_only_what_needs_no_decoding_is_read(tmp_path, options, reads):
    given = {"format": "WAV", "subtype": "PCM_16", "samplerate": 16_000, **options}
    samples = np.zeros((1600, given.pop("channels", 1)))
    soundfile.write(tmp_path / "a", samples, **given)
    with io.FileIO(tmp_path / "a") as file:
        assert (wav.read(file, nothing) is not None) is reads


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF",
        riff(),
        riff(chunk(b"data", b"1234")),
        riff(chunk(b"data", b"1234"), chunk(b"fmt ", FORMAT)),
        riff(chunk(b"fmt ", FORMAT[:8]), chunk(b"data", b"1234")),
        riff(chunk(b"fmt ", FORMAT), chunk(b"data", b"1234", 0xFFFFFFFF)),
        riff(chunk(b"fmt ", FORMAT), chunk(b"junk", b"x" * 5000), chunk(b"data", b"1234")),
        riff(chunk(b"fmt ", FORMAT.replace(b"\x80\x3e", b"\x40\x1f")), chunk(b"fmt ", FORMAT), chunk(b"data", b"1234")),
    ],
)
def test_a_header_that_does_not_fit_or_takes_long_is_left_to_others(tmp_path, data):
    with opened(tmp_path, data) as file:
        assert wav.read(file, nothing) is None


def test_reading_ends_when_the_check_says_so(tmp_path):
    asked = []

    def check(size: int) -> None:
        asked.append(size)
        if len(asked) == 3:
            raise Cancelled("enough")

    with opened(tmp_path, riff(chunk(b"fmt ", FORMAT), chunk(b"data", os.urandom(5_000_000)))) as file:
        with pytest.raises(Cancelled):
            wav.read(file, check)
        assert asked == [10_000_000] * 3
        asked.clear()


def test_more_than_a_block_is_read_whole(tmp_path):
    data = os.urandom(3_000_002)
    with opened(tmp_path, riff(chunk(b"fmt ", FORMAT), chunk(b"data", data))) as file:
        assert np.array_equal(wav.read(file, nothing), np.frombuffer(data, "<i2") / np.float32(2**15))
