"""The decoding process: libsndfile and libav in a process of its own, kept running, so that no file pays for starting
one.

`python -m worker.audio.decode_process SOCKET MEMORY` serves a Unix socket. A request is a little-endian uint64, the
most bytes
that the audio may have, with the file's descriptor attached (SCM_RIGHTS); libsndfile takes the formats it reads as
well as ffmpeg
does, libav the others. The audio, float32 at 16 kHz mono, is written to the beginning of the file MEMORY, which the
asking
process has open as well: a socket would carry it in small pieces, each a turn for the interpreter there. The answer is
a line of
JSON {"bytes": so many, "error": null | text, "warning": null | text}; more bytes than allowed: it was ended there.

Knows nothing of the worker: if a hostile file crashes or hangs a library, this process is killed and replaced.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import struct
import sys
from collections.abc import Generator, Iterator
from typing import Any

import numpy
import soundfile
import soxr

from worker.audio.ffmpeg import FORMATS

RATE = 16_000
BLOCK_SEC = 20
PADDING = RATE // 8  # no codec's frame is longer
STREAMS = ("mpegts", "mpeg")  # these state no duration; libav estimates it from timestamps, up to several frames short
LAYOUT = "more than two channels are mixed by their layout, which is ffmpeg's to know"


def is_for_sndfile(head: bytes) -> bool:
    """Whether a file's first bytes are of a format that libsndfile reads as well as ffmpeg does."""
    mpeg_layer_3 = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2
    return (
        (head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE")
        or head[:4] in (b"fLaC", b"OggS", b"FORM")
        or head[:3] == b"ID3"
        or mpeg_layer_3
    )


def by_sndfile(descriptor: int) -> Generator[Any, None, str | None]:
    """The file as float32 blocks of mono 16 kHz; constant memory whatever the length. Returns a warning, or None."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    got = 0
    with soundfile.SoundFile(descriptor, closefd=False) as file:
        if file.channels > 2:
            raise ValueError(LAYOUT)
        promised = promised_frames(file) * RATE // file.samplerate
        resampler = None if file.samplerate == RATE else soxr.ResampleStream(file.samplerate, RATE, 1, dtype="float32")
        whole = file.subtype == "PCM_16"  # numpy makes floats of them four times as fast as libsndfile, and the same
        last = False
        while not last:
            block = file.read(file.samplerate * BLOCK_SEC, dtype="int16" if whole else "float32", always_2d=True)
            last = len(block) == 0
            if whole:
                block = numpy.multiply(block, 2**-15, dtype=numpy.float32)
            mono = block.mean(axis=1) if file.channels == 2 else block[:, 0]
            if resampler is not None:
                mono = resampler.resample_chunk(mono, last=last)
            got += len(mono)
            yield mono
    if got + RATE // 2 < promised < 1 << 40:
        return f"the file breaks off after {got / RATE:.2f} of {promised / RATE:.2f} s"
    return None


def by_libav(descriptor: int) -> Generator[Any, None, str | None]:
    """The same by libav, under ffmpeg's own restrictions: no network, no other file. Damage is left to ffmpeg."""
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    with av.open(f"/dev/fd/{descriptor}", container_options=options, metadata_errors="ignore") as container:
        stream = container.streams.audio[0]
        if stream.codec_context.layout.nb_channels > 2:
            raise ValueError(LAYOUT)
        stated = bool(stream.duration) and container.format.name not in STREAMS
        promised = round(float(stream.duration * stream.time_base) * RATE) if stated else None
        yield from without_padding(resampled(container, stream), promised)
    return None


def resampled(container: Any, stream: Any) -> Iterator[Any]:
    import av

    resampler = av.AudioResampler(format="fltp", rate=RATE)
    for frame in container.decode(stream):
        for part in resampler.resample(frame):
            yield part.to_ndarray().mean(axis=0)
    for part in resampler.resample(None):
        yield part.to_ndarray().mean(axis=0)


def without_padding(parts: Iterator[Any], promised: int | None) -> Iterator[Any]:
    """The parts without what a frame-wise codec added after the promised end. More than that is audio the header
    forgot."""
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
    """Frames the header speaks of. For a WAV cut short libsndfile reports what is there, and the rest in its log
    only."""
    frames = int(file.frames)
    short = re.search(r"data : (\d+) \(should be (\d+)\)", file.extra_info)
    if short and 0 < int(short[2]) < int(short[1]) < 0x7FFF0000:  # larger: written by a pipe, which cannot know
        frames = frames * int(short[1]) // int(short[2])
    return frames


def gathered(blocks: Generator[Any, None, str | None]) -> Generator[Any, None, str | None]:
    """The same in blocks of about BLOCK_SEC, however small they come."""
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


def stored(blocks: Generator[Any, None, str | None], memory: int, limit: int) -> tuple[int, str | None]:
    """Writes the blocks into the memory; how many bytes, and the warning. Goes no further than past the limit."""
    written = 0
    while written <= limit:
        try:
            block = next(blocks)
        except StopIteration as end:
            return written, end.value
        if not numpy.isfinite(block).all():
            raise ValueError("it holds samples that are not numbers")
        if os.pwrite(memory, block.data, written) < block.nbytes:
            raise OSError("no memory for its audio")
        written += block.nbytes
    return written, None


def answer(descriptor: int, memory: int, limit: int) -> dict[str, Any]:
    """Decodes the descriptor's file into the memory; how it went."""
    blocks = by_sndfile(descriptor) if is_for_sndfile(os.pread(descriptor, 12, 0)) else by_libav(descriptor)
    try:
        written, warning = stored(gathered(blocks), memory, limit)
    except Exception as fault:  # noqa: BLE001  whatever a library raises means: not by this one
        return {"bytes": 0, "error": f"{type(fault).__name__}: {fault}", "warning": None}
    return {"bytes": written, "error": None, "warning": warning}


def keep_memory() -> None:
    """What is freed stays this process's: getting every file's pages anew takes longer than decoding it."""
    allocator = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if allocator is not None:
        for option, size in ((-3, 1 << 25), (-1, 1 << 26)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            allocator(option, size)


def main() -> None:
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    sock, memory = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    while True:
        asked, descriptors, _, _ = socket.recv_fds(sock, 8, 1)
        if not asked:
            return
        try:
            sock.sendall(json.dumps(answer(descriptors[0], memory, *struct.unpack("<Q", asked))).encode() + b"\n")
        except BrokenPipeError:
            return
        finally:
            os.close(descriptors[0])


if __name__ == "__main__":
    main()
