"""A microphone or stdin → blocks of little-endian PCM16, 16 kHz, mono.

microphone ── sounddevice ─────────────────────▶ blocks
stdin ──┬── raw samples ── resampler ──────────▶ blocks
        └── a file with a known header ── ffmpeg ▶ blocks
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

import numpy as np

from worker.audio import ffmpeg
from worker.audio.live import LiveAudio
from worker.errors import ConfigError, DecodeFailed
from worker.types import SAMPLE_RATE

RATE = SAMPLE_RATE
BLOCK_BYTES = 2 * RATE // 10
_STDIN = 0
_HEAD_BYTES = 12
_STARTS = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3", b"FORM", b"caff")  # of files


def microphone() -> Iterator[bytes]:
    """Return the blocks of the default microphone, which is recorded from the first block on.

    Raises ConfigError if sounddevice or its library is missing, or if there is no microphone.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"a microphone requires the package sounddevice ({error}). Run: pip install sounddevice (on Debian and "
            "Ubuntu also: apt install libportaudio2). Or pipe the audio in: arecord -q -t raw -f S16_LE -r 16000 | "
            "aviary listen -"
        ) from None
    blocks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    faults = (sounddevice.PortAudioError, ValueError)
    with _microphone_errors(faults):
        stream = sounddevice.RawInputStream(
            samplerate=RATE,
            channels=1,
            dtype="int16",
            blocksize=BLOCK_BYTES // 2,
            callback=lambda data, *_rest: blocks.put(bytes(data)),
        )

    def record() -> Iterator[bytes]:
        with _microphone_errors(faults), stream:
            while True:
                yield blocks.get()

    return record()


@contextlib.contextmanager
def _microphone_errors(faults: tuple[type[Exception], ...]) -> Iterator[None]:
    """Raise the errors of a microphone as ConfigError."""
    try:
        yield
    except faults as error:
        raise ConfigError(
            f"the microphone cannot be opened: {error}. Connect a microphone, or check with: python -m sounddevice"
        ) from None


def stdin(rate: int | None) -> Iterator[bytes]:
    """Yield the blocks of stdin. Raises DecodeFailed for a file that ffmpeg cannot decode, and FfmpegMissing.

    rate: the sample rate of raw PCM16 in Hz. Without a rate, stdin is a file if it starts as one, else raw at 16 kHz.
    """
    head = b""
    while rate is None and len(head) < _HEAD_BYTES and (more := os.read(_STDIN, _HEAD_BYTES - len(head))):
        head += more
    if head.startswith(_STARTS) or head[4:8] == b"ftyp":
        yield from _decoded(head)
    else:
        yield from _resampled(_raw(head), rate or RATE)


def _raw(head: bytes) -> Iterator[bytes]:
    """Yield what is on stdin. The reads take no lock of Python's, so the process can exit in the middle of one."""
    if head:
        yield head
    while data := os.read(_STDIN, BLOCK_BYTES):
        yield data


def _resampled(blocks: Iterator[bytes], rate: int) -> Iterator[bytes]:
    if rate == RATE:
        yield from blocks
        return
    stream = LiveAudio("pcm16", rate)
    for block in blocks:
        yield _pcm(stream.feed(block))
    yield _pcm(stream.flush())


def _pcm(samples: np.ndarray) -> bytes:
    data: bytes = (np.clip(samples, -1, 1 - 2**-15) * 2**15).round().astype("<i2").tobytes()
    return data


def _decoded(head: bytes) -> Iterator[bytes]:
    """Yield the audio of a file on stdin, decoded as it arrives. Ctrl-C does not reach ffmpeg."""
    call = [ffmpeg.executable(), "-hide_banner", "-v", "error", "-protocol_whitelist", "pipe"]
    call += ["-format_whitelist", ffmpeg.FORMATS, "-i", "pipe:0", "-map", "0:a:0"]
    call += ["-f", "s16le", "-ac", "1", "-ar", str(RATE), "pipe:1"]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(  # noqa: S603  a fixed command
            call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, start_new_session=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        threading.Thread(target=_pump, args=(head, process.stdin), name="stdin", daemon=True).start()
        while data := process.stdout.read1(BLOCK_BYTES):  # type: ignore[attr-defined]
            yield data
        if process.wait():
            said.seek(0)
            reason = said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise DecodeFailed(f"stdin cannot be decoded: {reason or 'ffmpeg failed'}")


def _pump(head: bytes, sink: IO[bytes]) -> None:
    """Write stdin to ffmpeg until either ends."""
    try:
        with sink:
            sink.write(head)
            sink.flush()
            while data := os.read(_STDIN, BLOCK_BYTES):
                sink.write(data)
                sink.flush()
    except (BrokenPipeError, ValueError):
        return  # ffmpeg has ended, and its exit status says why
