"""The lines of a manifest as Batch Jobs of a Runpod endpoint.

    lines ──▶ prepare ──▶ batches, noted in <output>.batches ──▶ Runpod
    line ──▶ its batch, once it is finished ──┬── with an output ──▶ LineResult
                                              └── without one ──▶ a job of its own ──▶ LineResult, or the line's error

A batch outlives this process. <output>.batches has the id of each batch and the keys of its lines, so that the next run
takes the outputs of the batches that Runpod still has. The key of a line is its position and a digest of its fields and
of the options. The file is deleted once every line is written, and if the output is deleted to start over.

Outputs are spooled in the output's folder: Runpod returns them in any order, and embeddings are large.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.errors import AviaryError, Cancelled, InputError, InternalError, RequestError, ServerUnreachable
from worker.manifest.line_results import ClientTask, Task
from worker.manifest.lines import Line
from worker.manifest.run import LineResult, Summary, process

if TYPE_CHECKING:
    from worker.client import Audio, CallResult
    from worker.client.batch_jobs import BatchClient

log = logging.getLogger(__name__)

Json = dict[str, Any]

BATCH_LINES = 4_800  # Runpod accepts 5,000 requests in a batch, and a repeated call adds its requests twice
FIRST_POLL_SEC, LONGEST_POLL_SEC = 2.0, 15.0
JOIN_SEC = 20.0  # in which a job that was started can be canceled


def process_in_batches(
    manifest: str | Path,
    output: Path,
    url: str,
    api_key: str | None,
    task: Task,
    *,
    retries: int,
    stop: threading.Event,
    options: Mapping[str, Any],
    retry_failed: bool,
    **shared: Any,
) -> Summary:
    """Process a manifest with the Batch Jobs of a Runpod endpoint. `shared` are further parameters of `process`.

    Once `stop` is set, or after an interrupt, the batches that are not finished are canceled. Any other end of the run
    leaves them to the next run, unless the output is deleted before it.
    """
    from worker.client.batch_jobs import BatchClient

    written = output.with_name(f"{output.name}.retry") if retry_failed else output
    notes = written.with_name(f"{written.name}.batches")
    if not written.exists():  # `process` creates the file before it submits a batch, so the user starts over
        notes.unlink(missing_ok=True)
    with BatchClient(url, api_key, retries=retries, stop=stop) as client:
        batches = Batches(client, task, options, notes, stop)
        try:
            summary = process(
                manifest,
                output,
                batches.ask,
                prepare=batches.prepare,
                stop=stop,
                options=options,
                retry_failed=retry_failed,
                **shared,
            )
        except KeyboardInterrupt:
            stop.set()
            raise
        finally:
            if stop.is_set():
                batches.cancel()
            stop.set()
            batches.join()
    notes.unlink(missing_ok=True)
    return summary


class Batches:
    """The batches of a run. `notes` is the file of their ids. `stop` ends every wait with Cancelled."""

    def __init__(
        self, client: BatchClient, task: Task, options: Mapping[str, Any], notes: Path, stop: threading.Event
    ) -> None:
        from worker.client import Analyzed, Captioned, Diarized, Embedded, Transcribed

        kinds: dict[Task, type[CallResult]] = {
            "transcribe": Transcribed,
            "caption": Captioned,
            "embed": Embedded,
            "analyze": Analyzed,
            "diarize": Diarized,
        }
        self._client, self._kind, self._alone = client, kinds[task], getattr(client, task)
        self._task, self._options, self._notes, self._stop = ClientTask(task, options), options, notes, stop
        self._batch_of: dict[str, _Batch] = {}
        for batch in _read(notes):
            self._batch_of |= dict.fromkeys(batch.keys, batch)
        self._earlier = set(self._batch_of.values())
        self._mine: list[_Batch] = []
        self._asking, self._changed = 0, threading.Condition()

    def prepare(self, lines: Sequence[Line]) -> None:
        """Submit the lines that no batch of an earlier run has."""
        keys = {self._key(line): line for line in lines}
        for batch in self._earlier & {self._batch_of[key] for key in keys.keys() & self._batch_of.keys()}:
            self._earlier.discard(batch)
            self._resume(batch)
        new = [line for key, line in keys.items() if key not in self._batch_of]
        for start in range(0, len(new), BATCH_LINES):
            self._submit(new[start : start + BATCH_LINES])
        self._mine = [batch for batch in self._mine if batch.is_open]

    def ask(self, line: Line) -> LineResult:
        """Return the result of a line, once its batch is finished. Raises Cancelled once `stop` is set."""
        with self._counted():
            return self._ask(line)

    def _ask(self, line: Line) -> LineResult:
        key = self._key(line)
        batch = self._batch_of.pop(key, None)
        output = None if batch is None else batch.output(key, self._client, self._stop)

        def call(audio: Audio, **options: Any) -> CallResult:
            if output is not None:
                try:
                    return self._client.result(self._kind, output)
                except AviaryError as error:
                    if not error.retryable:
                        raise
            if self._stop.is_set():
                raise Cancelled("the run was stopped")
            result: CallResult = self._alone(audio, **options)
            return result

        return self._task.ask(line, call)

    def join(self) -> None:
        """Wait, for JOIN_SEC at most, until the calls of `ask` have ended. `stop` must be set."""
        with self._changed:
            self._changed.wait_for(lambda: not self._asking, JOIN_SEC)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._changed:
            self._asking += 1
        try:
            yield
        finally:
            with self._changed:
                self._asking -= 1
                self._changed.notify_all()

    def cancel(self) -> None:
        """Cancel the batches of this run whose outputs are not fetched yet."""
        for batch in self._mine:
            if batch.is_open:
                self._cancel(batch)

    def _resume(self, batch: _Batch) -> None:
        """Take over a batch of an earlier run. The lines for which it has no output are new lines then."""
        self._mine.append(batch)
        try:
            status = self._client.state(batch.id).status
            if status == "FINALIZED":
                return
            if status == "DRAFT":
                self._cancel(batch)
            batch.fetch(self._client)
        except RequestError as error:  # Runpod does not have it anymore
            log.info("batch %s of an earlier run is not resumed: %s", batch.id, error.message)
            batch.is_open = False
        self._forget(batch, set(batch.keys) - batch.fetched.keys())

    def _submit(self, lines: Sequence[Line]) -> None:
        from worker.client.batch_jobs import CALL_BYTES, CALL_REQUESTS, request_bytes

        batch = _Batch(self._client.create(), [self._key(line) for line in lines], self._notes.parent)
        self._mine.append(batch)
        self._batch_of |= dict.fromkeys(batch.keys, batch)
        self._note(batch)
        call, size = list[Json](), 0
        for request in filter(None, map(self._request, lines)):
            more = request_bytes(request)
            if call and (len(call) == CALL_REQUESTS or size + more > CALL_BYTES):
                self._add(batch, call)
                call, size = [], 0
            call.append(request)
            size += more
        if call:
            self._add(batch, call)
        if batch.sent:
            self._client.finalize(batch.id)
            log.info("batch %s has %d requests", batch.id, batch.sent)
        else:
            self._cancel(batch)
            batch.is_open = False

    def _request(self, line: Line) -> Json | None:
        """Return the request of a line. None: the line cannot be sent; `ask` raises the reason."""
        try:
            audio, options = self._task.arguments(line)
            return self._client.job(self._kind, audio, options, self._key(line))
        except Exception:  # noqa: BLE001  a line's error must not cost the others their batch
            return None

    def _add(self, batch: _Batch, call: Sequence[Json]) -> None:
        """Add requests to the batch, except those whose file cannot be opened."""
        if self._stop.is_set():
            raise Cancelled("the run was stopped")
        try:
            self._client.add(batch.id, call)
        except InputError:
            if len(call) > 1:
                middle = len(call) // 2
                self._add(batch, call[:middle])
                self._add(batch, call[middle:])
        else:
            batch.sent += len(call)

    def _key(self, line: Line) -> str:
        asked = json.dumps([line.fields, dict(self._options)], sort_keys=True)
        return f"{line.index}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"

    def _note(self, batch: _Batch) -> None:
        with self._notes.open("a", encoding="utf-8") as file:
            # The line break comes first because a killed process may have left an incomplete line.
            file.write("\n" + json.dumps({"id": batch.id, "keys": batch.keys}))
            file.flush()
            os.fsync(file.fileno())

    def _forget(self, batch: _Batch, keys: Set[str]) -> None:
        for key in keys:
            if self._batch_of.get(key) is batch:
                del self._batch_of[key]

    def _cancel(self, batch: _Batch) -> None:
        try:
            self._client.cancel(batch.id)
        except AviaryError as error:
            log.warning("batch %s cannot be canceled: %s", batch.id, error.message)


class _Batch:
    """A batch on Runpod, with the keys of its lines.

    The spool is a file without a name in `folder`. `sent` is the number of its requests, 0 in a batch of an earlier
    run. `fetched` has the offset and the length of each output in the spool. `is_open` is False once the outputs are
    fetched, or if there will be none.
    """

    def __init__(self, batch_id: str, keys: Sequence[str], folder: Path) -> None:
        self.id, self.keys, self.sent, self._folder = batch_id, keys, 0, folder
        self.fetched: dict[str, tuple[int, int]] = {}
        self.is_open = True
        self._lock = threading.Lock()

    def output(self, key: str, client: BatchClient, stop: threading.Event) -> Json | None:
        """Return the output for a line, or None. Wait until the batch is finished; one thread polls for all.

        Raises: Cancelled once `stop` is set; ServerUnreachable if the batch fails or is canceled, or if its state
        cannot be read.
        """
        with self._lock:
            if self.is_open:
                try:
                    self._wait(client, stop)
                    self.fetch(client)
                except InternalError as error:  # Runpod's fault and no line's, so it ends the run
                    raise ServerUnreachable(
                        f"the state of batch {self.id} cannot be read: {error.message}. Run the same command again to "
                        "resume."
                    ) from error
                if missing := len(self.keys) - len(self.fetched):
                    log.warning("batch %s has no result for %d lines, which are sent as jobs", self.id, missing)
        if key not in self.fetched:
            return None
        offset, size = self.fetched[key]
        output: Json = json.loads(os.pread(self._spool.fileno(), size, offset))
        return output

    def fetch(self, client: BatchClient) -> None:
        """Spool the outputs that Runpod has."""
        self._spool = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  closed with the object
        self.fetched.clear()
        for key, output in client.outputs(self.id):
            data = json.dumps(output).encode()
            self.fetched[key] = (self._spool.tell(), len(data))
            self._spool.write(data)
        self._spool.flush()
        self.is_open = False

    def _wait(self, client: BatchClient, stop: threading.Event) -> None:
        poll, ended = FIRST_POLL_SEC, -1
        while not stop.is_set():
            state = client.state(self.id)
            if state.status != "FINALIZED":
                raise ServerUnreachable(
                    f"batch {self.id} is {state.status} on Runpod. Run the same command again to process its other "
                    "lines in a new batch."
                )
            if state.ended != ended:
                log.info("batch %s: %d of %d requests have ended", self.id, state.ended, state.total)
            if state.ended >= max(state.total, self.sent, 1):
                return
            if state.ended == ended >= max(state.total, 1):
                log.warning("batch %s has %d of its %d requests on Runpod", self.id, state.total, self.sent)
                return
            ended = state.ended
            stop.wait(poll)
            poll = min(LONGEST_POLL_SEC, poll * 1.5)
        raise Cancelled("the run was stopped")


def _read(notes: Path) -> Iterator[_Batch]:
    """Yield the batches in the file. A line that a killed process left incomplete is skipped."""
    if not notes.exists():
        return
    for line in notes.read_text(encoding="utf-8").splitlines():
        try:
            noted = json.loads(line)
        except ValueError:
            continue
        yield _Batch(noted["id"], noted["keys"], notes.parent)
