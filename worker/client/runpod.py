"""Calls to a Runpod endpoint: start a job, poll it until it ends, and cancel it if the caller gives up.

    POST /run ──▶ GET /status/<id> … ──▶ output, or the result that `result_url` names

The statuses and limits are those of https://docs.runpod.io/serverless/endpoints/job-states and .../send-requests.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import Any

import httpx

from worker.client.audio import Upload
from worker.client.transport import Json, Send, Steps, Wait, encoded_size, error_from_body, exchange
from worker.errors import AviaryError, Cancelled, DeadlineExceeded, InternalError, ResultTooLarge, TooLarge

API = "https://api.runpod.ai/v2"
PAYLOAD_BYTES = 10_000_000  # the most that Runpod accepts on /run
FIRST_POLL_SEC = 0.1
LONGEST_POLL_SEC = 2.0
READ_SEC = 20.0  # timeout of requests to which Runpod responds at once
SUBMIT_SEC = 120.0  # timeout of requests that carry audio
JOB_SEC = 86_400.0  # how long Runpod keeps a job by default, from its submission on
_UNFINISHED = ("IN_QUEUE", "IN_PROGRESS", "RUNNING")


def is_endpoint(base_url: str) -> bool:
    """Return whether a URL is a Runpod endpoint's: whether its path ends in /v2/<id>."""
    return re.search(r"/v2/[^/]+/?$", httpx.URL(base_url).path) is not None


class Endpoint:
    """One Runpod endpoint.

    `base_url` is https://api.runpod.ai/v2/<id>. `timeout` is the most seconds that one job may take, including the
    time in the queue. `retries` is as in `exchange`.
    """

    def __init__(self, base_url: str, retries: int, timeout: float) -> None:
        self.base, self._retries, self._timeout = base_url.rstrip("/"), retries, timeout

    def call(self, task: str, source: Upload | str, fields: Json) -> Steps[Json]:
        """Run a job with one input, and return its result as `worker.protocol.render` writes it, with the model's id.

        Raises: TooLarge if Runpod does not accept the upload; DeadlineExceeded, Cancelled or ResultTooLarge if the job
        ends without a result; else the error that the worker reports.
        """
        job = yield from self._run(self.payload(task, source, fields))
        output = yield from self.stored(output_of(job))
        return result(output)

    def payload(self, task: str, source: Upload | str, fields: Json) -> Json:
        """Return the payload of a job with one input. Raises: TooLarge if Runpod does not accept the upload."""
        clip = {name: fields[name] for name in ("uid", "cid") if name in fields}
        shared = {name: value for name, value in fields.items() if name not in clip}
        if isinstance(source, Upload):
            _check_size(source, fields)
        return {"task": task, **shared, "inputs": [{"source": source, **clip}]}

    def stored(self, output: Json) -> Steps[Json]:
        """Return a job's output, or what the worker put into its bucket in place of it. Raises: as `exchange`."""
        if "result_url" not in output:
            return output
        return (yield from exchange(Send("GET", output["result_url"], bare=True), self._retries))

    def _run(self, payload: Json) -> Steps[Json]:
        """Start a job, and return it once it has ended, in any status."""
        deadline, poll = time.monotonic() + self._timeout, FIRST_POLL_SEC
        send = Send("POST", f"{self.base}/run", json={"input": payload}, timeout=min(self._timeout, SUBMIT_SEC))
        job = yield from exchange(send, self._retries)
        job_id = job.get("id")
        try:
            while job.get("status") in _UNFINISHED:
                if time.monotonic() + poll > deadline:
                    raise DeadlineExceeded(f"job {job_id} did not end within {self._timeout:g} s, the client's timeout")
                yield Wait(poll)
                poll = min(LONGEST_POLL_SEC, poll * 1.5)
                job = yield from exchange(Send("GET", f"{self.base}/status/{job_id}", timeout=READ_SEC), self._retries)
        except GeneratorExit:  # a closed generator cannot send a request
            raise
        except BaseException:
            with contextlib.suppress(AviaryError):
                yield from exchange(Send("POST", f"{self.base}/cancel/{job_id}", timeout=READ_SEC), 0)
            raise
        return job


def _check_size(upload: Upload, fields: Json) -> None:
    size = encoded_size(upload.size) + len(json.dumps(fields)) + 200
    if size > PAYLOAD_BYTES:
        raise TooLarge(
            f"{upload.name} has {upload.size / 1e6:.1f} MB, but Runpod accepts requests of at most "
            f"{PAYLOAD_BYTES / 1e6:g} MB, hence 7.4 MB of audio; give a URL that the worker can fetch (http, https or "
            "s3) instead",
            param="audio",
        )


def output_of(job: Json) -> Json:
    """Return the worker's output of a job. Raises: the error that the worker reports, or one for how the job ended."""
    status, output = job.get("status"), job.get("output")
    output = output if isinstance(output, dict) else {}
    if status == "COMPLETED":
        if not output:
            raise ResultTooLarge(
                "the job is completed, but its result is missing: Runpod drops results above 10 MB. Configure a bucket "
                "for the endpoint, or request pooling"
            )
        return output
    if status == "CANCELLED":
        raise Cancelled("the job was canceled")
    if status == "TIMED_OUT":
        raise DeadlineExceeded("the job exceeded the endpoint's execution timeout")
    if status == "FAILED":
        result(output)
        raise error_from_body(
            {
                "code": output.get("code"),
                "param": output.get("param"),
                "message": _message(job.get("error")),
                **{name: output[name] for name in ("retryable",) if name in output},
            }
        )
    raise InternalError(f"the job has the status {status!r}, which Runpod does not document")


def result(output: Json) -> Json:
    """Return the only result of an output, {} if there is none. Raises: the result's error, if it has one."""
    results = output.get("results")
    only: Json = results[0] if isinstance(results, list) and results and isinstance(results[0], dict) else {}
    if isinstance(only.get("error"), dict):
        raise error_from_body(only["error"])
    return {"model": output.get("model"), **only}


def _message(error: Any) -> str:
    """Return the message in Runpod's `error`: the worker's own text, or the JSON of a traceback."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(error)["error_message"])
    return str(error or "the job failed, and Runpod reported no reason")
