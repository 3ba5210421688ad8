"""A device in a process of its own, from the engine's side: backends whose calls go over a socket.

    device = Device(placement)     starts the process
    device.watch(on_lost)          starts to read its responses
    device.create(row)             a Backend like any other, whose model is in the process

The process translates the exceptions of its models. A call raises the error that the process sent, with the traceback
of the process as its cause. When the process ends, every call raises DeviceLost and `on_lost` is called. While a call
runs, text arrives on the thread that made the call, and the cancellation of a piece is passed on to the process.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

from worker import child
from worker.backends.base import Backend
from worker.catalog import Model
from worker.engine.placement import Placement
from worker.engine.remote.wire import PieceMessage, Plan, Wire, pack
from worker.errors import DeviceLost
from worker.faults import DEVICE_LOST, RemoteTraceback
from worker.types import Batch, Output, Piece

log = logging.getLogger(__name__)

FACTORY = "worker.backends:create"
LOOK_SEC = 0.1  # how often a running call checks whether one of its pieces was canceled
END_SEC = 5.0  # a process that has not ended by then is killed
_CHILD = "worker.engine.remote.process"

_Responses = queue.SimpleQueue[tuple[Any, ...]]


class Device:
    """The process of a device. It starts at once; `watch` must be called before the first call."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self._lock, self._numbers = threading.Lock(), itertools.count()
        self._responses: dict[int, _Responses] = {}  # by the number of the call
        self._end: str | None = None  # how the process ended
        self._closed = False
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = child.start(
                child.command(_CHILD, str(theirs.fileno())),
                env=child.environment(**placement.environment),
                cwd=child.ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # stdout is for results alone
            )
        self._wire = Wire(ours)
        self._send(
            Plan(placement.settings, os.getcwd(), FACTORY, bool(logging.getLogger("worker").handlers), placement.cores)
        )

    def watch(self, on_lost: Callable[[DeviceLost], None]) -> None:
        """Start to read responses. `on_lost` is called, on a thread of its own, if the process ends before `close`."""
        threading.Thread(
            target=self._listen, args=(on_lost,), name=f"device {self.placement.name}", daemon=True
        ).start()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def create(self, row: Model) -> Backend:
        """Return a backend of the process, not loaded yet. Raises ModelUnavailable, DeviceLost."""
        return _Remote(self, self.call("create", row))

    def call(self, operation: str, *arguments: object, pieces: Sequence[Piece] = ()) -> Any:
        """Return the result of an operation of the process; see process.py.

        `pieces`: the pieces of the call, whose text and cancellation are passed on while it runs.
        Raises the AviaryError that the process sent, and DeviceLost if it ends.
        """
        responses: _Responses = queue.SimpleQueue()
        with self._lock:
            if self._end is not None:
                raise self._lost()
            number = next(self._numbers)
            self._responses[number] = responses
        try:
            self._send((number, operation, *arguments))
            return self._await(number, responses, pieces)
        finally:
            with self._lock:
                del self._responses[number]

    def close(self) -> None:
        """End the process, even if a call is running."""
        self._closed = True
        self._wire.hang_up()
        self._process.kill()
        self._process.wait()

    def _await(self, number: int, responses: _Responses, pieces: Sequence[Piece]) -> Any:
        running = dict(enumerate(pieces))
        while True:
            for index in [index for index, piece in running.items() if piece.cancelled()]:
                del running[index]
                self._send((number, "cancel", index))
            try:
                kind, *content = responses.get(timeout=LOOK_SEC)
            except queue.Empty:
                if self._process.poll() is not None:  # a child of the process may still hold the socket open
                    self._wire.hang_up()
                continue
            if kind == "text":
                index, text = content
                on_text = pieces[index].on_text
                assert on_text is not None
                on_text(text)
            elif kind == "failed":
                raise content[0].restore()
            elif kind == "lost":
                raise self._lost()
            else:
                return content[0]

    def _send(self, message: object) -> None:
        parts = pack(message)
        try:
            self._wire.send(parts)
        except OSError:
            self._wire.hang_up()  # the listening thread then finds out how the process ended

    def _listen(self, on_lost: Callable[[DeviceLost], None]) -> None:
        """Pass each response to its call, until the process ends."""
        try:
            while True:
                self._pass_on(*self._wire.receive())
        except (EOFError, OSError):
            pass  # the process has ended, or `close` was called
        except Exception:
            log.exception("unexpected message from the process of device %s", self.placement.name)
        self._wire.hang_up()
        end = f"the process of device {self.placement.name} ended with exit code {self._exit_code()}"
        with self._lock:
            self._end = end
            for responses in self._responses.values():
                responses.put(("lost",))
        self._wire.close()
        if not self._closed:
            on_lost(self._lost())

    def _pass_on(self, number: int, *content: Any) -> None:
        with self._lock:
            responses = self._responses.get(number)
        if responses is not None:  # the call may have ended
            responses.put(content)

    def _exit_code(self) -> int:
        try:
            return self._process.wait(END_SEC)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _lost(self) -> DeviceLost:
        """Return a new error for each call: an error that is raised again keeps every frame that it passed."""
        error = DeviceLost(DEVICE_LOST)
        error.__cause__ = RemoteTraceback(self._end)
        return error


class _Remote(Backend):
    """A backend in the process of a device, known there by its handle."""

    def __init__(self, device: Device, handle: int) -> None:
        self._device, self._handle = device, handle

    def weight_bytes(self) -> int:
        return int(self._device.call("weight_bytes", self._handle))

    def load(self) -> None:
        self.overhead_sec, self.least_sec = self._device.call("load", self._handle)

    def warm(self) -> None:
        self._device.call("warm", self._handle)

    def infer(self, batch: Batch) -> list[Output]:
        messages = [
            PieceMessage(piece.clip.samples, piece.options, piece.on_text is not None, piece.speech)
            for piece in batch.pieces
        ]
        outputs: list[Output] = self._device.call("infer", self._handle, messages, batch.long, pieces=batch.pieces)
        return outputs

    def close(self) -> None:
        with contextlib.suppress(DeviceLost):  # the memory of a process that ended is free as well
            self._device.call("close", self._handle)
