"""How far a request has come, in inputs and in seconds of audio.

    decoded clip ── expect ──▶ ┐
    finished window ─ advance ─▶ ProgressMeter ── Progress ──▶ on_progress
    outcome of an input ─ end ─▶ ┘

A clip that runs as one piece advances when it is done: no model reports how far it is within a piece. Inputs that share
a clip count once each. Thread-safe.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from worker.types import Item, OnProgress, Progress

log = logging.getLogger(__name__)


class ProgressMeter:
    """The progress of a request of `size` inputs.

    on_progress: called with each change, one at a time and in order. Its exceptions are logged. It must not block.
    """

    def __init__(self, size: int, on_progress: OnProgress | None) -> None:
        self._size, self._on_progress = size, on_progress
        self._inputs_done = self._inputs_known = 0
        self._known_sec = self._done_sec = 0.0
        self._left_sec: dict[int, float] = {}  # what is not done of each decoded input, by index
        self._with_text: set[int] = set()  # the inputs whose windows have reported text
        self._lock = threading.Lock()

    @property
    def is_watched(self) -> bool:
        """Whether there is a listener."""
        return self._on_progress is not None

    def expect(self, items: Iterable[Item], duration_sec: float) -> None:
        """Note the length of the audio of these inputs, which are decoded."""
        if self._on_progress is None:
            return
        with self._lock:
            for item in items:
                self._left_sec[item.index] = duration_sec
                self._known_sec += duration_sec
                self._inputs_known += 1
            self._report()

    def advance(self, items: Iterable[Item], window_sec: float) -> None:
        """Note that a window of these inputs is done."""
        if self._on_progress is None:
            return
        with self._lock:
            for item in items:
                self._finish(item.index, window_sec)
            self._report()

    def add_text(self, items: Iterable[Item], text: str) -> None:
        """Report the text that windows add to these inputs. All windows before them are done."""
        if self._on_progress is None:
            return
        with self._lock:
            for item in items:
                self._with_text.add(item.index)
                self._report((item.index, text))

    def end(self, index: int, text: str | None = None) -> None:
        """Note that an input has its outcome. `text`: its transcript, reported unless its windows have reported it."""
        if self._on_progress is None:
            return
        with self._lock:
            self._inputs_done += 1
            if index in self._left_sec:
                self._finish(index, self._left_sec[index])
            else:  # it failed before it was decoded
                self._inputs_known += 1
            if self._inputs_done == self._size:
                self._done_sec = self._known_sec  # sums of floats differ in their last digits
            self._report((index, text) if text and index not in self._with_text else None)

    def _finish(self, index: int, seconds: float) -> None:
        seconds = min(seconds, self._left_sec[index])
        self._left_sec[index] -= seconds
        self._done_sec += seconds

    def _report(self, text: tuple[int, str] | None = None) -> None:
        assert self._on_progress is not None
        progress = Progress(self._inputs_done, self._size, self._inputs_known, self._done_sec, self._known_sec, text)
        try:
            self._on_progress(progress)
        except Exception:
            log.exception("on_progress failed")
