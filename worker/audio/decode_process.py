"""The decoding process: libsndfile and libav outside of the worker's process, kept running between files.

    worker ── socket: limit, split, descriptor ──▶ libsndfile or libav ── float32, 16 kHz ──▶ the file MEMORY
           ◀── socket: lines of JSON ───────┘

`python -m worker.audio.decode_process SOCKET MEMORY` serves a Unix socket; both arguments are inherited descriptors. A
REQUEST is the most bytes that the audio may have, and whether its channels are split, with the file's descriptor
attached (SCM_RIGHTS). libsndfile decodes the formats that it reads as well as ffmpeg does, libav the other formats. The
audio is written to the start of the file MEMORY, which the worker has open as well: a socket would carry it in small
pieces, each of which costs the worker a turn of its interpreter. The audio is the mix of the channels, or, if they are
split, frames with a sample of each channel.

The response is {"bytes": number, "channels": number, "done": true, "error": null | text, "warning": null | text}. At
the limit, the process sends such a line with "done": false, and continues when it receives a higher limit, a
little-endian uint64. A worker that needs no more of the file ends the process.

The module imports nothing heavy of the worker: the list of formats, the most channels, the reader of FLAC headers, and
how to treat signals. If a hostile file crashes or hangs a library, the worker kills and replaces this process.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy
import soundfile
import soxr

from worker.audio import flac
from worker.audio.ffmpeg import FORMATS, MOST_CHANNELS, TOO_MANY
from worker.child import ignore_signals

RATE = 16_000
REQUEST = struct.Struct("<Q?")  # the most bytes, and whether the channels are split
BLOCK_SEC = 20
BLOCK_FRAMES = 1 << 22  # the most frames of a block, for sample rates that no audio has
PADDING = RATE // 8  # samples; no codec has a longer frame
# MPEG states no duration; libav estimates it from timestamps, up to several frames short. FLAC is decoded by libav only
# if its header states too little.
STREAMS = ("mpegts", "mpeg", "flac")
LAYOUT = "a downmix of more than two channels requires their layout, which ffmpeg knows"


def is_for_sndfile(head: bytes) -> bool:
    """Return whether a file that starts with `head` has a format that libsndfile reads as well as ffmpeg does."""
    mpeg_layer_3 = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2
    return (
        (head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE")
        or head[:4] in (b"fLaC", b"OggS", b"FORM")
        or head[:3] == b"ID3"
        or mpeg_layer_3
    )


def check_channels(count: int, split: bool) -> None:
    """Raise ValueError if so many channels cannot be mixed, or split, here."""
    if split and count > MOST_CHANNELS:
        raise ValueError(TOO_MANY)
    if not split and count > 2:
        raise ValueError(LAYOUT)


def by_sndfile(descriptor: int, split: bool = False) -> Generator[Any, None, str | None]:
    """Yield the file as float32 blocks of 16 kHz, in constant memory. Return a warning, or None.

    A block is of shape (samples,), the mix of the channels, or (samples, channels) if `split`.
    Raises ValueError for too many channels, and what libsndfile raises.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)
    got = 0
    with soundfile.SoundFile(descriptor, closefd=False) as file:
        check_channels(file.channels, split)
        promised = promised_frames(file) * RATE // file.samplerate
        resampler = None
        if file.samplerate != RATE:
            count = file.channels if split else 1
            resampler = soxr.ResampleStream(file.samplerate, RATE, count, dtype="float32")
        whole = file.subtype == "PCM_16"  # numpy converts integers to the same floats as libsndfile, four times as fast
        frames = min(file.samplerate * BLOCK_SEC, BLOCK_FRAMES // max(1, file.channels // 2))
        last = False
        while not last:
            block = file.read(frames, dtype="int16" if whole else "float32", always_2d=True)
            last = len(block) == 0
            if whole:
                block = numpy.multiply(block, 2**-15, dtype=numpy.float32)
            if not split:
                block = block.mean(axis=1) if file.channels == 2 else block[:, 0]
            if resampler is not None:
                block = resampler.resample_chunk(block, last=last)
                if split:
                    block = block.reshape(-1, file.channels)
            got += len(block)
            yield block
    if got + RATE // 2 < promised < 1 << 40:
        return f"the file is truncated after {got / RATE:.2f} of {promised / RATE:.2f} s"
    return None


def by_libav(descriptor: int, split: bool = False) -> Generator[Any, None, str | None]:
    """Yield the same as `by_sndfile`, decoded by libav under the restrictions of `worker.audio.ffmpeg`.

    Raises ValueError for too many channels, and what libav raises for a damaged file, which is left to ffmpeg.
    """
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    with av.open(f"/dev/fd/{descriptor}", container_options=options, metadata_errors="ignore") as container:
        stream = container.streams.audio[0]
        check_channels(stream.codec_context.layout.nb_channels, split)
        stated = bool(stream.duration) and container.format.name not in STREAMS
        promised = round(float(stream.duration * stream.time_base) * RATE) if stated else None
        yield from without_padding(resample(container, stream, split), promised)
    return None


def resample(container: Any, stream: Any, split: bool = False) -> Iterator[Any]:
    """Yield the stream as float32 blocks of 16 kHz, as `by_sndfile` does."""
    import av

    def block(part: Any) -> Any:
        channels = part.to_ndarray()
        return numpy.ascontiguousarray(channels.T) if split else channels.mean(axis=0)

    resampler = av.AudioResampler(format="fltp", rate=RATE)
    for frame in container.decode(stream):
        yield from map(block, resampler.resample(frame))
    yield from map(block, resampler.resample(None))


def without_padding(parts: Iterator[Any], promised: int | None) -> Iterator[Any]:
    """Yield the parts without the padding that a codec with fixed frames adds after the promised end.

    `promised` is the count of samples in the header, or None. Audio that exceeds it by more than PADDING is no padding:
    the header is wrong, and the audio is kept.
    """
    got = 0
    beyond: list[Any] = []
    for part in parts:
        kept = part if promised is None else part[: max(0, promised - got)]
        got += len(part)
        yield kept
        if promised is not None:
            beyond.append(part[len(kept) :])
            if got - promised > PADDING:
                yield from beyond
                promised = None


def promised_frames(file: soundfile.SoundFile) -> int:
    """Return the frames that the header promises.

    For a truncated WAV, libsndfile reports the frames in the file, and the promised size only in its log.
    """
    frames = int(file.frames)
    short = re.search(r"data : (\d+) \(should be (\d+)\)", file.extra_info)
    if short and 0 < int(short[2]) < int(short[1]) < 0x7FFF0000:  # a larger size is a placeholder of a pipe
        frames = frames * int(short[1]) // int(short[2])
    return frames


def gather(blocks: Generator[Any, None, str | None]) -> Generator[Any, None, str | None]:
    """Yield the same audio in blocks of at least BLOCK_SEC, except for the last. Return what `blocks` returns."""
    ready: list[Any] = []
    while True:
        try:
            ready.append(next(blocks))
        except StopIteration as end:
            yield from ready if len(ready) < 2 else [numpy.concatenate(ready)]
            return end.value  # type: ignore[no-any-return]
        if sum(map(len, ready)) >= RATE * BLOCK_SEC:
            yield numpy.concatenate(ready)
            ready.clear()


def store(
    blocks: Generator[Any, None, str | None], memory: int, limit: int, extend: Callable[[int], int]
) -> tuple[int, int, str | None]:
    """Write the blocks to the descriptor `memory`, and return the bytes written, the channels, and the warning.

    `extend` is called with the bytes written when they exceed the limit, and returns the next limit. Raises ValueError
    for samples that are not numbers, and OSError if the memory is full.
    """
    written, channels = 0, 1
    while True:
        while written > limit:
            limit = extend(written)
        try:
            block = next(blocks)
        except StopIteration as end:
            return written, channels, end.value
        if not numpy.isfinite(block).all():
            raise ValueError("the file holds samples that are not numbers")
        if os.pwrite(memory, block.data, written) < block.nbytes:
            raise OSError("there is not enough memory for the audio")
        channels = block.shape[1] if block.ndim == 2 else 1
        written += block.nbytes


def decode(
    descriptor: int, memory: int, limit: int, extend: Callable[[int], int], split: bool = False
) -> dict[str, Any]:
    """Decode the file `descriptor` into the file `memory`, and return the response of the module's contract."""
    by_library = by_libav
    if is_for_sndfile(os.pread(descriptor, 12, 0)) and not flac.understates(descriptor):
        by_library = by_sndfile  # which would stop where the header says
    try:
        written, channels, warning = store(gather(by_library(descriptor, split)), memory, limit, extend)
    except Exception as error:  # noqa: BLE001  any exception of a library means that it cannot decode the file
        return {"bytes": 0, "channels": 1, "done": True, "error": f"{type(error).__name__}: {error}", "warning": None}
    return {"bytes": written, "channels": channels, "done": True, "error": None, "warning": warning}


def keep_memory() -> None:
    """Make the allocator keep freed memory, because requesting the pages again for every file takes longer than
    decoding it.
    """
    allocator = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc; other C libraries do not have it
    if allocator is not None:
        for option, size in ((-3, 1 << 25), (-1, 1 << 26)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            allocator(option, size)


def main() -> None:
    """Serve the socket until the worker closes it."""
    keep_memory()
    ignore_signals()
    sock, memory = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])

    def send(response: dict[str, Any]) -> None:
        sock.sendall(json.dumps(response).encode() + b"\n")

    def extend(written: int) -> int:
        send({"bytes": written, "channels": 1, "done": False, "error": None, "warning": None})
        answer = sock.recv(8)
        if not answer:
            sys.exit()
        (limit,) = struct.unpack("<Q", answer)
        return int(limit)

    while True:
        request, descriptors, _, _ = socket.recv_fds(sock, REQUEST.size, 1)
        if not request:
            return
        limit, split = REQUEST.unpack(request)
        try:
            send(decode(descriptors[0], memory, limit, extend, split))
        except BrokenPipeError:
            return
        finally:
            os.close(descriptors[0])


if __name__ == "__main__":
    main()
