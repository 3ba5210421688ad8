"""The bytes of a live stream → samples, float32, 16 kHz, mono.

    bytes ── whole blocks ──▶ PCM or G.711 ──▶ resampler ──▶ samples
      └───── the rest waits for more bytes, or for `flush`

How the bytes are split between calls changes no sample: the resampler gets blocks of the same length in any case.
"""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np

from worker.types import SAMPLE_RATE

Encoding = Literal["pcm16", "pcmu", "pcma"]
"""16-bit little-endian PCM, or G.711 with the μ-law or the A-law."""

BLOCK_SEC = 0.02  # what the resampler gets at a time


class LiveAudio:
    """One stream, mono. For one thread at a time."""

    def __init__(self, encoding: Encoding, sample_rate: int) -> None:
        import soxr

        self._encoding: Encoding = encoding
        self._rate = sample_rate
        self._taken = self._returned = 0  # samples of the stream, at its own rate and at 16 kHz
        self._resampler = (
            None if sample_rate == SAMPLE_RATE else soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32")
        )
        self._width = 2 if encoding == "pcm16" else 1
        self._block_bytes = self._width * (1 if self._resampler is None else round(sample_rate * BLOCK_SEC))
        self._rest = b""

    def feed(self, data: bytes) -> np.ndarray:
        """Return the samples that the bytes complete, of shape (samples,)."""
        data = self._rest + data
        end = len(data) - len(data) % self._block_bytes
        self._rest = data[end:]
        samples = _decoded(data[:end], self._encoding)
        self._taken += len(samples)
        if self._resampler is not None and len(samples):
            size = self._block_bytes // self._width
            blocks = [self._resampler.resample_chunk(samples[at : at + size]) for at in range(0, len(samples), size)]
            samples = np.concatenate(blocks)
        self._returned += len(samples)
        return samples

    @property
    def kept_sec(self) -> float:
        """The length of the audio that `flush` would return, in seconds."""
        return (self._taken + len(self._rest) // self._width) / self._rate - self._returned / SAMPLE_RATE

    def flush(self) -> np.ndarray:
        """Return the last samples of the stream. Half a sample at its end is left out. Start a new stream after it."""
        rest = _decoded(self._rest[: len(self._rest) - len(self._rest) % self._width], self._encoding)
        self._rest = b""
        self._taken = self._returned = 0
        if self._resampler is None:
            return rest
        last: np.ndarray = self._resampler.resample_chunk(rest, last=True)
        self._resampler.clear()
        return last


def _decoded(data: bytes, encoding: Encoding) -> np.ndarray:
    """Return the samples of bytes, nominally in [-1, 1]."""
    if encoding == "pcm16":
        return np.frombuffer(data, "<i2").astype(np.float32) * np.float32(2**-15)
    table = _mu_law() if encoding == "pcmu" else _a_law()
    samples: np.ndarray = table[np.frombuffer(data, np.uint8)]
    return samples


@functools.cache
def _mu_law() -> np.ndarray:
    """Return the sample of each byte in the μ-law of ITU-T G.711."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4) & 7, (code & 15).astype(np.int32)
    size = (((mantissa << 3) + 132) << exponent) - 132
    return np.where(code & 128, -size, size).astype(np.float32) * np.float32(2**-15)


@functools.cache
def _a_law() -> np.ndarray:
    """Return the sample of each byte in the A-law of ITU-T G.711."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = ((code >> 4) & 7).astype(np.int32), (code & 15).astype(np.int32)
    size = (mantissa << 4) + 8 + np.where(exponent, 256, 0) << np.maximum(exponent - 1, 0)
    return np.where(code & 128, size, -size).astype(np.float32) * np.float32(2**-15)
