"""The decoding process: libsndfile in a process of its own, kept running, so that no file pays for starting one.

`python -m worker.audio.sndfile FD` serves a Unix socket. A request is one byte with a file descriptor attached
(SCM_RIGHTS). The answer is blocks, each a little-endian uint32 of its size and that many bytes of float32 at 16 kHz mono;
a size of 0 ends them, then comes one more sized block: JSON {"error": null | text, "warning": null | text}.

Knows nothing of the worker: if a hostile file crashes or hangs libsndfile, this process is killed and replaced.
"""
from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any

import soundfile
import soxr

RATE = 16_000
BLOCK_SEC = 20


def blocks(file: soundfile.SoundFile) -> Iterator[Any]:
    """The file as float32 blocks of mono 16 kHz; constant memory whatever the length."""
    resampler = None if file.samplerate == RATE else soxr.ResampleStream(file.samplerate, RATE, 1, dtype="float32")
    while True:
        block = file.read(file.samplerate * BLOCK_SEC, dtype="float32", always_2d=True)
        last = len(block) == 0
        mono = block.mean(axis=1) if file.channels == 2 else block[:, 0]
        if resampler is not None:
            mono = resampler.resample_chunk(mono, last=last)
        if len(mono):
            yield mono
        if last:
            return


def promised_frames(file: soundfile.SoundFile) -> int:
    """Frames the header speaks of. For a WAV cut short libsndfile reports what is there, and the rest in its log only."""
    frames = int(file.frames)
    short = re.search(r"data : (\d+) \(should be (\d+)\)", file.extra_info)
    if short and 0 < int(short[2]) < int(short[1]) < 0x7FFF0000:     # larger: written by a pipe, which cannot know
        frames = frames * int(short[1]) // int(short[2])
    return frames


def answer(sock: socket.socket, descriptor: int) -> None:
    error = warning = None
    got = 0
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        with soundfile.SoundFile(descriptor, closefd=False) as file:
            if file.channels > 2:
                raise ValueError("more than two channels need a layout, which libsndfile does not tell")
            promised = promised_frames(file) * RATE // file.samplerate
            for mono in blocks(file):
                data = memoryview(mono).cast("B")
                sock.sendall(struct.pack("<I", len(data)))
                sock.sendall(data)
                got += len(mono)
        if got + RATE // 2 < promised < 1 << 40:
            warning = f"the file breaks off after {got / RATE:.2f} of {promised / RATE:.2f} s"
    except (RuntimeError, ValueError, OSError) as fault:
        if isinstance(fault, BrokenPipeError):
            raise
        error = str(fault)
    status = json.dumps({"error": error, "warning": warning}).encode()
    sock.sendall(struct.pack("<II", 0, len(status)) + status)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)     # Ctrl-C reaches the whole group; the parent decides
    sock = socket.socket(fileno=int(sys.argv[1]))
    while True:
        message, descriptors, _, _ = socket.recv_fds(sock, 1, 1)
        if not message:
            return
        try:
            answer(sock, descriptors[0])
        except BrokenPipeError:
            return
        finally:
            os.close(descriptors[0])


if __name__ == "__main__":
    main()
