"""A progress bar for many inputs, on a terminal or in a notebook.

    with bar(names, shown=True) as line:
        engine.submit(request, on_result=line.add, on_progress=line.show)

     47%|████▋     | 01:52, 2:06 left, 66/146 files, 25:40 of audio, 13x real time, 2 failed

The bar counts seconds of audio, because inputs differ in length. The seconds of inputs that are not decoded yet are
estimated from those that are. The time left follows from the mean speed since the start, and counts down while a batch
runs. A failure is printed when it happens. In the end, the bar becomes one line that says what was done.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from worker.types import Failure, Progress, Result

if TYPE_CHECKING:
    from worker.manifest import Summary

_FORM = "{desc}{percentage:3.0f}%|{bar}| {elapsed}{postfix}"
_MANIFEST_FORM = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


@contextlib.contextmanager
def bar(
    names: Sequence[str], *, shown: bool, state: Callable[[], str | None] = lambda: None
) -> Iterator[ProgressBar | None]:
    """Show a bar for inputs of these names during the block. Yield None if it is not to be `shown`.

    state: what the work waits for at present, such as a model that loads.
    """
    if not shown:
        yield None
        return
    from tqdm.auto import tqdm

    # The bar has the share that is done, because a notebook cannot change the total of a bar.
    with tqdm(total=1.0, bar_format=_FORM, smoothing=0, dynamic_ncols=True) as line:
        shown_bar = ProgressBar(line, names, state)
        shown_bar.refresh()
        try:
            yield shown_bar
        finally:
            shown_bar.end()


class ProgressBar:
    """A bar that is shown. Thread-safe."""

    def __init__(self, line: Any, names: Sequence[str], state: Callable[[], str | None]) -> None:
        self._line, self._names, self._state = line, names, state
        self._started, self._lock = time.monotonic(), threading.RLock()
        self._last = Progress(0, len(names))
        self._failed = 0
        self._speed = ""
        self._ends_at: float | None = None  # when the work is expected to be done

    def add(self, outcome: Result | Failure) -> None:
        """Count an outcome, and print it if it is a failure."""
        if not isinstance(outcome, Failure):
            return
        with self._lock:
            self._failed += 1
        error = outcome.error
        say(f"{self._names[outcome.index]}: {error.code}: {error.message}")

    def show(self, progress: Progress) -> None:
        """Show how far the request has come."""
        with self._lock:
            self._last, share, now = progress, _share(progress), time.monotonic()
            if share > self._line.n:
                self._ends_at = now + (now - self._started) * (1 - share) / share
                self._speed = _speed(progress.audio_sec_done or 0.0, now - self._started)
            self._line.set_postfix_str(self._postfix(now), refresh=False)
            self._line.update(share - self._line.n)

    def refresh(self) -> None:
        """Show the time that has passed, and what the work waits for."""
        with self._lock:
            state = self._state()
            self._line.set_description_str(f"{state}: " if state else "", refresh=False)
            self._line.set_postfix_str(self._postfix(time.monotonic()), refresh=False)
            self._line.refresh()

    def end(self) -> None:
        """Turn the bar into a line that says what was done."""
        with self._lock:
            done = self._last.inputs_done - self._failed
            said = summary(done, self._failed, self._last.audio_sec_done or 0.0, time.monotonic() - self._started)
            self._line.bar_format = "{desc}"
            self._line.set_description_str(said)

    def _postfix(self, now: float) -> str:
        last = self._last
        parts = [] if self._ends_at is None else [f"{_clock(max(0.0, self._ends_at - now))} left"]
        parts += [f"{last.inputs_done}/{last.inputs_total} files", f"{_clock(last.audio_sec_done or 0.0)} of audio"]
        parts += [self._speed] if last.audio_sec_done else []
        parts += [f"{self._failed} failed"] if self._failed else []
        return ", ".join(parts)


@contextlib.contextmanager
def manifest_bar(*, shown: bool) -> Iterator[Callable[[Summary], None]]:
    """Show a bar for a manifest during the block, if `shown`. Yield a function to call with each summary of the run.

    The bar shows the part of the manifest that has been read.
    """
    from tqdm.auto import tqdm

    with tqdm(total=1.0, bar_format=_MANIFEST_FORM, dynamic_ncols=True, disable=not shown) as line:

        def show(summary: Summary) -> None:
            line.set_postfix_str(f"{summary.lines} lines, {summary.failed} failed", refresh=False)
            line.update(summary.done - line.n)

        yield show


def say(text: str) -> None:
    """Print a line to stderr, above a bar that is shown."""
    from tqdm.auto import tqdm

    tqdm.write(text, file=sys.stderr)


def summary(done: int, failed: int, audio_sec: float, elapsed_sec: float) -> str:
    """Return what was done: "139 files, 55 min of audio in 4:05, 13x real time; 7 failed"."""
    parts = [f"{done} {'file' if done == 1 else 'files'}"]
    if audio_sec:
        parts += [f"{_length(audio_sec)} of audio in {_clock(elapsed_sec)}", _speed(audio_sec, elapsed_sec)]
    else:
        parts[0] += f" in {_clock(elapsed_sec)}"
    return ", ".join(parts) + (f"; {failed} failed" if failed else "")


def _share(progress: Progress) -> float:
    """Return the share that is done: of the audio, of which the unknown part is estimated."""
    if progress.inputs_done == progress.inputs_total:
        return 1.0
    if not progress.audio_sec_known:
        return progress.inputs_done / progress.inputs_total
    total_sec = progress.audio_sec_known * progress.inputs_total / progress.inputs_known
    return (progress.audio_sec_done or 0.0) / total_sec


def _speed(audio_sec: float, elapsed_sec: float) -> str:
    speed = audio_sec / max(elapsed_sec, 1e-3)
    return f"{speed:.0f}x real time" if speed >= 10 else f"{speed:.1f}x real time"


def _length(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 60 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
