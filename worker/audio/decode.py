"""An open file → Clips (float32, 16 kHz), for every format that ffmpeg reads: the mix of its channels, or each of them.

    file ──┬── WAV that needs no decoding ──▶ worker.audio.wav, in this process
           ├── WAV, FLAC, Ogg, MP3, AIFF ──▶ libsndfile ─┐ worker.audio.decode_process,
           ├── other formats ──▶ libav ──────────────────┘ kept running between files
           └── what the libraries refuse ──▶ one ffmpeg process, its output piped

Nothing is decoded in this process, so a crash of a decoder fails one input only. The libraries refuse damaged files,
more than two channels to mix, and rare codecs. The limits on length and time apply while a file is decoded, not
afterward; a header that states too long an audio is refused before. The length counts each channel that is decoded. The
decoded audio is in memory once, except while channels that ffmpeg decoded are split.

Raises DecodeFailed, EmptyAudio, TooLong, Cancelled. A damaged file that is partly readable yields a Clip with a
`warning`.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
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
from typing import IO, Any, BinaryIO, NoReturn, cast

import numpy as np

from worker import child
from worker.audio import ffmpeg, flac, wav
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

    def decode(
        self, file: BinaryIO, *, cancelled: Callable[[], bool] = lambda: False, room: Callable[[int], int] | None = None
    ) -> Clip:
        """Return the first audio track of the whole file, its channels mixed. As `decode_channels`."""
        (clip,) = self.decode_channels(file, split=False, cancelled=cancelled, room=room)
        return clip

    def decode_channels(
        self,
        file: BinaryIO,
        *,
        split: bool = True,
        cancelled: Callable[[], bool] = lambda: False,
        room: Callable[[int], int] | None = None,
    ) -> tuple[Clip, ...]:
        """Return the channels of the first audio track of the whole file in order, or, unless `split`, their mix alone.

        The file must be seekable; it stays open. `room` is called with the bytes of audio that decoding has reached,
        first 0, and returns the bytes up to which it may continue. It may raise, which ends the decoding.
        Raises DecodeFailed, EmptyAudio, TooLong, what `room` raises, and Cancelled once `cancelled` returns True.
        """
        limits = _Limits(self._settings, cancelled, room)
        samples = wav.read(file, limits.check)
        clips = self._decode(file, limits, split) if samples is None else (Clip(samples),)
        if not len(clips[0].samples):
            raise EmptyAudio("the audio holds no samples")
        return clips

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

    def _decode(self, file: BinaryIO, limits: _Limits, split: bool) -> tuple[Clip, ...]:
        limits.refuse(stated_sec(file, split))
        with _shareable(file) as shared:
            try:
                return self._by_process(shared, limits, split)
            except _LibraryRefused as refused:
                if str(refused).endswith(ffmpeg.TOO_MANY):
                    raise DecodeFailed(ffmpeg.TOO_MANY) from None
                return _by_ffmpeg(shared, limits, str(refused), split)

    def _by_process(self, file: BinaryIO, limits: _Limits, split: bool) -> tuple[Clip, ...]:
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = _Process()
        try:
            return process.decode(file, limits, split)
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

    `bytes` is the size of the decoded audio up to which decoding may continue without another `check`.
    """

    def __init__(
        self, settings: Settings, cancelled: Callable[[], bool], room: Callable[[int], int] | None = None
    ) -> None:
        self._sec, self._timeout_sec = settings.max_audio_sec, settings.decode_timeout_sec
        self._deadline = time.monotonic() + settings.decode_timeout_sec
        self._cancelled = cancelled
        self._most = int(settings.max_audio_sec * SAMPLE_RATE) * 4
        self._room = room or (lambda size: self._most)
        self.bytes = min(self._most, self._room(0))

    def refuse(self, stated_sec: float | None) -> None:
        """Raise TooLong if the length that a header states is too long by more than a rounding."""
        if stated_sec is not None and stated_sec > self._sec + 1:
            self._raise_too_long()

    def check(self, size: int = 0) -> None:
        """Raise an error if decoding must end, and raise `bytes` if `size` exceeds it.

        Raises Cancelled, DecodeFailed if decoding takes too long, TooLong, or what `room` raises.
        """
        if self._cancelled():
            raise Cancelled("the request was canceled during decoding")
        if time.monotonic() > self._deadline:
            raise DecodeFailed(f"decoding took longer than {self._timeout_sec:g} s (DECODE_TIMEOUT_SEC)")
        if size > self._most:
            self._raise_too_long()
        if size > self.bytes:
            self.bytes = min(self._most, self._room(size))

    def _raise_too_long(self) -> NoReturn:
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
            self._process = child.start(
                child.command("worker.audio.decode_process", *map(str, passed)),
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=child.ROOT,
            )
        self._socket.settimeout(_POLL_SEC)
        self.alive = True

    def decode(self, file: BinaryIO, limits: _Limits, split: bool) -> tuple[Clip, ...]:
        """Return the file's audio. Raises _LibraryRefused, and what `limits.check` raises."""
        limits.check()
        try:
            socket.send_fds(self._socket, [struct.pack("<Q?", limits.bytes, split)], [file.fileno()])
            status = self._receive(limits)
            while not status["done"]:
                self._socket.sendall(struct.pack("<Q", limits.bytes))
                status = self._receive(limits)
            return self._clips(status)
        except (EOFError, OSError):
            self.alive = False
            raise _LibraryRefused("the decoder crashed") from None

    def close(self) -> None:
        """Kill the process, and free its memory."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
        self._memory.close()

    def _clips(self, status: dict[str, Any]) -> tuple[Clip, ...]:
        """Return the audio that the process has decoded. Raises _LibraryRefused."""
        if status["error"]:
            self._trim()  # the audio before the fault may take much memory
            raise _LibraryRefused(status["error"])
        return _clips(self._samples(status["bytes"], status["channels"]), status["warning"])

    def _receive(self, limits: _Limits) -> dict[str, Any]:
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
        status: dict[str, Any] = json.loads(line)
        limits.check(status["bytes"])
        return status

    def _samples(self, size: int, channels: int) -> np.ndarray:
        """Return the first `size` bytes of the memory as samples, of shape (channels, samples).

        What the process may not keep is freed. The last block is moved first, so that a long audio is never in memory
        twice. Raises EOFError if the memory holds less.
        """
        count, most = size // (4 * channels), _KEPT // (4 * channels)
        samples = np.empty((channels, count), "<f4")
        for start in reversed(range(0, count, most)):
            part = samples[:, start : start + most]
            frames = part[0] if channels == 1 else np.empty(part.T.shape, "<f4")
            self._read(frames, 4 * channels * start)
            if channels > 1:
                part[:] = frames.T
            if size > _KEPT:
                self._memory.truncate(4 * channels * start)
        self._trim()
        return samples

    def _read(self, frames: np.ndarray, at: int) -> None:
        """Fill the array from the memory at `at`. Raises EOFError if the memory holds less."""
        left = frames.data.cast("B") if frames.size else memoryview(b"")
        while left:
            got = os.preadv(self._memory.fileno(), [left], at)
            if not got:
                raise EOFError
            left, at = left[got:], at + got

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


def _clips(samples: np.ndarray, warning: str | None) -> tuple[Clip, ...]:
    """Return a clip for each channel of samples of shape (channels, samples)."""
    return tuple(Clip(channel, warning) for channel in samples)


def _by_ffmpeg(file: BinaryIO, limits: _Limits, refusal: str, split: bool) -> tuple[Clip, ...]:
    """Return the audio as one ffmpeg process decodes it.

    Raises DecodeFailed if ffmpeg cannot read the file. `refusal` is the reason of the libraries, for an ffmpeg that
    reports none.
    """
    file.seek(0)
    audio = bytearray()
    with (
        tempfile.TemporaryFile() as stderr,
        child.start(
            ffmpeg.command(file.fileno(), split),
            pass_fds=(file.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C, which reaches a whole group, would make ffmpeg end the audio early
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for block in _read(process.stdout, limits):
                audio += block
                limits.check(max(0, len(audio) - (ffmpeg.AU_BYTES if split else 0)))
            status = process.wait(timeout=5)
        except BaseException:
            process.kill()
            raise
        stderr.seek(0)
        said = stderr.read(8192).decode(errors="replace")
    message = _last_message(said)
    samples = ffmpeg.samples(audio, split)
    if not samples.size and "matches no streams" in said:
        raise DecodeFailed("the file has no audio track")
    if not samples.size and (status or message):
        raise DecodeFailed(f"the file is not readable as audio: {message or refusal}")
    flat = samples.reshape(-1)
    if not all(np.isfinite(flat[at : at + _CHUNK]).all() for at in range(0, len(flat), _CHUNK)):
        raise DecodeFailed("the file holds samples that are not numbers (NaN or infinite)")
    warning = f"decoding continued after an error: {message or f'exit status {status}'}" if status or message else None
    return _clips(samples, warning)


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


def expected_sec(file: BinaryIO, guess_max_sec: float = math.inf, split: bool = False) -> float:
    """Estimate how many seconds of audio the file holds, before it is decoded.

    The estimate is what a WAV or FLAC file shows: its header, or the last frame of FLAC. For other files it is a guess
    from the size, and no more than `guess_max_sec`; the audio may be many times longer. If `split`, the seconds are
    those of all channels together.
    """
    stated = stated_sec(file, split)
    info = flac.stream_info(_head(file))
    size = file.seek(0, os.SEEK_END)
    if info is not None:
        file.seek(max(0, size - flac.TAIL_BYTES))
        last = flac.last_sample(file.read(), info) / info.rate
        stated = max(stated or 0.0, last * (info.channels if split else 1))
    return stated or min(size / 8_000, guess_max_sec)  # 64 kbit/s: speech rarely has a lower bit rate


def stated_sec(file: BinaryIO, split: bool = False) -> float | None:
    """Return how many seconds of audio the header of a WAV or FLAC file states, or None if it states no length.

    If `split`, the seconds are those of all channels together.
    """
    head = _head(file)
    info = flac.stream_info(head)
    if info is not None:
        return info.samples * (info.channels if split else 1) / info.rate if info.samples else None
    return wav.stated_sec(head, file.seek(0, os.SEEK_END), split)


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(wav.HEAD_BYTES)


def _last_message(stderr: str) -> str:
    """Return ffmpeg's last message, without memory addresses, descriptors and its own summary."""
    lines = [
        re.sub(r"\[[^\]]*\] *|Error opening input: |/dev/fd/\d+: ", "", line).strip() for line in stderr.splitlines()
    ]
    useful = [line for line in lines if line and not line.startswith("Error opening")]
    return useful[-1][:200] if useful else ""
