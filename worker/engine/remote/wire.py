"""Messages between an engine and the process of a device, over a Unix socket.

A message is any object that pickles. Its arrays travel as out-of-band buffers of pickle protocol 5, without a copy:

    count   uint32       number of parts
    sizes   count × uint64   bytes of each part
    parts   the pickle, then its buffers

All integers are little-endian. Both ends are Aviary's own processes, one started by the other, so pickles are trusted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import socket
import struct
import threading
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from worker.config import Settings
from worker.errors import AviaryError
from worker.faults import RemoteTraceback
from worker.types import Options

if TYPE_CHECKING:
    import numpy as np


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the process of a device runs: the first message it receives."""

    settings: Settings
    """The settings of its backends."""
    folder: str
    """The working directory."""
    factory: str
    """`module:name` of the function that makes a backend from a catalog row and the settings."""
    logs: bool
    """Whether the process writes log records to stderr."""
    cores: tuple[int, ...] = ()
    """The CPU cores that the process is bound to. Empty: all cores."""


@dataclasses.dataclass(frozen=True)
class PieceMessage:
    """What a backend needs of a Piece."""

    samples: np.ndarray
    """Audio: float32 of shape (samples,), 16 kHz."""
    options: Options
    streams_text: bool
    """Whether the engine passes on the piece's text while it is generated."""
    speech: tuple[tuple[float, float], ...] | None
    """The spans of speech, in seconds, if the engine has searched for them."""


@dataclasses.dataclass(frozen=True)
class CallFailure:
    """The error that a call raised in the process of a device."""

    error: AviaryError
    trace: str | None
    """The traceback of the error and its cause; None if the error has no cause."""

    @classmethod
    def of(cls, error: AviaryError) -> CallFailure:
        """Return the error as it is sent. A pickled exception loses its cause, hence the traceback as text."""
        trace = None if error.__cause__ is None else "".join(traceback.format_exception(error))
        return cls(error, trace)

    def restore(self) -> AviaryError:
        """Return the error to raise in the engine's process, with the traceback as its cause."""
        if self.trace is not None:
            self.error.__cause__ = RemoteTraceback(self.trace)
        return self.error


Parts = Sequence[bytes | memoryview]


def pack(message: object) -> Parts:
    """Return the message as the parts to send, which refer to its arrays. Raises the exceptions of pickle."""
    buffers: list[memoryview] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=lambda buffer: buffers.append(buffer.raw()))
    sizes = [len(head), *map(len, buffers)]
    return [struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes), head, *buffers]


class Wire:
    """One end of the socket. Any thread may send; one thread receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._sending = sock, threading.Lock()

    def send(self, parts: Parts) -> None:
        """Send a packed message. Raises OSError if the other end has closed the socket."""
        with self._sending:
            for part in parts:
                self._sock.sendall(part)

    def receive(self) -> Any:
        """Return the next message. Raises EOFError or OSError if the other end has closed the socket."""
        (count,) = struct.unpack("<I", self._read(4))
        sizes = struct.unpack(f"<{count}Q", self._read(8 * count))
        head, *buffers = [self._read(size) for size in sizes]
        return pickle.loads(head, buffers=buffers)  # noqa: S301  the other end is a process of Aviary's own

    def hang_up(self) -> None:
        """End the connection: both ends can still read what was sent, and nothing after it."""
        with contextlib.suppress(OSError):  # the connection has ended already
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._sock.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]
        return data
