"""A request under way: what its inputs come to, collected in whatever order it comes, and told to who listens."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError

from worker.engine import chunking
from worker.errors import AviaryError
from worker.types import Failure, Item, Output, Request, Response, Result, Timing, Transcript, View

log = logging.getLogger(__name__)

OnResult = Callable[[Result | Failure], None]
OnText = Callable[[int, str], None]


class WindowCollector:
    """What came of a clip's windows: delivered as one output when the last is in, or as the first window's error.
    `tell` is given the text of the windows in their order, each as soon as those before it are in."""

    def __init__(
        self, count: int, deliver: Callable[[Output | AviaryError], None], tell: Callable[[str], None] | None
    ) -> None:
        self._outcomes: list[tuple[float, Output] | AviaryError | None] = [None] * count
        self._missing, self._deliver, self._tell = count, deliver, tell
        self._told, self._lock = "", threading.Lock()

    def done(self, number: int, outcome: tuple[float, Output] | AviaryError) -> None:
        with self._lock:
            self._outcomes[number] = outcome
            self._missing -= 1
            if self._tell is not None:
                self._tell_more(self._tell)
            if self._missing:
                return
        error = next((one for one in self._outcomes if isinstance(one, AviaryError)), None)
        parts = [one for one in self._outcomes if isinstance(one, tuple)]
        self._deliver(error or (parts[0][1] if len(parts) == 1 else chunking.merge(parts)))

    def _tell_more(self, tell: Callable[[str], None]) -> None:
        ready = list(itertools.takewhile(lambda one: isinstance(one, tuple), self._outcomes))
        text = chunking.merge([one for one in ready if isinstance(one, tuple)]).text if ready else ""
        if len(text) > len(self._told):
            tell(text[len(self._told) :])
            self._told = text


def visible(output: Output, view: View) -> Output:
    """The output without the spans that its view leaves out: ten thousand results should not hold every letter's
    time."""
    if not isinstance(output, Transcript):
        return output
    timed = bool(view.timestamps) or view.format not in ("json", "text")
    return dataclasses.replace(
        output,
        words=output.words if timed else (),
        segments=output.segments if timed else (),
        chars=output.chars if "char" in view.timestamps else (),
    )


class RequestState:
    """A request under way: collects what is done, in any order, and sets the future when all is."""

    def __init__(self, request: Request, on_result: OnResult | None, on_text: OnText | None) -> None:
        self.future: Future[Response] = Future()
        self.request, self._on_result, self._on_text = request, on_result, on_text
        self._started = time.monotonic()
        self._slots: dict[int, Result | Failure] = {}
        self._spent: dict[str, float] = {}
        self._lock = threading.Lock()
        for failure in request.rejected:
            self.done(failure)
        if not request.size:
            self._finish()

    def spent(self, **seconds: float) -> None:
        with self._lock:
            for stage, value in seconds.items():
                self._spent[stage] = self._spent.get(stage, 0.0) + value

    def teller(self, items: list[Item]) -> TextStream | None:
        """What passes on the text of these inputs as it is generated, if anybody listens."""
        return None if self._on_text is None else TextStream(self._on_text, items)

    def done(self, outcome: Result | Failure) -> None:
        if self._on_result is not None and not self.future.cancelled():
            try:
                self._on_result(outcome)
            except Exception:
                log.exception("on_result failed")
        with self._lock:
            self._slots[outcome.index] = outcome
            finished = len(self._slots) == self.request.size
        if finished:
            self._finish()

    def _finish(self) -> None:
        timing = Timing(**self._spent, total_sec=time.monotonic() - self._started)
        results = tuple(self._slots[index] for index in range(self.request.size))
        with contextlib.suppress(InvalidStateError):  # cancelled in the meantime
            self.future.set_result(Response(self.request.model, results, timing))


class TextStream:
    """Tells the listener of an input's text, bit by bit, and each bit once, though the text `begins` anew where a
    batch has failed."""

    def __init__(self, on_text: OnText, items: list[Item]) -> None:
        self._on_text, self._items = on_text, items
        self._told = self._at = 0  # letters: those that were told, and those of this run

    def __call__(self, text: str) -> None:
        new = text[max(0, self._told - self._at) :]
        self._at += len(text)
        if not new:
            return
        self._told = self._at
        try:
            for item in self._items:
                self._on_text(item.index, new)
        except Exception:
            log.exception("on_text failed")

    def begins(self) -> None:
        self._at = 0


class Countdown:
    """Calls `then` at the last of `count` calls of `down`."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._count, self._then, self._lock = count, then, threading.Lock()

    def down(self) -> None:
        with self._lock:
            self._count -= 1
            last = self._count == 0
        if last:
            self._then()
