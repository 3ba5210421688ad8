"""The length of a FLAC file: what its header states, and where its last frame ends.

The header (STREAMINFO) may state no length, as in a file that was written into a pipe, or a wrong one. Every frame has
its own position, so the last frame shows how long the file really is. The layout is that of RFC 9639, sections 8.2
and 9.1.

The module imports nothing of the worker, because decoding processes use it.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

HEAD_BYTES = 42
TAIL_BYTES = 1 << 16  # frames of usual encoders have at most some 20 kB
_FRAME_BYTES = 16  # the longest header of a frame
_SYNC = re.compile(rb"\xff[\xf8\xf9]")


class StreamInfo(NamedTuple):
    """What the header states."""

    block: int
    """The most samples of a frame; of all frames but the last, if the frames are numbered."""
    rate: int
    """The sample rate in Hz, from 1."""
    channels: int
    samples: int
    """The samples of each channel; 0 if unknown."""


def stream_info(head: bytes) -> StreamInfo | None:
    """Return what the first HEAD_BYTES of a file state, or None if they do not begin a FLAC file."""
    if head[:4] != b"fLaC" or len(head) < HEAD_BYTES or head[4] & 0x7F:
        return None
    fields = int.from_bytes(head[18:26], "big")
    rate = fields >> 44
    if not rate:
        return None
    return StreamInfo(int.from_bytes(head[10:12], "big"), rate, (fields >> 41 & 7) + 1, fields & (1 << 36) - 1)


def last_sample(tail: bytes, info: StreamInfo) -> int:
    """Return the sample at which the last frame of a file ends, or 0 if its last TAIL_BYTES hold no frame."""
    for match in reversed(list(_SYNC.finditer(tail))):
        header = tail[match.start() : match.start() + _FRAME_BYTES].ljust(_FRAME_BYTES, b"\0")
        end = _frame_end(header, info)
        if end is not None:
            return end
    return 0


def understates(descriptor: int) -> bool:
    """Return whether the file is a FLAC file that holds more samples than its header states."""
    info = stream_info(os.pread(descriptor, HEAD_BYTES, 0))
    if info is None:
        return False
    tail = os.pread(descriptor, TAIL_BYTES, max(0, os.fstat(descriptor).st_size - TAIL_BYTES))
    return 0 < info.samples < last_sample(tail, info)


def _frame_end(header: bytes, info: StreamInfo) -> int | None:
    """Return the sample at which a frame ends, or None if the bytes are not the header of a frame of this file."""
    block_code, rate_code, channels_code = header[2] >> 4, header[2] & 15, header[3] >> 4
    channels = channels_code + 1 if channels_code < 8 else 2
    if not block_code or rate_code == 15 or header[3] & 1 or channels_code > 10 or channels != info.channels:
        return None
    coded = _number(header[4:11])
    if coded is None:
        return None
    number, at = coded[0], 4 + coded[1]
    if block_code in (6, 7):
        block = int.from_bytes(header[at : at + block_code - 5], "big") + 1
        at += block_code - 5
    else:
        block = 192 if block_code == 1 else 576 << block_code - 2 if block_code < 6 else 256 << block_code - 8
    at += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if at >= len(header) or _crc(header[:at]) != header[at]:
        return None
    is_numbered = header[1] == 0xF8  # else the number is that of the first sample
    return (number * info.block if is_numbered else number) + block


def _number(code: bytes) -> tuple[int, int] | None:
    """Return the number that the bytes begin with, in UTF-8's manner, and the bytes it takes; None if there is none."""
    ones = 8 - (code[0] ^ 0xFF).bit_length()
    if ones == 0:
        return code[0], 1
    if ones in (1, 8) or any(byte >> 6 != 2 for byte in code[1:ones]):
        return None
    number = code[0] & 0x7F >> ones
    for byte in code[1:ones]:
        number = number << 6 | byte & 0x3F
    return number, ones


def _crc(data: bytes) -> int:
    """Return the CRC-8 of the data, with the polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc
