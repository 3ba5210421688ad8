"""WAV files whose samples are what models hear already: 16 bits, 16 kHz, one channel. Nothing needs to decode those.

Much speech is kept like this, and giving it to a decoding process costs more than reading it. Any other file, and one
whose header does not fit what is there, is left to those who know formats.
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
    """The samples, float32, shape (samples,); None for a file that is not as above. `check` is called with the bytes
    that the samples will take, and again before each block; what it raises ends the reading."""
    file.seek(0)
    found = _data(file.read(_HEAD_BYTES))
    if found is None:
        return None
    start, size = found
    if start + size > file.seek(0, os.SEEK_END):
        return None
    file.seek(start)
    check(2 * size)
    samples = np.empty(size // 2, np.float32)
    for at in range(0, size, _BLOCK_BYTES):
        check(2 * size)
        block = file.read(min(_BLOCK_BYTES, size - at))
        if len(block) < min(_BLOCK_BYTES, size - at):
            return None  # it was cut short meanwhile
        np.multiply(
            np.frombuffer(block, "<i2"), 2**-15, out=samples[at // 2 : (at + len(block)) // 2], dtype=np.float32
        )
    return samples


def _data(head: bytes) -> tuple[int, int] | None:
    """Where the samples begin, and how many bytes they are."""
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
