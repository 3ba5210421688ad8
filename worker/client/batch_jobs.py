"""Runpod's Batch Jobs: many jobs under one name, which Runpod runs on workers of their own, hours later if need be.

    create ──▶ add, add, … ──▶ finalize ──▶ state, until it is finished ──▶ outputs, in any order

The routes, statuses and limits are those of https://docs.runpod.io/serverless/batch-jobs as of August 2026, when the
feature was in beta. That page shows no id of a request when it is added, and no order of the outputs. The id of the
request's input, which the worker repeats in its result, therefore says which output belongs to which request.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from worker.client.audio import Audio, Upload
from worker.client.clients import Client
from worker.client.results import CallResult, read
from worker.client.runpod import JOB_SEC, PAYLOAD_BYTES, READ_SEC, SUBMIT_SEC, Endpoint, result
from worker.client.transport import Json, Send, Wait, encoded_size, exchange
from worker.errors import AviaryError, Cancelled, InternalError, RequestError

log = logging.getLogger(__name__)

PAGE = 50  # outputs in a response
CALL_REQUESTS = 100  # requests in a call, whose files are open at the same time
CALL_BYTES = PAYLOAD_BYTES  # of a call; Runpod accepts 10 MiB


@dataclass(frozen=True)
class BatchState:
    """How far a batch has come. `status` is DRAFT, FINALIZED, FAILED or CANCELLED: there is none for the end."""

    status: str
    total: int
    ended: int
    """The number of requests that are completed or have failed."""


class BatchClient(Client):
    """A client of a Runpod endpoint and of its Batch Jobs. Many threads may use it at the same time.

    Every method that sends a request raises AviaryError, as `worker.client.transport.exchange` does. Once `stop` is
    set, a call that would have to wait raises Cancelled, and a job that the call has started is canceled.
    """

    def __init__(self, base_url: str, api_key: str | None = None, *, retries: int, stop: threading.Event) -> None:
        """Raises: RequestError if `base_url` is not a Runpod endpoint's."""
        super().__init__(base_url, api_key, timeout=JOB_SEC, retries=retries)
        target = self._calls.target
        if not isinstance(target, Endpoint):
            raise RequestError(
                f"{base_url} is not a Runpod endpoint, and batch jobs need one. Use a URL that ends in /v2/<id>.",
                param="base_url",
            )
        self._endpoint, self._retries, self._stop = target, retries, stop

    def job(self, kind: type[CallResult], audio: Audio, options: Json, name: str) -> Json:
        """Return a request for a batch. `name` is the id of its input.

        Raises: InputError for audio that cannot be sent, such as a file above Runpod's limit; RequestError for an
        option that the task does not have.
        """
        payload = self._calls.job(kind, audio, options)
        payload["inputs"][0]["id"] = name
        return {"input": payload}

    def create(self) -> str:
        """Create a batch without requests, which Runpod calls a draft, and return its id."""
        try:
            batch = self._exchange("POST", "", json=[], timeout=READ_SEC).get("id")
        except RequestError as error:
            if error.status != 404:
                raise
            raise RequestError(
                f"{self._endpoint.base} has no batch jobs ({error.message}). Check the endpoint's id, or run without "
                "batch jobs.",
                param="batch",
            ) from error
        if not isinstance(batch, str):
            raise InternalError("Runpod created a batch without an id")
        return batch

    def add(self, batch: str, requests: Sequence[Json]) -> None:
        """Add requests to a draft: at most CALL_REQUESTS, with CALL_BYTES of JSON.

        A call whose response is lost is repeated, and Runpod then has its requests twice. Raises: InputError if a file
        cannot be opened.
        """
        self._exchange(
            "POST", f"/{batch}/requests", json={"requests": list(requests)}, timeout=SUBMIT_SEC, discard=True
        )

    def finalize(self, batch: str) -> None:
        """Let Runpod run a draft."""
        try:
            self._exchange("POST", f"/{batch}/finalize", timeout=SUBMIT_SEC, discard=True)
        except AviaryError:  # a repeated call may find that the call before it succeeded
            if self.state(batch).status != "FINALIZED":
                raise

    def state(self, batch: str) -> BatchState:
        """Return how far a batch has come."""
        summary = self._exchange("GET", f"/{batch}", timeout=READ_SEC)
        total, completed, failed = (
            int(summary.get(name) or 0) for name in ("requestTotal", "requestCompleted", "requestFailed")
        )
        return BatchState(str(summary.get("status")), total, completed + failed)

    def cancel(self, batch: str) -> None:
        """Cancel a batch, without retries: a user waits. Runpod finishes the requests in progress, and bills them."""
        send = Send("POST", f"{self._endpoint.base}/batch/{batch}/cancel", timeout=READ_SEC, discard=True)
        self._run(exchange(send, 0))

    def outputs(self, batch: str) -> Iterator[tuple[str, Json]]:
        """Yield the id of each completed request's input, and the output.

        An output that the worker put into its bucket is fetched, or left out if that fails.
        """
        offset, is_last = 0, False
        while not is_last:
            page = self._exchange("GET", f"/{batch}/requests?offset={offset}&limit={PAGE}", timeout=SUBMIT_SEC)
            requests = page.get("requests") or []
            offset, is_last = offset + len(requests), not (requests and page.get("hasMore"))
            for request in requests:
                if (named := self._output(request)) is not None:
                    yield named

    def result(self, kind: type[CallResult], output: Json) -> CallResult:
        """Return the result in an output. Raises: the error that the worker reports."""
        return read(kind, result(output))

    def _do(self, step: Send | Wait) -> httpx.Response | None:
        if isinstance(step, Send):
            return super()._do(step)
        if self._stop.wait(step.seconds):
            raise Cancelled("the run was stopped")
        return None

    def _output(self, request: Any) -> tuple[str, Json] | None:
        """Return the id of a request's input, and its output; None without them."""
        try:
            if request["status"] != "COMPLETED":
                return None
            output: Json = self._run(self._endpoint.stored(request["output"]))
            return str(output["results"][0]["id"]), output
        except (KeyError, IndexError, TypeError):
            return None
        except AviaryError as error:
            log.warning("a result of a batch cannot be fetched: %s", error.message)
            return None

    def _exchange(self, method: str, path: str, **send: Any) -> Json:
        return self._run(exchange(Send(method, f"{self._endpoint.base}/batch{path}", **send), self._retries))


def request_bytes(request: Json) -> int:
    """Return about how many bytes of JSON a request has, with its upload in base64."""
    uploads: list[Upload] = []
    text = json.dumps(request, default=uploads.append)
    return len(text) + sum(encoded_size(upload.size) for upload in uploads) + 100
