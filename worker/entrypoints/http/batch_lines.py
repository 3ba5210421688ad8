"""The lines of a batch's input: read within the limits of a request's body, and run as jobs.

    for line in read(file, settings):          RawLine, with its place in the file
    submission(batch, line, checked)           the job of a line; its payload names the place, not the text
    work, file = prepare(stored, owner, …)     the work of such a payload; its answer has the response of the endpoint

The answer of a line is {"response": {"status_code", "body"}}, beside `error`, `code` and `retryable` if it failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, BinaryIO

from typing_extensions import Unpack, override

from worker.config import Settings
from worker.entrypoints.http import body_limits, responses
from worker.entrypoints.http.body import parse
from worker.entrypoints.tasks import Tasks
from worker.errors import AviaryError, FileNotFound, RequestError, TooLarge
from worker.jobs.records import Batch, Submission
from worker.jobs.store import JobStore
from worker.protocol.openai_batch import ENDPOINTS, Line, LineError, line_of
from worker.protocol.openai_fields import AUDIO
from worker.protocol.work import Work
from worker.types import Listeners

Json = dict[str, Any]

KIND = "batch"  # of the jobs of lines
UPLOAD = "upload:"
_FILE_ID = "file_id"


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line of a file that is not blank: its number, from 1, where it begins, its bytes, and where the next begins."""

    number: int
    begin: int
    data: bytes
    end: int


def read(file: BinaryIO, settings: Settings, *, begin: int = 0, number: int = 0) -> Iterator[RawLine]:
    """Yield the lines of an input from a place on. number: of the line before.

    A line that is longer than the limit comes cut, and is the last one.
    """
    file.seek(begin)
    while data := file.readline(settings.max_json_bytes + 1):
        number += 1
        end = begin + len(data)
        if data.strip():
            yield RawLine(number, begin, data, end)
        if len(data) > settings.max_json_bytes:
            return
        begin = end


def check(data: bytes, endpoint: str, settings: Settings) -> Line:
    """Return a line by its bytes. Raises LineError."""
    if len(data) > settings.max_json_bytes:
        message = f"The line is longer than the {settings.max_json_bytes} bytes allowed (MAX_JSON_BYTES)."
        raise LineError("line_too_long", message)
    try:
        body_limits.check_structure(data, settings.max_inputs)
        return line_of(parse(data), endpoint)
    except ValueError as error:
        raise LineError("invalid_json_line", f"The line is not valid JSON: {error}.") from error
    except TooLarge as error:
        raise LineError("line_too_long", error.message) from error


def submission(batch: Batch, raw: RawLine, line: Line) -> Submission:
    """Return the job of a line."""
    place = {
        "endpoint": batch.endpoint,
        "upload": batch.input_upload,
        "begin": raw.begin,
        "bytes": len(raw.data),
        "custom_id": line.custom_id,
    }
    payload = {"input": {}, "upload": None, "line": place}
    return Submission(KIND, payload, line.custom_id, owner=batch.owner, total=1, task=ENDPOINTS[batch.endpoint])


def prepare(
    stored: Json, owner: str | None, *, store: JobStore, tasks: Tasks, settings: Settings
) -> tuple[Work, BinaryIO | None]:
    """Return the work of a stored line, and the file that the caller closes after it. Raises the errors of the line."""
    endpoint = stored["endpoint"]
    try:
        with store.upload_path(stored["upload"]).open("rb") as file:
            file.seek(stored["begin"])
            body = dict(check(file.read(stored["bytes"]), endpoint, settings).body)
    except FileNotFoundError as error:
        raise FileNotFound("the input file of the batch no longer exists") from error
    except LineError as error:
        raise RequestError(error.message, param=error.param) from error
    if body.get("stream") is False:
        del body["stream"]
    audio = None
    if endpoint.startswith("/v1/audio/"):
        named = body.keys() & {_FILE_ID, *AUDIO}
        if len(named) != 1:
            names = ", ".join((_FILE_ID, *AUDIO))
            raise RequestError(f"name the audio of the line by exactly one of {names}", param=_FILE_ID)
        if _FILE_ID in named:
            audio = _open(body.pop(_FILE_ID), owner, store)
            body["file"] = UPLOAD
    try:
        fields = {"openai_route": endpoint, "openai_input": body}
        files = None if audio is None else {UPLOAD: audio}
        return _LineWork(tasks.prepare(fields, files=files, background=True, owner=owner), endpoint), audio
    except BaseException:
        if audio is not None:
            audio.close()
        raise


def _open(file_id: Any, owner: str | None, store: JobStore) -> BinaryIO:
    """Return an open file of the owner of a batch. Raises FileNotFound."""
    found = store.files.find(file_id) if isinstance(file_id, str) else None
    if found is not None and found.owner == owner:
        try:
            return store.files.path(found).open("rb")
        except FileNotFoundError:
            pass
    raise FileNotFound(f"there is no file {str(file_id)[:64]!r} of the key of this batch", param=_FILE_ID)


def failure(error: AviaryError, endpoint: str) -> Json:
    """Return the answer of a line that failed."""
    response = {"status_code": responses.status_of(error, endpoint), "body": responses.to_json(error)}
    return {"error": error.message, "code": error.code, "retryable": error.retryable, "response": response}


class _LineWork(Work):
    """Work whose answer is that of a line."""

    def __init__(self, work: Work, endpoint: str) -> None:
        self._work, self._endpoint = work, endpoint
        self.size, self.model, self.task = work.size, work.model, work.task

    @override
    def start(self, **listeners: Unpack[Listeners]) -> Future[Any]:
        return self._work.start(**listeners)

    @override
    def finish(self, outcome: Any) -> Json:
        error = self._work.error(outcome)
        if error is not None:
            return failure(error, self._endpoint)
        return {"response": {"status_code": 200, "body": self._work.finish(outcome)}}

    @override
    def error(self, outcome: Any) -> AviaryError | None:
        return self._work.error(outcome)
