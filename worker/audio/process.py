"""The decoding process: libsndfile and libav in a process of its own, kept running, so that no file pays for starting one.

`python -m worker.audio.process FD` serves a Unix socket. A request is one byte with a file descriptor attached (SCM_RIGHTS);
libsndfile takes the formats it reads as well as ffmpeg does, libav the others. The answer is blocks, each a little-endian
uint32 of its size and that many bytes of float32 at 16 kHz mono; a size of 0 ends them, then comes one more sized block: JSON
{"error": null | text, "warning": null | text}.

Knows nothing of the worker: if a hostile file crashes or hangs a library, this process is killed and replaced.
"""
from __future__ import annotations

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
PADDING = RATE // 8          # no codec's frame is longer
LAYOUT = "more than two channels are mixed by their layout, which is ffmpeg's to know"


def is_for_sndfile(head: bytes) -> bool:
    """Whether a file's first bytes are of a format that libsndfile reads as well as ffmpeg does."""
    mpeg_layer_3 = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2
    return (head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE") or head[:4] in (b"fLaC", b"OggS", b"FORM") \
        or head[:3] == b"ID3" or mpeg_layer_3


def by_sndfile(descriptor: int) -> Generator[Any, None, str | None]:
    """The file as float32 blocks of mono 16 kHz; constant memory whatever the length. Returns a warning, or None."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    got = 0
    with soundfile.SoundFile(descriptor, closefd=False) as file:
        if file.channels > 2:
            raise ValueError(LAYOUT)
        promised = promised_frames(file) * RATE // file.samplerate
        resampler = None if file.samplerate == RATE else soxr.ResampleStream(file.samplerate, RATE, 1, dtype="float32")
        last = False
        while not last:
            block = file.read(file.samplerate * BLOCK_SEC, dtype="float32", always_2d=True)
            last = len(block) == 0
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
        promised = round(float(stream.duration * stream.time_base) * RATE) if stream.duration else None
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
    """The parts without what a frame-wise codec added after the promised end. More than that is audio the header forgot."""
    got = 0
    beyond: list[Any] = []
    for part in parts:
        kept = part if promised is None else part[:max(0, promised - got)]
        got += len(part)
        yield kept
        if promised is not None:
            beyond.append(part[len(kept):])
            if got - promised > PADDING:
                yield from beyond
                promised = None


def promised_frames(file: soundfile.SoundFile) -> int:
    """Frames the header speaks of. For a WAV cut short libsndfile reports what is there, and the rest in its log only."""
    frames = int(file.frames)
    short = re.search(r"data : (\d+) \(should be (\d+)\)", file.extra_info)
    if short and 0 < int(short[2]) < int(short[1]) < 0x7FFF0000:     # larger: written by a pipe, which cannot know
        frames = frames * int(short[1]) // int(short[2])
    return frames


def answer(sock: socket.socket, descriptor: int) -> None:
    """Decodes the descriptor's file onto the socket, then says how it went."""
    error = warning = None
    ready: list[Any] = []
    waiting = 0

    def send() -> None:
        data = numpy.ascontiguousarray(ready[0] if len(ready) == 1 else numpy.concatenate(ready)) if ready else None
        ready.clear()
        if data is not None and data.nbytes:
            sock.sendall(struct.pack("<I", data.nbytes))
            sock.sendall(data.data)

    blocks = by_sndfile(descriptor) if is_for_sndfile(os.pread(descriptor, 12, 0)) else by_libav(descriptor)
    try:
        while True:
            try:
                ready.append(next(blocks))
            except StopIteration as end:
                warning = end.value
                break
            waiting += len(ready[-1])
            if waiting >= RATE * BLOCK_SEC:
                waiting = 0
                send()
        send()
    except BrokenPipeError:
        raise
    except Exception as fault:  # noqa: BLE001  whatever a library raises means: not by this one
        error = f"{type(fault).__name__}: {fault}"
    status = json.dumps({"error": error, "warning": warning}).encode()
    sock.sendall(struct.pack("<II", 0, len(status)) + status)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)     # Ctrl-C reaches the whole group; the parent decides
    sock = socket.socket(fileno=int(sys.argv[1]))
    while True:
        asked, descriptors, _, _ = socket.recv_fds(sock, 1, 1)
        if not asked:
            return
        try:
            answer(sock, descriptors[0])
        except BrokenPipeError:
            return
        finally:
            os.close(descriptors[0])


if __name__ == "__main__":
    main()
