"""A reader for WAV files that need no decoding: 16 bits, 16 kHz, one channel. And the length of any WAV file.

Much speech is stored like this, and passing it to a decoding process takes longer than reading it. Every other file is
left to the decoders, and so is a file whose header does not match its size.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from worker.types import SAMPLE_RATE

HEAD_BYTES = 4096
_BLOCK_BYTES = 1 << 20
_UNCOMPRESSED = (1, 3, 6, 7, 0xFFFE)  # the tags of integers, floats, A-law, mu-law, and a format that states its layout
_UNKNOWN_BYTES = 0x7FFF0000  # from here on, a size is the placeholder of a program that wrote into a pipe
_FORMAT = struct.pack("<HHIIHH", 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)


def read(file: BinaryIO, check: Callable[[int], None]) -> np.ndarray | None:
    """Return the samples, float32 of shape (samples,), or None for a file that requires a decoder.

    `check` is called with the bytes that the samples will take, before the first block and before each block. It may
    raise, which ends the reading.
    """
    file.seek(0)
    data = _data(file.read(HEAD_BYTES))
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


def header(size: int) -> bytes:
    """Return the header of a file that `read` accepts. `size`: the bytes of samples that follow, below 4 GiB."""
    return (
        b"RIFF" + struct.pack("<I4s4sI", 36 + size, b"WAVE", b"fmt ", 16) + _FORMAT + struct.pack("<4sI", b"data", size)
    )


def _data(head: bytes) -> tuple[int, int] | None:
    """Return the offset and the bytes of the samples, or None if the header is not that of such a WAV file."""
    formats = list[bytes]()
    for name, at, size in _chunks(head):
        if name == b"data":
            return (at, size) if formats == [_FORMAT] and size and size % 2 == 0 else None
        if name == b"fmt ":
            formats.append(head[at : at + min(size, len(_FORMAT))])
    return None


def stated_sec(head: bytes, file_bytes: int, split: bool = False) -> float | None:
    """Return the seconds of audio in an uncompressed WAV file of `file_bytes`, or None if the header does not show it.

    `head` is the first HEAD_BYTES of the file. If `split`, the seconds are those of all channels together. The length
    follows from the sample rate and the size of a sample, because decoders ignore the byte rate that the header states
    as well.
    """
    bytes_per_sec = 0
    for name, at, size in _chunks(head):
        if name == b"fmt " and at + 16 <= len(head):
            tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", head, at)
            counted = 1 if split else channels
            bytes_per_sec = rate * counted * -(-bits // 8) if tag in _UNCOMPRESSED else 0
        if name == b"data":
            is_known = 0 < size < _UNKNOWN_BYTES
            left = max(0, file_bytes - at)
            return (min(size, left) if is_known else left) / bytes_per_sec if bytes_per_sec else None
    return None


def _chunks(head: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, the offset and the bytes of each chunk that begins in the head of a WAV file; else nothing."""
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return
    at = 12
    while at + 8 <= len(head):
        size = int.from_bytes(head[at + 4 : at + 8], "little")
        yield head[at : at + 4], at + 8, size
        at += 8 + size + size % 2
