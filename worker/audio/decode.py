"""An open file → Clip (float32, mono, 16 kHz), for every format that ffmpeg reads.

    file ──┬── WAV that needs no decoding ──▶ worker.audio.wav, in this process
           ├── WAV, FLAC, Ogg, MP3, AIFF ──▶ libsndfile ─┐ worker.audio.decode_process,
           ├── other formats ──▶ libav ──────────────────┘ kept running between files
           └── what the libraries refuse ──▶ one ffmpeg process, its output piped

Nothing is decoded in this process, so a crash of a decoder fails one input only. The libraries refuse damaged files,
more than two channels, and rare codecs. The limits on length and time apply while a file is decoded, not afterward.

Raises DecodeFailed, EmptyAudio, TooLong, Cancelled. A damaged file that is partly readable yields a Clip with a
`warning`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import re
import selectors
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, BinaryIO, cast

import numpy as np

from worker import child
from worker.audio import ffmpeg, wav
from worker.config import Settings
from worker.errors import Cancelled, DecodeFailed, EmptyAudio, TooLong
from worker.types import SAMPLE_RATE, Clip

_POLL_SEC = 0.25
_CHUNK = 1 << 20
_KEPT = 1 << 24  # bytes of memory that a decoding process keeps for the next file


class Decoder:
    """A pool of decoding processes. Thread-safe.

    Each call of `decode` uses one process, an idle one or a new one.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        self._closed = self._warmed = False

    def decode(self, file: BinaryIO, *, cancelled: Callable[[], bool] = lambda: False) -> Clip:
        """Return the first audio track of the whole file. The file must be seekable; it stays open.

        Raises DecodeFailed, EmptyAudio, TooLong, and Cancelled once `cancelled` returns True.
        """
        limits = _Limits(self._settings, cancelled)
        samples = wav.read(file, limits.check)
        clip = self._decode(file, limits) if samples is None else Clip(samples)
        if not len(clip.samples):
            raise EmptyAudio("the audio holds no samples")
        return clip

    def warm(self) -> None:
        """Start `settings.decode_workers` decoding processes ahead of the first request. Later calls do nothing."""
        if not self._warmed:
            self._warmed = True
            for _ in range(self._settings.decode_workers):
                self._idle.put(_Process())

    def close(self) -> None:
        """End the idle processes now, and each busy process after its file."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _decode(self, file: BinaryIO, limits: _Limits) -> Clip:
        with _shareable(file) as shared:
            try:
                return self._by_process(shared, limits)
            except _LibraryRefused as refused:
                return _by_ffmpeg(shared, limits, str(refused))

    def _by_process(self, file: BinaryIO, limits: _Limits) -> Clip:
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = _Process()
        try:
            return process.decode(file, limits)
        except _LibraryRefused:
            raise
        except BaseException:
            process.alive = False
            raise
        finally:
            if process.alive and not self._closed:
                self._idle.put(process)
            else:
                process.close()


class _Limits:
    """The conditions under which the decoding of one file continues: its length, its time, and no cancellation.

    `bytes` is the limit on the decoded audio.
    """

    def __init__(self, settings: Settings, cancelled: Callable[[], bool]) -> None:
        self._sec, self._timeout_sec = settings.max_audio_sec, settings.decode_timeout_sec
        self._deadline = time.monotonic() + settings.decode_timeout_sec
        self._cancelled = cancelled
        self.bytes = int(settings.max_audio_sec * SAMPLE_RATE) * 4

    def check(self, size: int = 0) -> None:
        """Raise Cancelled, DecodeFailed if decoding takes too long, or TooLong if `size` exceeds `bytes`."""
        if self._cancelled():
            raise Cancelled("the request was canceled during decoding")
        if time.monotonic() > self._deadline:
            raise DecodeFailed(f"decoding took longer than {self._timeout_sec:g} s (DECODE_TIMEOUT_SEC)")
        if size > self.bytes:
            raise TooLong(f"the audio is longer than {self._sec:g} s (MAX_AUDIO_SEC)")


class _LibraryRefused(Exception):
    """The libraries cannot decode the file. The message is the reason."""


class _Process:
    """A decoding process, the socket to it, and the memory into which it decodes.

    `alive` is False after the process failed or may still be busy; such a process must be closed.
    """

    def __init__(self) -> None:
        self._memory = _anonymous_file()
        self._socket, theirs = socket.socketpair()
        with theirs:
            passed = (theirs.fileno(), self._memory.fileno())
            self._process = subprocess.Popen(  # noqa: S603  a program of this package
                child.command("worker.audio.decode_process", *map(str, passed)),
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=child.ROOT,
            )
        self._socket.settimeout(_POLL_SEC)
        self.alive = True

    def decode(self, file: BinaryIO, limits: _Limits) -> Clip:
        """Return the file's audio. Raises _LibraryRefused, and what `limits.check` raises."""
        limits.check()
        try:
            socket.send_fds(self._socket, [struct.pack("<Q", limits.bytes)], [file.fileno()])
            status = json.loads(self._receive(limits))
        except (EOFError, OSError):
            self.alive = False
            raise _LibraryRefused("the decoder crashed") from None
        if status["error"]:
            self._trim()  # the audio before the fault may take much memory
            raise _LibraryRefused(status["error"])
        limits.check(status["bytes"])
        return Clip(self._samples(status["bytes"]), status["warning"])

    def close(self) -> None:
        """Kill the process, and free its memory."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
        self._memory.close()

    def _receive(self, limits: _Limits) -> bytes:
        """Return the next line of the process. Raises EOFError if the process exits, and what `limits.check` raises."""
        line = b""
        while not line.endswith(b"\n"):
            try:
                got = self._socket.recv(1 << 16)
            except TimeoutError:
                limits.check()
                continue
            if not got:
                raise EOFError
            line += got
        return line

    def _samples(self, size: int) -> np.ndarray:
        """Return the first `size` bytes of the memory as samples."""
        samples = np.empty(size // 4, "<f4")
        left = samples.data.cast("B")
        self._memory.seek(0)
        while left:
            left = left[self._memory.readinto(left) :]
        self._trim()
        return samples

    def _trim(self) -> None:
        """Free the memory if the process holds more than it may keep."""
        if os.fstat(self._memory.fileno()).st_size > _KEPT:
            self._memory.truncate(0)


@contextlib.contextmanager
def _shareable(file: BinaryIO) -> Iterator[BinaryIO]:
    """Yield the file, or for a file in memory a copy that has a descriptor, which other processes can read."""
    file.seek(0)
    if not isinstance(file, io.BytesIO):
        yield file
        return
    with _anonymous_file() as copy:
        left = memoryview(file.getvalue())
        while left:
            left = left[copy.write(left) :]
        yield cast(BinaryIO, copy)


def _anonymous_file() -> io.FileIO:
    """Return a file without a name, in memory if the system supports that."""
    if hasattr(os, "memfd_create"):
        return io.FileIO(os.memfd_create("audio"), "r+")
    return tempfile.TemporaryFile(buffering=0)


def _by_ffmpeg(file: BinaryIO, limits: _Limits, refusal: str) -> Clip:
    """Return the audio as one ffmpeg process decodes it.

    Raises DecodeFailed if ffmpeg cannot read the file. `refusal` is the reason of the libraries, for an ffmpeg that
    reports none.
    """
    file.seek(0)
    blocks: list[bytes] = []
    size = 0
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(  # noqa: S603  ffmpeg, on a descriptor
            ffmpeg.command(file.fileno()),
            pass_fds=(file.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for block in _read(process.stdout, limits):
                blocks.append(block)
                size += len(block)
                limits.check(size)
            status = process.wait(timeout=5)
        except BaseException:
            process.kill()
            raise
        stderr.seek(0)
        message = _last_message(stderr.read(8192).decode(errors="replace"))
    if not size and (status or message):
        raise DecodeFailed(f"the file is not readable as audio: {message or refusal}")
    samples = np.frombuffer(bytearray().join(blocks), "<f4", count=size // 4)
    if not np.isfinite(samples).all():
        raise DecodeFailed("the file holds samples that are not numbers (NaN or infinite)")
    if status or message:
        return Clip(samples, f"decoding continued after an error: {message or f'exit status {status}'}")
    return Clip(samples)


def _read(pipe: IO[bytes], limits: _Limits) -> Iterator[bytes]:
    """Yield the pipe's bytes as they arrive, and check the limits in the meantime."""
    descriptor = pipe.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            limits.check()
            if selector.select(_POLL_SEC):
                block = os.read(descriptor, _CHUNK)
                if not block:
                    return
                yield block


def expected_sec(file: BinaryIO) -> float:
    """Estimate how many seconds of audio the file holds, from the header of a WAV or FLAC file or else from the size.

    The fields: the byte rate in the fmt chunk of RIFF/WAVE; the sample rate and total samples in FLAC's STREAMINFO.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(32)
    if head[:4] == b"RIFF" and head[12:16] == b"fmt " and len(head) == 32:
        return size / max(1, int.from_bytes(head[28:32], "little"))
    if head[:4] == b"fLaC" and len(head) == 32:
        rate = int.from_bytes(head[18:21], "big") >> 4
        return (int.from_bytes(head[21:26], "big") & (1 << 36) - 1) / max(1, rate)
    return size / 8_000  # 64 kbit/s: speech rarely has a lower bit rate


def _last_message(stderr: str) -> str:
    """Return ffmpeg's last message, without memory addresses, descriptors and its own summary."""
    lines = [
        re.sub(r"\[[^\]]*\] *|Error opening input: |/dev/fd/\d+: ", "", line).strip() for line in stderr.splitlines()
    ]
    useful = [line for line in lines if line and not line.startswith("Error opening")]
    return useful[-1][:200] if useful else ""
