"""The steps a call is made of, and how one request is sent until it is answered: retries, and errors as the worker's
own.

A call is a generator: it yields `Send` and gets the httpx.Response, or has httpx's exception thrown into it; it yields
`Wait` and goes on that much later. So the same code serves a client with an event loop and one without.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import json
import random
import time
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
LONGEST_RETRY_AFTER_SEC = 300.0  # who is told to come back later than that hears so at once
_AGAIN = (429, 502, 503)
_BLOCK = 3 << 16  # of whole base64 quanta
_BY_STATUS: dict[int, type[AviaryError]] = {
    401: Unauthorized,
    403: Unauthorized,
    413: TooLarge,
    429: RateLimited,
    503: Busy,
}


@dataclass(frozen=True)
class Send:
    """A request: of a form and its file, or of JSON in which an Upload stands for its data: URI. `bare`: without the
    key. `timeout`: seconds, if not the client's."""

    method: str
    url: str
    json: Any = None
    form: Mapping[str, str | list[str]] | None = None
    file: tuple[str, Upload] | None = None
    bare: bool = False
    timeout: float | None = None


@dataclass(frozen=True)
class Wait:
    seconds: float


Steps = Generator[Send | Wait, Any, T]


@contextlib.contextmanager
def prepared(http: httpx.Client | httpx.AsyncClient, send: Send) -> Iterator[httpx.Request]:
    """The request, its file open as long as the block lasts."""
    with contextlib.ExitStack() as stack:
        if send.json is not None:
            body = _Body(send.json, stack)
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
    """Sends it until it is answered: again after a lost connection and when the other side is busy. Raises
    AviaryError."""
    for attempt in range(retries + 1):
        wait = min(LONGEST_WAIT_SEC, FIRST_WAIT_SEC * 2**attempt) * random.uniform(0.5, 1)  # noqa: S311
        try:
            response: httpx.Response = yield send
        except (httpx.ConnectTimeout, httpx.PoolTimeout, httpx.NetworkError, httpx.ProtocolError) as error:
            failed = _lost(send, error)
        except httpx.TimeoutException as error:
            if send.method != "GET":  # the other side may still be at work on it
                raise DeadlineExceeded(f"{_host(send)} did not answer in time (the client's timeout)") from error
            failed = _lost(send, error)
        except httpx.HTTPError as error:
            raise _lost(send, error) from error
        else:
            if response.is_success:
                return _json(response)
            failed = problem(response)
            asked = failed.retry_after_sec or 0
            if response.status_code not in _AGAIN or not failed.retryable or asked > LONGEST_RETRY_AFTER_SEC:
                raise failed
            wait = max(wait, asked)
        if attempt < retries:
            yield Wait(wait)
    raise failed


def problem(response: httpx.Response) -> AviaryError:
    """The error that an answer tells of."""
    try:
        told = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        told = None
    shown = told if isinstance(told, str) else response.text[:200] or response.reason_phrase
    body = told if isinstance(told, dict) else {"message": f"{response.status_code} from {response.url.host}: {shown}"}
    return error_of(body, response.status_code, _retry_after(response))


def error_of(body: Mapping[str, Any], status: int = 500, retry_after_sec: float | None = None) -> AviaryError:
    """The error of this `code`, as the worker raised it; of a code nobody knows, the one that is nearest to the
    status."""
    code, message = body.get("code"), str(body.get("message") or "no reason was given")
    kind = _known(AviaryError, code) if isinstance(code, str) else None
    if kind is None:
        kind = _BY_STATUS.get(status, RequestError if status < 500 else InternalError)
    error = kind(message)
    error.status = error.status if kind.code == code else status
    error.code = code if isinstance(code, str) else error.code
    error.param = body.get("param")
    error.retryable = body.get("retryable", status in _AGAIN if kind.code != code else error.retryable)
    error.retry_after_sec = retry_after_sec
    return error


def _known(root: type[AviaryError], code: str) -> type[AviaryError] | None:
    """The class nearest to the root that has this code as its own."""
    level = [root]
    while level:
        for kind in level:
            if vars(kind).get("code") == code and kind is not AviaryError:
                return kind
        level = [sub for kind in level for sub in kind.__subclasses__()]
    return None


def _json(response: httpx.Response) -> Json:
    try:
        answer = response.json()
    except ValueError as error:
        raise InternalError(f"{response.url.host} answered what is not JSON: {response.text[:80]}") from error
    if not isinstance(answer, dict):
        raise InternalError(f"{response.url.host} answered a {type(answer).__name__}, not an object")
    return answer


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, of a header that has seconds or a date."""
    text = response.headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _lost(send: Send, error: Exception) -> AviaryError:
    return ServerUnreachable(f"{_host(send)}: {str(error) or type(error).__name__}")


def _host(send: Send) -> str:
    url = httpx.URL(send.url)
    return f"{url.scheme}://{url.netloc.decode()}"


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """JSON whose uploads are read and encoded as it is sent."""

    def __init__(self, value: Any, stack: contextlib.ExitStack) -> None:
        mark, self._parts = uuid.uuid4().hex, list[bytes | BinaryIO]()
        uploads: list[Upload] = []

        def note(one: Any) -> str:
            if not isinstance(one, Upload):
                raise RequestError(f"{type(one).__name__} is not a value that JSON holds")
            uploads.append(one)
            return f"data:;base64,{mark}"

        texts = json.dumps(value, default=note, allow_nan=False).encode().split(mark.encode())
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
    """Characters of base64 that this many bytes take."""
    return -(-size // 3) * 4
