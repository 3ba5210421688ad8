"""A reader for WAV files that need no decoding: 16 bits, 16 kHz, one channel.

Much speech is stored like this, and passing it to a decoding process takes longer than reading it. Every other file is
left to the decoders, and so is a file whose header does not match its size.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from worker.types import SAMPLE_RATE

_HEAD_BYTES = 4096
_BLOCK_BYTES = 1 << 20
_FORMAT = struct.pack("<HHIIHH", 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)


def read(file: BinaryIO, check: Callable[[int], None]) -> np.ndarray | None:
    """Return the samples, float32 of shape (samples,), or None for a file that requires a decoder.

    `check` is called with the bytes that the samples will take, before the first block and before each block. It may
    raise, which ends the reading.
    """
    file.seek(0)
    data = _data(file.read(_HEAD_BYTES))
    if data is None:
        return None
    start, size = data
    if start + size > file.seek(0, os.SEEK_END):
        return None
    file.seek(start)
    check(2 * size)
    samples = np.empty(size // 2, np.float32)
    for at in range(0, size, _BLOCK_BYTES):
        check(2 * size)
        block = file.read(min(_BLOCK_BYTES, size - at))
        if len(block) < min(_BLOCK_BYTES, size - at):
            return None  # the file was truncated in the meantime
        np.multiply(
            np.frombuffer(block, "<i2"), 2**-15, out=samples[at // 2 : (at + len(block)) // 2], dtype=np.float32
        )
    return samples


def _data(head: bytes) -> tuple[int, int] | None:
    """Return the offset and the bytes of the samples, or None if the header is not that of such a WAV file."""
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    at, formats = 12, list[bytes]()
    while at + 8 <= len(head):
        name, size = head[at : at + 4], int.from_bytes(head[at + 4 : at + 8], "little")
        at += 8
        if name == b"data":
            return (at, size) if formats == [_FORMAT] and size and size % 2 == 0 else None
        if name == b"fmt ":
            formats.append(head[at : at + min(size, len(_FORMAT))])
        at += size + size % 2
    return None
