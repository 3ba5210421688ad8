"""An open file → Clip (float32, mono, 16 kHz), whatever ffmpeg reads, at the cost of one item if it goes wrong.

Nothing is decoded in this process. Decoding processes are kept running (`worker.audio.process`): no start-up per file, yet a
crash there costs one item. What libsndfile reads well (WAV, FLAC, Ogg, MP3, AIFF) it reads there, the rest libav. What
they refuse (damage, more than two channels, odd codecs) goes to one ffmpeg with its output piped. All are read as they
come, so that the limits on length and time hold while decoding, not after it.

Raises DecodeFailed, EmptyAudio, TooLong, Cancelled. A file that is damaged yet partly readable gives a Clip with `warning`.
"""
from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import selectors
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, BinaryIO

import numpy as np

from worker.audio import ffmpeg
from worker.config import Settings
from worker.errors import Cancelled, DecodeFailed, EmptyAudio, TooLong
from worker.types import SAMPLE_RATE, Clip

_POLL_SEC = 0.25
_CHUNK = 1 << 20


class Decoder:
    """Decodes up to `settings.decode_workers` files at a time; thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        self._closed = self._warmed = False

    def decode(self, file: BinaryIO, *, cancelled: Callable[[], bool] = lambda: False) -> Clip:
        """The whole file's first audio track. The file must be seekable; it is left open."""
        sink = _Sink(self._settings, cancelled)
        refusal = self._by_process(file, sink)
        if refusal is not None:
            sink.restart()
            _by_ffmpeg(file, sink, refusal)
        return sink.clip()

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

    def _by_process(self, file: BinaryIO, sink: _Sink) -> str | None:
        """None when decoded into the sink, else why the libraries could not."""
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = _Process()
        try:
            refusal = process.decode(file, sink)
        except BaseException:
            process.close()
            raise
        if process.alive and not self._closed:
            self._idle.put(process)
        else:
            process.close()
        return refusal


class _Sink:
    """Collects samples and enforces what must hold while they come: length, time, cancellation."""

    def __init__(self, settings: Settings, cancelled: Callable[[], bool]) -> None:
        self._limit_sec = settings.max_audio_sec
        self._timeout_sec = settings.decode_timeout_sec
        self._deadline = time.monotonic() + settings.decode_timeout_sec
        self._cancelled = cancelled
        self.restart()

    def restart(self) -> None:
        self._blocks: list[bytes | bytearray] = []
        self._bytes = 0
        self.warning: str | None = None

    @property
    def empty(self) -> bool:
        return self._bytes == 0

    def add(self, block: bytes | bytearray) -> None:
        self._blocks.append(block)
        self._bytes += len(block)
        if self._bytes > self._limit_sec * SAMPLE_RATE * 4:
            raise TooLong(f"longer than the {self._limit_sec:g} s allowed (MAX_AUDIO_SEC)")

    def check(self) -> None:
        if self._cancelled():
            raise Cancelled("cancelled while decoding")
        if time.monotonic() > self._deadline:
            raise DecodeFailed(f"decoding took longer than {self._timeout_sec:g} s (DECODE_TIMEOUT_SEC)")

    def clip(self) -> Clip:
        if self.empty:
            raise EmptyAudio("holds no audio samples")
        data = self._blocks[0] if len(self._blocks) == 1 else b"".join(self._blocks)
        samples = np.frombuffer(data, dtype="<f4", count=len(data) // 4)
        if not np.isfinite(samples).all():
            raise DecodeFailed("holds samples that are not numbers (NaN or infinite)")
        return Clip(samples, self.warning)


class _Process:
    """One decoding process and the socket to it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "worker.audio.process", str(theirs.fileno())], pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=_ROOT)
        self._socket.settimeout(_POLL_SEC)
        self.alive = True

    def decode(self, file: BinaryIO, sink: _Sink) -> str | None:
        """None when decoded into the sink, else the reason why not."""
        try:
            socket.send_fds(self._socket, [b"f"], [file.fileno()])
            while size := struct.unpack("<I", self._receive(4, sink))[0]:
                sink.add(self._receive(size, sink))
            status = json.loads(self._receive(struct.unpack("<I", self._receive(4, sink))[0], sink))
        except (EOFError, OSError):
            self.alive = False
            return "the decoder crashed"
        sink.warning = status["warning"]
        error: str | None = status["error"]
        return error

    def close(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _receive(self, size: int, sink: _Sink) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            sink.check()
            try:
                got = self._socket.recv_into(view)
            except TimeoutError:
                continue
            if not got:
                raise EOFError
            view = view[got:]
        return data


def _by_ffmpeg(file: BinaryIO, sink: _Sink, refusal: str | None) -> None:
    """Decodes into the sink with one ffmpeg. `refusal`: why the libraries could not, told when ffmpeg does not say."""
    file.seek(0)
    with tempfile.TemporaryFile() as stderr, subprocess.Popen(  # noqa: S603
            ffmpeg.command(file.fileno()), pass_fds=(file.fileno(),), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=stderr) as process:
        assert process.stdout is not None
        try:
            for block in _read(process.stdout, sink):
                sink.add(block)
            status = process.wait(timeout=5)
        except BaseException:
            process.kill()
            raise
        stderr.seek(0)
        said = _last_words(stderr.read(8192).decode(errors="replace"))
    if sink.empty and (status or said):
        raise DecodeFailed(f"not readable as audio: {said or refusal or f'ffmpeg ended with status {status}'}")
    if status or said:
        sink.warning = f"the decoder went on after: {said or f'status {status}'}"


def _read(pipe: IO[bytes], sink: _Sink) -> Iterator[bytes]:
    """The pipe's bytes as they come, with the sink's limits checked while nothing does."""
    descriptor = pipe.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            sink.check()
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
    file.seek(0)
    if head[:4] == b"RIFF" and head[12:16] == b"fmt " and len(head) == 32:
        return size / max(1, int.from_bytes(head[28:32], "little"))
    if head[:4] == b"fLaC" and len(head) == 32:
        rate = int.from_bytes(head[18:21], "big") >> 4
        return (int.from_bytes(head[21:26], "big") & (1 << 36) - 1) / max(1, rate)
    return size / 8_000      # 64 kbit/s: speech is seldom compressed further


def _last_words(stderr: str) -> str:
    """What ffmpeg said last, without addresses, descriptors and its own summary, which mean nothing to the user."""
    lines = [re.sub(r"\[[^\]]*\] *|Error opening input: |/dev/fd/\d+: ", "", line).strip() for line in stderr.splitlines()]
    useful = [line for line in lines if line and not line.startswith("Error opening")]
    return useful[-1][:200] if useful else ""


_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
