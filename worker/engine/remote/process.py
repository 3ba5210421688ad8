"""The process of one device: holds the models, for an engine in another process.

`python -m worker.engine.remote.process FD` serves the calls of an engine on the Unix socket FD (see wire.py). The first
message is the Plan. Every other message is a call: (number of the call, operation, arguments…).

    create row → handle                  a backend that is not loaded yet   ┐
    weight_bytes handle → bytes                                             ├ each on a thread of its own
    load handle → overhead_sec, least_sec                                   ┘
    warm handle                                                             ┐
    infer handle, pieces, long → outputs                                    ├ one at a time, in the order of the calls
    close handle                                                            ┘
    cancel index                         cancels a piece of a running `infer` call; has no response

The process responds with (number, "text", index, text) while a call runs, then with (number, "done", result) or
(number, "failed", CallFailure). It exits at once when the socket closes, even if a call is running.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from worker import child, logs
from worker.backends.base import Backend
from worker.backends.common.device import check_device
from worker.catalog import Model
from worker.config import Settings
from worker.engine.remote.wire import CallFailure, PieceMessage, Plan, Wire, pack
from worker.faults import forget, translate, translate_load
from worker.types import Batch, Clip, Output, Piece

log = logging.getLogger(__name__)

_ON_DEVICE = ("warm", "infer", "close")


class _Hosted(NamedTuple):
    model: str  # its id
    backend: Backend


class Host:
    """Runs the calls of the engine. `create` makes the backend of a catalog row."""

    def __init__(self, wire: Wire, create: Callable[[Model], Backend]) -> None:
        self._wire, self._create_backend = wire, create
        self._hosted: dict[int, _Hosted] = {}  # by handle
        self._handles = itertools.count()
        self._cancelled: dict[int, list[threading.Event]] = {}  # one event a piece, by the number of the running call
        self._device = ThreadPoolExecutor(1, "runner")
        self._operations: dict[str, Callable[..., Any]] = {
            "create": self._create,
            "weight_bytes": self._weight_bytes,
            "load": self._load,
            "warm": self._warm,
            "infer": self._infer,
            "close": self._close,
        }

    def serve(self) -> None:
        """Serve calls until the engine closes the socket."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._dispatch(*self._wire.receive())

    def _dispatch(self, call: int, operation: str, *arguments: Any) -> None:
        if operation == "cancel":
            with contextlib.suppress(KeyError):  # the call has ended
                self._cancelled[call][arguments[0]].set()
            return
        if operation == "infer":
            _handle, pieces, _long = arguments
            self._cancelled[call] = [threading.Event() for _ in pieces]
        run = functools.partial(self._run, call, operation, arguments)
        if operation in _ON_DEVICE:
            self._device.submit(run)
        else:
            threading.Thread(target=run, name=operation, daemon=True).start()

    def _run(self, call: int, operation: str, arguments: Sequence[Any]) -> None:
        try:
            message = pack((call, "done", self._operations[operation](call, *arguments)))
        except BaseException as error:  # noqa: BLE001  the engine decides what the error means for its request
            message = pack((call, "failed", CallFailure.of(translate(error))))
            forget(error)
        with contextlib.suppress(OSError):  # the engine has closed the socket
            self._wire.send(message)

    def _create(self, _call: int, row: Model) -> int:
        handle = next(self._handles)
        with _loading(row.id):
            self._hosted[handle] = _Hosted(row.id, self._create_backend(row))
        return handle

    def _weight_bytes(self, _call: int, handle: int) -> int:
        model, backend = self._hosted[handle]
        with _loading(model):
            return backend.weight_bytes()

    def _load(self, _call: int, handle: int) -> tuple[float, float]:
        model, backend = self._hosted[handle]
        with _loading(model):
            backend.load()
        return backend.overhead_sec, backend.least_sec

    def _warm(self, _call: int, handle: int) -> None:
        model, backend = self._hosted[handle]
        with _loading(model):
            backend.warm()

    def _infer(self, call: int, handle: int, messages: Sequence[PieceMessage], long: bool) -> list[Output]:
        pieces = [
            Piece(
                Clip(message.samples),
                message.options,
                cancelled=cancelled.is_set,
                on_text=functools.partial(self._send_text, call, index) if message.streams_text else None,
                speech=message.speech,
            )
            for index, (message, cancelled) in enumerate(zip(messages, self._cancelled[call], strict=True))
        ]
        try:
            return self._hosted[handle].backend.infer(Batch(tuple(pieces), long))
        finally:
            del self._cancelled[call]

    def _close(self, _call: int, handle: int) -> None:
        self._hosted.pop(handle).backend.close()

    def _send_text(self, call: int, index: int, text: str) -> None:
        with contextlib.suppress(OSError):  # the engine has closed the socket
            self._wire.send(pack((call, "text", index, text)))


@contextlib.contextmanager
def _loading(model: str) -> Iterator[None]:
    """Translate the exceptions of the block as those of a model that does not load."""
    try:
        yield
    except BaseException as error:
        ours = translate_load(error, model)
        if ours is error:
            raise
        raise ours from error


def main() -> None:
    """Run the process: read the Plan, then serve calls."""
    child.ignore_signals()
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    wire = Wire(sock)
    plan: Plan = wire.receive()
    os.chdir(plan.folder)
    if plan.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, plan.cores)  # before torch counts the cores
    if plan.logs:
        logs.configure(plan.settings)
    try:
        _check(plan.settings)
        module, name = plan.factory.split(":")
        create = getattr(importlib.import_module(module), name)
        Host(wire, lambda row: create(row, plan.settings)).serve()
    except BaseException:
        log.exception("the process of a device failed")
        os._exit(1)
    os._exit(0)  # a normal exit of the interpreter would wait for the threads


def _check(settings: Settings) -> None:
    """Raise an error if the GPU does not work: the device is then lost before it gets any work."""
    if settings.device.startswith("cuda") and not settings.skip_model_load:
        check_device(settings)


if __name__ == "__main__":
    main()
