"""An open file → Clip (float32, mono, 16 kHz), whatever ffmpeg reads, at the cost of one item if it goes wrong.

Nothing is decoded in this process; only WAV that needs no decoding is read here (`worker.audio.wav`). Decoding
processes are
kept running (`worker.audio.decode_process`): no start-up per file, yet a crash there costs one item. What libsndfile
reads well
(WAV, FLAC, Ogg, MP3, AIFF) it reads there, the rest libav. What they refuse (damage, more than two channels, odd
codecs) goes to one ffmpeg with its output piped. The limits on length and time hold while decoding, not after it.

Raises DecodeFailed, EmptyAudio, TooLong, Cancelled. A file that is damaged yet partly readable gives a Clip with
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
_KEPT = 1 << 24  # memory that a decoding process keeps for the next file


class Decoder:
    """Decodes up to `settings.decode_workers` files at a time; thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        self._closed = self._warmed = False

    def decode(self, file: BinaryIO, *, cancelled: Callable[[], bool] = lambda: False) -> Clip:
        """The whole file's first audio track. The file must be seekable; it is left open."""
        limits = _Limits(self._settings, cancelled)
        samples = wav.read(file, limits.check)
        clip = self._decoded(file, limits) if samples is None else Clip(samples)
        if not len(clip.samples):
            raise EmptyAudio("holds no audio samples")
        return clip

    def warm(self) -> None:
        """Starts the decoding processes ahead of the first request, once."""
        if not self._warmed:
            self._warmed = True
            for _ in range(self._settings.decode_workers):
                self._idle.put(_Process())

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _decoded(self, file: BinaryIO, limits: _Limits) -> Clip:
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
    """What must hold while a file is decoded: length, time, and that somebody still wants it."""

    def __init__(self, settings: Settings, cancelled: Callable[[], bool]) -> None:
        self._sec, self._timeout_sec = settings.max_audio_sec, settings.decode_timeout_sec
        self._deadline = time.monotonic() + settings.decode_timeout_sec
        self._cancelled = cancelled
        self.bytes = int(settings.max_audio_sec * SAMPLE_RATE) * 4

    def check(self, size: int = 0) -> None:
        """Raises Cancelled, DecodeFailed (too slow), TooLong (more bytes of audio than allowed)."""
        if self._cancelled():
            raise Cancelled("cancelled while decoding")
        if time.monotonic() > self._deadline:
            raise DecodeFailed(f"decoding took longer than {self._timeout_sec:g} s (DECODE_TIMEOUT_SEC)")
        if size > self.bytes:
            raise TooLong(f"longer than the {self._sec:g} s allowed (MAX_AUDIO_SEC)")


class _LibraryRefused(Exception):
    """The libraries could not decode it, and why."""


class _Process:
    """One decoding process, the socket to it, and the memory into which it decodes."""

    def __init__(self) -> None:
        self._memory = _anonymous_file()
        self._socket, theirs = socket.socketpair()
        with theirs:
            passed = (theirs.fileno(), self._memory.fileno())
            self._process = subprocess.Popen(  # noqa: S603
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
        """Raises _Refused."""
        limits.check()
        try:
            socket.send_fds(self._socket, [struct.pack("<Q", limits.bytes)], [file.fileno()])
            status = json.loads(self._answer(limits))
        except (EOFError, OSError):
            self.alive = False
            raise _LibraryRefused("the decoder crashed") from None
        if status["error"]:
            self._trim()  # what came before the fault may be much
            raise _LibraryRefused(status["error"])
        limits.check(status["bytes"])
        return Clip(self._samples(status["bytes"]), status["warning"])

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()
        self._memory.close()

    def _answer(self, limits: _Limits) -> bytes:
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
        samples = np.empty(size // 4, "<f4")
        left = samples.data.cast("B")
        self._memory.seek(0)
        while left:
            left = left[self._memory.readinto(left) :]
        self._trim()
        return samples

    def _trim(self) -> None:
        if os.fstat(self._memory.fileno()).st_size > _KEPT:
            self._memory.truncate(0)


@contextlib.contextmanager
def _shareable(file: BinaryIO) -> Iterator[BinaryIO]:
    """The file, or what it holds in one that other processes can be given."""
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
    """A file without a name: in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return io.FileIO(os.memfd_create("audio"), "r+")
    return tempfile.TemporaryFile(buffering=0)


def _by_ffmpeg(file: BinaryIO, limits: _Limits, refusal: str) -> Clip:
    """Decodes with one ffmpeg. `refusal`: why the libraries could not, told when ffmpeg does not say."""
    file.seek(0)
    blocks: list[bytes] = []
    size = 0
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(  # noqa: S603
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
        said = _last_words(stderr.read(8192).decode(errors="replace"))
    if not size and (status or said):
        raise DecodeFailed(f"not readable as audio: {said or refusal}")
    samples = np.frombuffer(bytearray().join(blocks), "<f4", count=size // 4)
    if not np.isfinite(samples).all():
        raise DecodeFailed("holds samples that are not numbers (NaN or infinite)")
    return Clip(samples, f"the decoder went on after: {said or f'status {status}'}" if status or said else None)


def _read(pipe: IO[bytes], limits: _Limits) -> Iterator[bytes]:
    """The pipe's bytes as they come, with the limits checked while nothing does."""
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
    """Roughly how many seconds the file will decode to, from its header where that tells, else from its size."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(32)
    if head[:4] == b"RIFF" and head[12:16] == b"fmt " and len(head) == 32:
        return size / max(1, int.from_bytes(head[28:32], "little"))
    if head[:4] == b"fLaC" and len(head) == 32:
        rate = int.from_bytes(head[18:21], "big") >> 4
        return (int.from_bytes(head[21:26], "big") & (1 << 36) - 1) / max(1, rate)
    return size / 8_000  # 64 kbit/s: speech is seldom compressed further


def _last_words(stderr: str) -> str:
    """What ffmpeg said last, without addresses, descriptors and its own summary, which mean nothing to the user."""
    lines = [
        re.sub(r"\[[^\]]*\] *|Error opening input: |/dev/fd/\d+: ", "", line).strip() for line in stderr.splitlines()
    ]
    useful = [line for line in lines if line and not line.startswith("Error opening")]
    return useful[-1][:200] if useful else ""
