"""The process of one device: the models themselves, for an engine that is elsewhere.

`python -m worker.engine.remote.process FD` answers on a Unix socket (wire.py). The first message is its Plan; the
others are (number of the call, what is asked, …):

    make row → handle                        a backend, not yet loaded
    weight_bytes, load handle → bytes, overhead  each on a thread of its own
    warm, infer, close handle …              one at a time, in their order
    cancel index                             of a call's pieces: no answer

Answers are (number, "text", index, text) while a call runs, then (number, "done", value) or (number, "failed",
Failed). The process ends when the socket does, however that came about, whatever it was doing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from worker import logs
from worker.backends.base import Backend
from worker.catalog import Model
from worker.config import Settings
from worker.engine.remote.wire import Failed, Plan, Sent, Wire, pack
from worker.faults import forget
from worker.types import Batch, Clip, Output, Piece

log = logging.getLogger(__name__)


class Host:
    """Answers calls. `create`: what makes the backends."""

    def __init__(self, wire: Wire, create: Callable[[Model], Backend]) -> None:
        self._wire, self._create = wire, create
        self._backends: dict[int, Backend] = {}
        self._numbers = itertools.count()
        self._cancelled: dict[int, list[threading.Event]] = {}  # of the pieces of each call that is not answered yet
        self._runner = ThreadPoolExecutor(1, "lane")

    def serve(self) -> None:
        """Until the other end is gone."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                call, asked, *given = self._wire.receive()
                if asked == "cancel":
                    with contextlib.suppress(KeyError):  # answered meanwhile
                        self._cancelled[call][given[0]].set()
                    continue
                if asked == "infer":
                    self._cancelled[call] = [threading.Event() for _ in given[1]]
                answer = functools.partial(self._answer, call, asked, given)
                if asked in ("warm", "infer", "close"):
                    self._runner.submit(answer)
                else:
                    threading.Thread(target=answer, name=asked, daemon=True).start()
                del answer, given  # they hold the audio

    def _answer(self, call: int, asked: str, given: list[Any]) -> None:
        try:
            answer = pack((call, "done", getattr(self, f"_{asked}")(call, *given)))
        except BaseException as error:  # noqa: BLE001  whatever it is, the other side deals with it
            answer = pack((call, "failed", Failed.of(error)))
            forget(error)
        with contextlib.suppress(OSError):  # nobody is there to be told
            self._wire.send(answer)

    def _make(self, _call: int, row: Model) -> int:
        handle = next(self._numbers)
        self._backends[handle] = self._create(row)
        return handle

    def _weight_bytes(self, _call: int, handle: int) -> int:
        return self._backends[handle].weight_bytes()

    def _load(self, _call: int, handle: int) -> float:
        backend = self._backends[handle]
        backend.load()
        return backend.overhead_sec

    def _warm(self, _call: int, handle: int) -> None:
        self._backends[handle].warm()

    def _close(self, _call: int, handle: int) -> None:
        self._backends.pop(handle).close()

    def _infer(self, call: int, handle: int, sent: list[Sent], long: bool) -> list[Output]:
        flags = self._cancelled[call]
        pieces = [
            Piece(
                Clip(one.samples),
                one.options,
                cancelled=flag.is_set,
                on_text=functools.partial(self._tell, call, index) if one.heard else None,
            )
            for index, (one, flag) in enumerate(zip(sent, flags, strict=True))
        ]
        try:
            return self._backends[handle].infer(Batch(tuple(pieces), long))
        finally:
            del self._cancelled[call]

    def _tell(self, call: int, index: int, text: str) -> None:
        with contextlib.suppress(OSError):
            self._wire.send(pack((call, "text", index, text)))


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # they may be for the whole group; the engine decides
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    wire = Wire(sock)
    plan: Plan = wire.receive()
    os.chdir(plan.folder)
    if plan.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, plan.cores)  # before torch counts them
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
    os._exit(0)  # not by the interpreter's way, which waits for threads


def _check(settings: Settings) -> None:
    """Raises whatever torch does when the GPU does not work: then it is lost before anything is sent to it."""
    if settings.device.startswith("cuda") and not settings.skip_model_load:
        import torch

        torch.zeros(8, device=settings.device).sum().item()


if __name__ == "__main__":
    main()
