"""The core of manifests: process each line once, in threads, and write the results in the manifest's order.

    read ──▶ window ──▶ ask(line), in threads ──▶ journal: one output line for each line, in order

`ask` is the seam to a server, an engine or a cluster: a function of one Line that many threads call at the same time,
and that blocks until it has the LineResult.

Memory depends on the window, not on the length of the manifest: an embedding is written to disk before its line waits
for the lines before it. An error that no line causes (an unreachable server, a wrong key, an unknown model, a lost
device) ends the run, and the next run resumes at that line.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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

OUTPUT_FIELDS = ("pred_text", "timestamps", "caption", "turns", "embedding_path", "warning", "error")
GROUP = 19_200  # lines that are prepared together; on Runpod, four batches
WINDOW = 4  # lines read ahead, for each thread: in progress, or finished and waiting for earlier lines
_FATAL = (RequestError, Busy, ServerUnreachable, DeviceLost, ModelUnavailable, Cancelled)


@dataclass(frozen=True)
class LineResult:
    """The output for one line: fields to add, and an embedding to write to a file.

    The embedding is float32 of shape (frames, width), or (width,) if pooled.
    """

    fields: Json
    embedding: np.ndarray | None = None


@dataclass(frozen=True)
class Summary:
    """How far a run has come.

    `lines` is the number of lines in the output, of which `resumed` come from earlier runs. `errors` counts lines by
    error code. `done` is the share of the manifest's bytes that is finished, from 0 to 1.
    """

    output: Path
    lines: int
    resumed: int
    errors: Counter[str] = field(default_factory=Counter)
    done: float = 0.0
    elapsed_sec: float = 0.0

    @property
    def failed(self) -> int:
        """Return the number of lines with an error."""
        return sum(self.errors.values())


# Blocks until the model has processed a line; many threads call it at the same time.
Asker = Callable[[Line], LineResult]
# Gets lines before the Asker does, to process them together.
Prepare = Callable[[Sequence[Line]], None]
# A line, the offset at which it ends, and its row in an earlier output.
_Todo = tuple[Line, int, bytes | None]


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
    prepare: Prepare | None = None,
) -> Summary:
    """Process a manifest into an output file, or continue an output that an earlier run left incomplete.

    Args:
        manifest: The JSONL file to read.
        output: The JSONL file to write. Embeddings go to a folder of the same name without the suffix.
        ask: Returns the result for one line.
        concurrency: The number of threads that call `ask`.
        retry_failed: Process the lines that have an error again. The output is replaced once all lines are done.
        progress: Called about once a second, and at the end.
        stop: Ends the run with Cancelled once it is set.
        options: The options of the request, as JSON. They are stored beside the output, and later runs on the same
            output must use the same options.
        prepare: Called with lines, in groups, before `ask` is called with them.

    Raises:
        RequestError: The manifest does not exist; the output belongs to another manifest or was written with other
            options; or another run is writing it.
        AviaryError: An error of `ask` that no line causes, such as an unknown model or an unreachable server.
    """
    manifest, output = Path(manifest), Path(output)
    if not manifest.is_file():
        raise RequestError(f"no such manifest: {manifest}", param="manifest")
    if output.exists() and output.samefile(manifest):
        raise RequestError("the output is the manifest itself; choose another folder or name", param="output")
    output.parent.mkdir(parents=True, exist_ok=True)
    run = _Run(manifest, output, ask, concurrency, progress, stop or threading.Event(), prepare)
    with Journal(output) as journal:
        if options is not None:
            _check_options(output, options)
        if not retry_failed:
            return run(journal)
        deque(journal.recover(), maxlen=0)
        retry = output.with_name(f"{output.name}.retry")
        with Journal(retry) as retry_journal:
            summary = run(retry_journal, journal.lines())
        retry.replace(output)
        return summary


class _Run:
    """One call of `process`: its counters, and the loop that keeps the order."""

    def __init__(
        self,
        manifest: Path,
        output: Path,
        ask: Asker,
        concurrency: int,
        progress: Callable[[Summary], None],
        stop: threading.Event,
        prepare: Prepare | None,
    ) -> None:
        self._prepare = prepare
        self._manifest, self._output, self._ask, self._concurrency = manifest, output, ask, concurrency
        self._progress, self._stop, self._over = progress, stop, threading.Event()
        self._embeddings = output.with_suffix("")
        self._started, self._size = time.monotonic(), max(1, manifest.stat().st_size)
        self._lines = self._resumed = self._read = 0
        self._errors: Counter[str] = Counter()

    def __call__(self, journal: Journal, earlier: Iterator[bytes] | None = None) -> Summary:
        """Fill the journal. Lines of the `earlier` output that have no error are copied from it."""
        earlier, last = earlier or iter(()), Json()
        for last in journal.recover():
            self._count(last)
        self._resumed = self._lines
        lines = read(self._manifest)
        self._skip(lines, last)
        deque(itertools.islice(earlier, self._resumed), maxlen=0)
        window: deque[tuple[int, Future[bytes]]] = deque()
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="aviary-manifest")
        try:
            for line, position, row in self._groups((*line, next(earlier, None)) for line in lines):
                window.append((position, pool.submit(self._output_line, line, row)))
                if len(window) >= WINDOW * self._concurrency:
                    self._write(journal, *window.popleft())
            while window:
                self._write(journal, *window.popleft())
            if next(earlier, None) is not None:
                raise self._mismatch()
        finally:
            self._over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            journal.sync()
        self._progress(self._summary())
        return self._summary()

    def _groups(self, lines: Iterator[_Todo]) -> Iterator[_Todo]:
        """Yield the lines. Those that `ask` will get are prepared first, in groups."""
        if self._prepare is None:
            yield from lines
            return
        while group := list(itertools.islice(lines, GROUP)):
            self._prepare([line for line, _, row in group if row is None or "error" in json.loads(row)])
            yield from group

    def _skip(self, lines: Iterator[tuple[Line, int]], last: Json) -> None:
        """Skip the lines that the journal already has; `last` is the journal's last row."""
        count = 0
        for line, position in itertools.islice(lines, self._resumed):
            self._read, count = position, count + 1
            if count == self._resumed:
                self._check(line, last)
        if count < self._resumed:
            raise self._mismatch()

    def _write(self, journal: Journal, position: int, pending: Future[bytes]) -> None:
        """Wait for an output line and append it."""
        while not concurrent.futures.wait([pending], timeout=SYNC_SEC).done:
            journal.sync()
            if self._stop.is_set():
                raise Cancelled("the run was stopped")
        line = pending.result()
        journal.append(line)
        self._read = position
        self._count(json.loads(line))
        if journal.due:
            journal.sync()
            self._progress(self._summary())

    def _output_line(self, line: Line, earlier: bytes | None) -> bytes:
        """Return the output for a line; runs in a thread of the pool."""
        if self._over.is_set() or self._stop.is_set():
            raise Cancelled("the run was stopped")
        if earlier is not None:
            row = json.loads(earlier)
            self._check(line, row)
            if "error" not in row:
                return earlier
        fields = {name: value for name, value in line.fields.items() if name != "error"}
        try:
            result = self._ask(line)
        except AviaryError as error:
            if isinstance(error, _FATAL) and not isinstance(error, DeadlineExceeded):
                raise
            return _dump(fields | {"error": _error(error)})
        except Exception as error:  # noqa: BLE001  any other error belongs to its line
            return _dump(fields | {"error": _error(report(error, during=f"line {line.index + 1}"))})
        fields |= result.fields
        if result.embedding is not None:
            if self._over.is_set():
                raise Cancelled("the run was stopped")
            path = self._embeddings / f"{line.index // 1000:06d}" / f"{line.index:09d}.npy"
            save(path, result.embedding)
            fields["embedding_path"] = str(path.relative_to(self._output.parent))
        return _dump(fields)

    def _check(self, line: Line, row: Json) -> None:
        """Raise RequestError unless the output's row belongs to this line."""
        if any(row.get(name) != value for name, value in line.fields.items() if name not in OUTPUT_FIELDS):
            raise self._mismatch()

    def _mismatch(self) -> RequestError:
        return RequestError(
            f"{self._output} does not belong to this manifest. Choose another output folder, or delete the file to "
            "start over.",
            param="output",
        )

    def _count(self, row: Json) -> None:
        self._lines += 1
        if (error := row.get("error")) is not None:
            if not isinstance(error, dict) or not isinstance(error.get("code"), str):
                raise self._mismatch()
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


def _check_options(output: Path, options: Mapping[str, Any]) -> None:
    """Store the options of a new output. Raises: RequestError if the output was started with other options."""
    path = output.with_name(f"{output.name}.options.json")
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() and output.stat().st_size else None
    if stored is None:
        part = path.with_suffix(".new")
        part.write_text(json.dumps(options), encoding="utf-8")
        part.replace(path)
    elif stored != json.loads(json.dumps(options)):
        raise RequestError(
            f"{output} was started with other options ({stored}). Choose another output folder, or delete the file to "
            "start over.",
            param="output",
        )


def _dump(fields: Json) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate, such as \ud800
        return json.dumps(fields, allow_nan=False).encode() + b"\n"


def _error(error: AviaryError) -> Json:
    return {"code": error.code, "message": error.message, "retryable": error.retryable}
