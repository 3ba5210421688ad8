"""A question to a Runpod endpoint: a job is run, asked for until it is done, and cancelled when the caller gives up."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from worker.client.audio import Upload
from worker.client.wire import Json, Send, Steps, Wait, encoded_size, error_of, exchange
from worker.errors import AviaryError, Cancelled, DeadlineExceeded, InternalError, ResultTooLarge, TooLarge

API = "https://api.runpod.ai/v2"
PAYLOAD_BYTES = 10_000_000  # of /run
FIRST_POLL_SEC = 0.1
LONGEST_POLL_SEC = 2.0
READ_SEC = 20.0  # for what Runpod answers at once
_WAITING = ("IN_QUEUE", "IN_PROGRESS")


class Endpoint:
    """`base_url`: https://api.runpod.ai/v2/<id>. `timeout`: the longest one job may take, waiting included."""

    def __init__(self, base_url: str, retries: int, timeout: float) -> None:
        self._base, self._retries, self._timeout = base_url.rstrip("/"), retries, timeout

    def ask(self, task: str, source: Upload | str, fields: Json) -> Steps[Json]:
        """One result, as the worker writes it, with the model's name."""
        own = {name: fields[name] for name in ("uid", "cid") if name in fields}
        shared = {name: value for name, value in fields.items() if name not in own}
        payload: Json = {"task": task, **shared, "inputs": [{"source": source, **own}]}
        if isinstance(source, Upload):
            _check_size(source, fields)
        job = yield from self._finished(payload)
        output = _output(job)
        if "result_url" in output:
            output = yield from exchange(Send("GET", output["result_url"], bare=True), self._retries)
        return _result(output)

    def _finished(self, payload: Json) -> Steps[Json]:
        """The job when it is done, however it ended."""
        deadline, poll = time.monotonic() + self._timeout, FIRST_POLL_SEC
        job = yield from exchange(Send("POST", f"{self._base}/run", json={"input": payload}), self._retries)
        name = job.get("id")
        try:
            while job.get("status") in _WAITING:
                if time.monotonic() + poll > deadline:
                    raise DeadlineExceeded(f"job {name} was not done within {self._timeout:g} s (the client's timeout)")
                yield Wait(poll)
                poll = min(LONGEST_POLL_SEC, poll * 1.5)
                job = yield from exchange(Send("GET", f"{self._base}/status/{name}", timeout=READ_SEC), self._retries)
        except GeneratorExit:  # nobody is there to send anything
            raise
        except BaseException:
            with contextlib.suppress(AviaryError):
                yield from exchange(Send("POST", f"{self._base}/cancel/{name}", timeout=READ_SEC), 0)
            raise
        return job


def _check_size(upload: Upload, fields: Json) -> None:
    size = encoded_size(upload.size) + len(json.dumps(fields)) + 200
    if size > PAYLOAD_BYTES:
        raise TooLarge(
            f"{upload.name} has {upload.size / 1e6:.1f} MB, and Runpod takes requests of {PAYLOAD_BYTES / 1e6:g} MB, "
            "7.4 MB of audio: give a URL that the worker can fetch (http, https or s3)",
            param="audio",
        )


def _output(job: Json) -> Json:
    """What the worker answered. Raises what it told of, or what became of the job."""
    status, given = job.get("status"), job.get("output")
    output: Json = given if isinstance(given, dict) else {}
    if status == "COMPLETED":
        if not output:
            raise ResultTooLarge(
                "the job is done, but there is no result: Runpod drops those above 10 MB. Give the endpoint a "
                "bucket, or ask for pooling"
            )
        return output
    if status == "CANCELLED":
        raise Cancelled("the job was cancelled")
    if status == "TIMED_OUT":
        raise DeadlineExceeded("the job took longer than the endpoint allows (its execution timeout)")
    if status == "FAILED":
        _result(output)
        raise error_of(
            {
                "code": output.get("code"),
                "param": output.get("param"),
                "message": _text(job.get("error")),
                **{name: output[name] for name in ("retryable",) if name in output},
            }
        )
    raise InternalError(f"the job has the status {status!r}, which Runpod does not document")


def _result(output: Json) -> Json:
    """The one result. Raises the error that stands in its place."""
    results = output.get("results")
    one: Json = results[0] if isinstance(results, list) and results and isinstance(results[0], dict) else {}
    if isinstance(one.get("error"), dict):
        raise error_of(one["error"])
    return {"model": output.get("model"), **one}


def _text(error: Any) -> str:
    """Runpod's `error`: the worker's words, or the JSON of a traceback."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(error)["error_message"])
    return str(error or "the job failed without a word")
