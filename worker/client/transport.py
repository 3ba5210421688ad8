"""The steps that a call consists of, and the exchange of one request for one response: retries and errors.

A call is a generator. It yields `Send` and receives the httpx.Response, or httpx's exception is thrown into it; it
yields `Wait` and continues after that many seconds. The same generator therefore serves a client with an event loop
and one without.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import json
import random
import time
import urllib.parse
import uuid
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import httpx

from worker.client.audio import Upload
from worker.errors import (
    AviaryError,
    Busy,
    DeadlineExceeded,
    InternalError,
    RateLimited,
    RequestError,
    ServerUnreachable,
    TooLarge,
    Unauthorized,
)

T = TypeVar("T")
Json = dict[str, Any]

FIRST_WAIT_SEC = 0.5
LONGEST_WAIT_SEC = 30.0
LONGEST_RETRY_AFTER_SEC = 300.0  # a longer Retry-After raises the error at once
_RETRIED = (429, 502, 503)
_BLOCK = 3 << 16  # bytes; a multiple of 3, so that each block encodes to base64 without padding
_BY_STATUS: dict[int, type[AviaryError]] = {
    401: Unauthorized,
    403: Unauthorized,
    413: TooLarge,
    429: RateLimited,
    503: Busy,
}


@dataclass(frozen=True)
class Send:
    """Step: send a request with a JSON body, or with a form and its file.

    An Upload inside `json` becomes its data: URI. `file` is a form field's name and its upload. `bare` omits the API
    key. `timeout` in seconds overrides the client's. `discard`: whether the body of a response that is no error is
    ignored.
    """

    method: str
    url: str
    json: Any = None
    form: Mapping[str, str | list[str]] | None = None
    file: tuple[str, Upload] | None = None
    bare: bool = False
    timeout: float | None = None
    discard: bool = False


@dataclass(frozen=True)
class Wait:
    """Step: wait for this many seconds."""

    seconds: float


Steps = Generator[Send | Wait, Any, T]


@contextlib.contextmanager
def build_request(http: httpx.Client | httpx.AsyncClient, send: Send) -> Iterator[httpx.Request]:
    """Yield the request; its files stay open within the block. Raises: InputError if a file cannot be opened."""
    with contextlib.ExitStack() as stack:
        if send.json is not None:
            body = _JsonStream(send.json, stack)
            headers = {"Content-Type": "application/json", "Content-Length": str(body.size)}
            request = http.build_request(send.method, send.url, headers=headers)
            request.stream = body
        elif send.file is not None:
            field, upload = send.file
            files = {field: (upload.name, stack.enter_context(upload.open()))}
            request = http.build_request(send.method, send.url, data=send.form, files=files)
        else:
            request = http.build_request(send.method, send.url)
        if send.bare:
            request.headers.pop("Authorization", None)
        if send.timeout is not None:
            request.extensions["timeout"] = httpx.Timeout(send.timeout).as_dict()
        yield request


def exchange(send: Send, retries: int) -> Steps[Json]:
    """Send a request, and return the JSON object of the response, {} if `send` discards it.

    A request is sent up to `retries` times more after a lost connection, and while the server is busy (status 429, 502
    or 503); the pauses grow, and are at least as long as the server's Retry-After. No request is
    sent again if X-Should-Retry forbids it. After a time-out, and after status 500 or 504, a request is sent
    again only if it is a GET, because the server may have begun to work on it.

    Raises: ServerUnreachable if there is no response; DeadlineExceeded after a timeout; InternalError if the response
    is not a JSON object; else the error that the response reports.
    """
    for attempt in range(retries + 1):
        wait = min(LONGEST_WAIT_SEC, FIRST_WAIT_SEC * 2**attempt) * random.uniform(0.5, 1)  # noqa: S311  no secret
        try:
            response: httpx.Response = yield send
        except (httpx.ConnectTimeout, httpx.PoolTimeout, httpx.NetworkError, httpx.ProtocolError) as error:
            failure = _unreachable(send, error)
        except httpx.TimeoutException as error:
            if send.method != "GET":
                raise DeadlineExceeded(f"{_host(send)} did not respond within the client's timeout") from error
            failure = _unreachable(send, error)
        except httpx.HTTPError as error:
            raise _unreachable(send, error) from error
        else:
            if response.is_success and send.discard:
                return {}
            if response.is_success:
                model = response.headers.get("OpenAI-Model")  # of a transcription, whose JSON does not name it
                return ({"model": urllib.parse.unquote(model)} if model else {}) | _json(response)
            failure = error_from_response(response)
            retry_after = failure.retry_after_sec or 0
            forbidden = response.headers.get("X-Should-Retry") == "false"
            busy = response.status_code in _RETRIED and failure.retryable
            busy |= send.method == "GET" and response.status_code in (500, 504)
            if not busy or forbidden or retry_after > LONGEST_RETRY_AFTER_SEC:
                raise failure
            wait = max(wait, retry_after)
        if attempt < retries:
            yield Wait(wait)
    raise failure


def error_from_response(response: httpx.Response) -> AviaryError:
    """Return the error that a response reports, which need not come from Aviary."""
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = None
    if not isinstance(error, dict):
        text = error if isinstance(error, str) else response.text[:200] or response.reason_phrase
        error = {"message": f"{response.status_code} from {response.url.host}: {text}"}
    return error_from_body(error, response.status_code, _retry_after(response))


def error_from_body(body: Mapping[str, Any], status: int = 500, retry_after_sec: float | None = None) -> AviaryError:
    """Return the error of `worker.errors` with the code in `body`; for an unknown code, the closest to the status."""
    code, message = body.get("code"), str(body.get("message") or "the server gave no reason")
    kind = _error_class(AviaryError, code) if isinstance(code, str) else None
    if kind is None:
        kind = _BY_STATUS.get(status, RequestError if status < 500 else InternalError)
    error = kind(message)
    error.status = error.status if kind.code == code else status
    error.code = code if isinstance(code, str) else error.code
    error.param = body.get("param")
    error.retryable = body.get("retryable", status in _RETRIED if kind.code != code else error.retryable)
    error.retry_after_sec = retry_after_sec
    if isinstance(error, DeadlineExceeded):
        error.job_id = body.get("job_id")
    return error


def _error_class(root: type[AviaryError], code: str) -> type[AviaryError] | None:
    """Return the class closest to the root that defines this code, or None."""
    level = [root]
    while level:
        for kind in level:
            if vars(kind).get("code") == code and kind is not AviaryError:
                return kind
        level = [sub for kind in level for sub in kind.__subclasses__()]
    return None


def _json(response: httpx.Response) -> Json:
    try:
        body = response.json()
    except ValueError as error:
        raise InternalError(
            f"{response.url.host} responded with text that is not JSON: {response.text[:80]}"
        ) from error
    if not isinstance(body, dict):
        raise InternalError(f"{response.url.host} responded with a JSON {type(body).__name__}, not an object")
    return body


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of the Retry-After header, which holds seconds or a date; None if it is missing or wrong."""
    text = response.headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _unreachable(send: Send, error: Exception) -> AviaryError:
    return ServerUnreachable(f"{_host(send)}: {str(error) or type(error).__name__}")


def _host(send: Send) -> str:
    url = httpx.URL(send.url)
    return f"{url.scheme}://{url.netloc.decode()}"


class _JsonStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A JSON body whose uploads are read and base64-encoded while it is sent. `size` is its length in bytes."""

    def __init__(self, value: Any, stack: contextlib.ExitStack) -> None:
        mark, self._parts = uuid.uuid4().hex, list[bytes | BinaryIO]()
        uploads: list[Upload] = []

        def encode(item: Any) -> str:
            if not isinstance(item, Upload):
                raise RequestError(f"a value of type {type(item).__name__} cannot be sent as JSON")
            uploads.append(item)
            return f"data:;base64,{mark}"

        texts = json.dumps(value, default=encode, allow_nan=False).encode().split(mark.encode())
        self.size = sum(map(len, texts)) + sum(encoded_size(upload.size) for upload in uploads)
        self._parts.append(texts[0])
        for upload, text in zip(uploads, texts[1:], strict=True):
            self._parts += [stack.enter_context(upload.open()), text]

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if isinstance(part, bytes):
                yield part
                continue
            while block := part.read(_BLOCK):
                yield base64.b64encode(block)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for block in self:
            yield block


def encoded_size(size: int) -> int:
    """Return the number of base64 characters for `size` bytes."""
    return -(-size // 3) * 4
