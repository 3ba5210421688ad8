"""A device in a process of its own, from the engine's side: backends that are asked over a socket.

`Device.create(row)` gives a Backend like any other. What is raised over there is raised here: errors of ours as they
are, a
stranger's under its own name, so that `translate` reads it as ever, with the traceback of the other side as its cause.
When the
process ends, every call raises DeviceLost, and who watches is told. While a call runs, its listeners are told of text
on the thread that called, and what was cancelled is passed on.
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
from worker.engine.remote.wire import Failed, Plan, Sent, Wire, pack
from worker.errors import DeviceLost
from worker.types import Batch, Output, Piece

log = logging.getLogger(__name__)

FACTORY = "worker.backends:create"
_CHILD = "worker.engine.remote.process"
LOOK_SEC = 0.1  # how often a running call looks whether it was cancelled
END_SEC = 5.0  # a process that has not ended by then is killed


class RemoteTraceback(Exception):
    """The traceback of an exception that was raised in the process."""


class Device:
    """The process, started at once."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self._lock, self._numbers = threading.Lock(), itertools.count()
        self._answers: dict[int, queue.SimpleQueue[tuple[Any, ...]]] = {}
        self._why: str | None = None  # nothing is answered any more
        self._closed = False
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                child.command(_CHILD, str(theirs.fileno())),
                env=child.environment(**placement.environment),
                cwd=child.ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,
            )  # results alone go to stdout
        self._wire = Wire(ours)
        self._send(
            Plan(placement.settings, os.getcwd(), FACTORY, bool(logging.getLogger("worker").handlers), placement.cores)
        )

    def watch(self, lost: Callable[[DeviceLost], None]) -> None:
        """Begins to listen, before anything is asked. `lost` is called, on a thread of its own, when the process ends
        and was not closed."""
        threading.Thread(target=self._listen, args=(lost,), name=f"device {self.placement.name}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def create(self, row: Model) -> Backend:
        """A backend of that process, not yet loaded."""
        return _Remote(self, self.call("make", row))

    def call(self, asked: str, *given: object, pieces: Sequence[Piece] = ()) -> Any:
        """What the process answers. `pieces`: whose cancelling is passed on, and who is told of text."""
        answers: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        with self._lock:
            if self._why is not None:
                raise self._lost()
            number = next(self._numbers)
            self._answers[number] = answers
        try:
            self._send((number, asked, *given))
            return self._await(number, answers, pieces)
        finally:
            with self._lock:
                del self._answers[number]

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._closed = True
        self._wire.hang_up()
        try:
            self._process.wait(END_SEC)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _await(self, number: int, answers: queue.SimpleQueue[tuple[Any, ...]], pieces: Sequence[Piece]) -> Any:
        running = dict(enumerate(pieces))
        while True:
            for index in [index for index, piece in running.items() if piece.cancelled()]:
                del running[index]
                self._send((number, "cancel", index))
            try:
                kind, *said = answers.get(timeout=LOOK_SEC)
            except queue.Empty:
                if self._process.poll() is not None:  # though a child of its may hold the socket open
                    self._wire.hang_up()
                continue
            if kind == "text":
                index, text = said
                listener = pieces[index].on_text
                assert listener is not None
                listener(text)
            elif kind == "failed":
                raise _raised(said[0])
            elif kind == "lost":
                raise self._lost()
            else:
                return said[0]

    def _send(self, message: object) -> None:
        parts = pack(message)
        try:
            self._wire.send(parts)
        except OSError:
            self._wire.hang_up()  # whoever listens says why

    def _listen(self, lost: Callable[[DeviceLost], None]) -> None:
        """Hands out what the process says, until it ends."""
        try:
            while True:
                number, *said = self._wire.receive()
                with self._lock:
                    waiting = self._answers.get(number)
                if waiting is not None:
                    waiting.put(tuple(said))
                del said, waiting  # they hold the answer
        except (EOFError, OSError):
            pass
        except Exception:
            log.exception("the process of %s said what nobody understands", self.placement.name)
        self._wire.hang_up()
        why = f"the process of {self.placement.name} ended, code {self._code()}"
        with self._lock:
            self._why = why
            for waiting in self._answers.values():
                waiting.put(("lost",))
        self._wire.close()
        if not self._closed:
            lost(self._lost())

    def _code(self) -> int:
        try:
            return self._process.wait(END_SEC)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _lost(self) -> DeviceLost:
        """A new one for each who asks: an error that is raised again keeps every frame that it passed."""
        error = DeviceLost("the device failed; the worker restarts, send the request again")
        error.__cause__ = RemoteTraceback(self._why)
        return error


class _Remote(Backend):
    """A backend of the device's process, by its handle there."""

    def __init__(self, device: Device, handle: int) -> None:
        self._device, self._handle = device, handle

    def weight_bytes(self) -> int:
        return int(self._device.call("weight_bytes", self._handle))

    def load(self) -> None:
        self.overhead_sec = self._device.call("load", self._handle)

    def warm(self) -> None:
        self._device.call("warm", self._handle)

    def infer(self, batch: Batch) -> list[Output]:
        sent = [Sent(piece.clip.samples, piece.options, piece.on_text is not None) for piece in batch.pieces]
        outputs: list[Output] = self._device.call("infer", self._handle, sent, batch.long, pieces=batch.pieces)
        return outputs

    def close(self) -> None:
        with contextlib.suppress(DeviceLost):  # then its memory is free as well
            self._device.call("close", self._handle)


def _raised(failed: Failed) -> BaseException:
    """The exception as it was raised over there."""
    error: BaseException
    if failed.ours is not None:
        error = failed.ours
    else:
        error = type(failed.name, (MemoryError if failed.name == "MemoryError" else Exception,), {})(failed.text)
    if failed.trace is not None:
        error.__cause__ = RemoteTraceback(failed.trace)
    return error
