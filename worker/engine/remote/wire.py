"""Messages between an engine and the process of a device: any object that pickles, over a Unix socket, arrays without
a copy.

A message is a uint32 count, as many uint64 sizes, and the parts of these sizes: the pickle and its out-of-band
buffers, all little-endian. Both ends are Aviary's own processes, started by one another, so a pickle is trusted.
"""

from __future__ import annotations

import dataclasses
import pickle
import socket
import struct
import threading
import traceback
from collections.abc import Sequence
from typing import Any

from worker.config import Settings
from worker.errors import AviaryError
from worker.types import Options


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the process of a device is told first. factory: `module:name` of what makes a backend of a model and the
    settings. logs: whether it is to write any. cores: those it is kept on; none: all."""

    settings: Settings
    folder: str
    factory: str
    logs: bool
    cores: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sent:
    """A piece on its way: what a backend needs of it. heard: somebody listens to its text."""

    samples: Any
    options: Options
    heard: bool


@dataclasses.dataclass(frozen=True)
class Failed:
    """An exception: itself, if it is one of ours, else its class and what it says. trace: its traceback, where a
    stranger is in it."""

    ours: AviaryError | None
    name: str
    text: str
    trace: str | None

    @classmethod
    def of(cls, error: BaseException) -> Failed:
        ours = error if isinstance(error, AviaryError) else None
        trace = "".join(traceback.format_exception(error)) if ours is None or ours.__cause__ is not None else None
        return cls(ours, type(error).__name__, str(error), trace)


Parts = Sequence[bytes | memoryview]


def pack(message: object) -> Parts:
    """The message as it is sent, which holds on to its arrays. Raises whatever pickling does."""
    buffers: list[memoryview] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=lambda one: buffers.append(one.raw()))
    sizes = [len(head), *map(len, buffers)]
    return [struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes), head, *buffers]


class Wire:
    """One end. Any thread may send; one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._sending = sock, threading.Lock()

    def send(self, parts: Parts) -> None:
        """Raises OSError when the other end is gone."""
        with self._sending:
            for part in parts:
                self._sock.sendall(part)

    def receive(self) -> Any:
        """The next message. Raises EOFError or OSError when the other end is gone."""
        (count,) = struct.unpack("<I", self._read(4))
        sizes = struct.unpack(f"<{count}Q", self._read(8 * count))
        head, *buffers = [self._read(size) for size in sizes]
        return pickle.loads(head, buffers=buffers)  # noqa: S301  of our own making

    def hang_up(self) -> None:
        """Both ends read no further than what has been sent."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is already

    def close(self) -> None:
        self._sock.close()

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            got = self._sock.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return data
