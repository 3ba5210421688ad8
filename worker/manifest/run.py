"""The core: every line is asked about once, in threads, and written in the manifest's order.

`ask` is the seam: a function of one Line that may be called by many threads at a time and blocks until it has the
Answer.

Memory is that of the window, not of the manifest: embeddings are on disk before a line waits for those before it. What
is no
line's own fault (nobody answers, a wrong key, no such model, a lost device) ends the run with that error, and the next
run goes on there.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.client.results import save
from worker.errors import (
    AviaryError,
    Busy,
    Cancelled,
    DeadlineExceeded,
    DeviceLost,
    ModelUnavailable,
    RequestError,
    ServerUnreachable,
)
from worker.faults import report
from worker.manifest.journal import SYNC_SEC, Journal
from worker.manifest.lines import Line, read

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

Json = dict[str, Any]

OURS = ("pred_text", "timestamps", "caption", "embedding_path", "warning", "error")
WINDOW = 4  # lines under way or waiting for those before them, for each that is asked at a time
_ENDS = (RequestError, Busy, ServerUnreachable, DeviceLost, ModelUnavailable, Cancelled)


@dataclass(frozen=True)
class LineResult:
    """What is added to a line, and the embedding, float32, that goes into a file."""

    fields: Json
    embedding: np.ndarray | None = None


@dataclass(frozen=True)
class Summary:
    """`lines` of the output, `resumed` of them from earlier runs; `errors`: how many lines have each code. `done`: the
    part of the manifest's bytes that is read."""

    output: Path
    lines: int
    resumed: int
    errors: Counter[str] = field(default_factory=Counter)
    done: float = 0.0
    elapsed_sec: float = 0.0

    @property
    def failed(self) -> int:
        return sum(self.errors.values())


Asker = Callable[[Line], LineResult]


def process(
    manifest: str | Path,
    output: str | Path,
    ask: Asker,
    *,
    concurrency: int = 16,
    retry_failed: bool = False,
    progress: Callable[[Summary], None] = lambda summary: None,
    stop: threading.Event | None = None,
    options: Mapping[str, Any] | None = None,
) -> Summary:
    """Writes the output, or the rest of it. `concurrency`: threads that ask. `retry_failed`: lines with an error are
    asked
    again; the output is replaced when all are done. `progress` is told about once a second, and at the end. `stop`:
    ends the
    run with Cancelled. `options`: what is asked for, as JSON; kept beside the output, which is then written with no
    others.

    Raises RequestError (no such manifest, an output that is not this manifest's, that has other options, or that
    another run is writing), and what `ask` raises that is no line's fault.
    """
    manifest, output = Path(manifest), Path(output)
    if not manifest.is_file():
        raise RequestError(f"no such manifest: {manifest}", param="manifest")
    if output.exists() and output.samefile(manifest):
        raise RequestError("the output would be the manifest itself: choose another folder or name", param="output")
    output.parent.mkdir(parents=True, exist_ok=True)
    run = _Run(manifest, output, ask, concurrency, progress, stop or threading.Event())
    with Journal(output) as kept:
        if options is not None:
            _agree(output, options)
        if not retry_failed:
            return run(kept)
        deque(kept.recover(), maxlen=0)
        again = output.with_name(f"{output.name}.retry")
        with Journal(again) as better:
            summary = run(better, kept.lines())
        again.replace(output)
        return summary


class _Run:
    def __init__(
        self,
        manifest: Path,
        output: Path,
        ask: Asker,
        concurrency: int,
        progress: Callable[[Summary], None],
        stop: threading.Event,
    ) -> None:
        self._manifest, self._output, self._ask, self._concurrency = manifest, output, ask, concurrency
        self._progress, self._stop, self._over = progress, stop, threading.Event()
        self._embeddings = output.with_suffix("")
        self._started, self._size = time.monotonic(), max(1, manifest.stat().st_size)
        self._lines = self._resumed = self._read = 0
        self._errors: Counter[str] = Counter()

    def __call__(self, journal: Journal, earlier: Iterator[bytes] | None = None) -> Summary:
        """Fills the journal. `earlier`: lines of an earlier output, of which those without an error are taken over."""
        earlier, last = earlier or iter(()), Json()
        for last in journal.recover():
            self._count(last)
        self._resumed = self._lines
        lines = read(self._manifest)
        self._skip(lines, last)
        deque(itertools.islice(earlier, self._resumed), maxlen=0)
        waiting: deque[tuple[int, Future[bytes]]] = deque()
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="aviary-manifest")
        try:
            for line, position in lines:
                waiting.append((position, pool.submit(self._answer, line, next(earlier, None))))
                if len(waiting) >= WINDOW * self._concurrency:
                    self._write(journal, *waiting.popleft())
            while waiting:
                self._write(journal, *waiting.popleft())
            if next(earlier, None) is not None:
                raise self._changed()
        finally:
            self._over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            journal.sync()
        self._progress(self._summary())
        return self._summary()

    def _skip(self, lines: Iterator[tuple[Line, int]], last: Json) -> None:
        """Goes on to the first line that has no answer yet."""
        found = 0
        for line, position in itertools.islice(lines, self._resumed):
            self._read, found = position, found + 1
            if found == self._resumed:
                self._check(line, last)
        if found < self._resumed:
            raise self._changed()

    def _write(self, journal: Journal, position: int, coming: Future[bytes]) -> None:
        """Waits for the line and appends it."""
        while not concurrent.futures.wait([coming], timeout=SYNC_SEC).done:
            journal.sync()
            if self._stop.is_set():
                raise Cancelled("stopped")
        line = coming.result()
        journal.append(line)
        self._read = position
        self._count(json.loads(line))
        if journal.due:
            journal.sync()
            self._progress(self._summary())

    def _answer(self, line: Line, earlier: bytes | None) -> bytes:
        """The output's line; in a thread of the pool."""
        if self._over.is_set() or self._stop.is_set():
            raise Cancelled("stopped")
        if earlier is not None:
            row = json.loads(earlier)
            self._check(line, row)
            if "error" not in row:
                return earlier
        fields = {name: value for name, value in line.fields.items() if name != "error"}
        try:
            answer = self._ask(line)
        except AviaryError as error:
            if isinstance(error, _ENDS) and not isinstance(error, DeadlineExceeded):
                raise
            return _dump(fields | {"error": _error(error)})
        except Exception as error:  # noqa: BLE001  a line is answered whatever happens
            return _dump(fields | {"error": _error(report(error, during=f"line {line.index + 1}"))})
        fields |= answer.fields
        if answer.embedding is not None:
            if self._over.is_set():
                raise Cancelled("stopped")
            path = self._embeddings / f"{line.index // 1000:06d}" / f"{line.index:09d}.npy"
            save(path, answer.embedding)
            fields["embedding_path"] = str(path.relative_to(self._output.parent))
        return _dump(fields)

    def _check(self, line: Line, row: Json) -> None:
        """Raises RequestError if the output's row is not this line's."""
        if any(row.get(name) != value for name, value in line.fields.items() if name not in OURS):
            raise self._changed()

    def _changed(self) -> RequestError:
        return RequestError(
            f"{self._output} is not this manifest's output: give another folder, or remove it", param="output"
        )

    def _count(self, row: Json) -> None:
        self._lines += 1
        if (error := row.get("error")) is not None:
            if not isinstance(error, dict) or not isinstance(error.get("code"), str):
                raise self._changed()
            self._errors[error["code"]] += 1

    def _summary(self) -> Summary:
        return Summary(
            self._output,
            self._lines,
            self._resumed,
            self._errors.copy(),
            self._read / self._size,
            time.monotonic() - self._started,
        )


def _agree(output: Path, options: Mapping[str, Any]) -> None:
    """Keeps the options, or raises RequestError where an output with others is there."""
    path = output.with_name(f"{output.name}.options.json")
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() and output.stat().st_size else None
    if kept is None:
        whole = path.with_suffix(".new")
        whole.write_text(json.dumps(options), encoding="utf-8")
        whole.replace(path)
    elif kept != json.loads(json.dumps(options)):
        raise RequestError(
            f"{output} was begun with {kept}, not {dict(options)}: give another folder, or remove it", param="output"
        )


def _dump(fields: Json) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a character, as \ud800 gives
        return json.dumps(fields, allow_nan=False).encode() + b"\n"


def _error(error: AviaryError) -> Json:
    return {"code": error.code, "message": error.message, "retryable": error.retryable}
