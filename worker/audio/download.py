"""A URL or an S3 object → a file, with retries, within the limits on size and time.

A failure that may pass (a broken connection, HTTP 429 and 5xx) is tried again, ATTEMPTS times in all, until
FETCH_TIMEOUT_SEC has passed. Redirects are followed by hand, because each must lead to http or https and to an address
that may be read.

Raises SourceForbidden, SourceNotFound, FetchFailed, TooLarge, InputError, DiskFull, Cancelled. A full disk is not tried
again. Messages never hold the query of a URL, which may hold a signature, nor the address that a name resolves to.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, NoReturn, cast
from urllib.parse import urljoin, urlsplit

import requests
import tenacity
from urllib3.exceptions import HTTPError as Urllib3Error

from worker.config import Settings
from worker.errors import Cancelled, FetchFailed, InputError, SourceForbidden, SourceNotFound, TooLarge
from worker.faults import disk_errors
from worker.net import s3, safe_http
from worker.types import Source

ATTEMPTS = 4
REDIRECTS = 5
CONNECT_SEC = 10.0
READ_SEC = 30.0
SLEEP_SEC = 0.2  # how often a pause between attempts checks whether the request was canceled
_NAME_CHARS = 120  # the longest name of a source in a message
_BLOCK_BYTES = 1 << 18
_BACK_OFF = tenacity.wait_exponential_jitter(initial=0.3, max=8, jitter=0.3)


class Downloader:
    """Downloads sources. Thread-safe: each thread has HTTP sessions of its own, which end with the thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._local = threading.local()

    def download(self, source: Source, file: BinaryIO, cancelled: Callable[[], bool]) -> None:
        """Write the bytes of a source of kind "url" or "s3" into the file. `cancelled` may end the download."""
        url, trusted = s3.presign(source, self._settings) if source.kind == "s3" else (source.location, False)
        session = self._session(allow_private=trusted or self._settings.allow_private_urls)
        _Download(self._settings, session, source, url, file, cancelled).run()

    def _session(self, *, allow_private: bool) -> requests.Session:
        name = f"session_{allow_private}"
        if not hasattr(self._local, name):
            setattr(self._local, name, safe_http.session(allow_private=allow_private))
        return cast(requests.Session, getattr(self._local, name))


class _Download:
    """One download. `url` is where it starts: for an S3 object, the presigned URL."""

    def __init__(
        self,
        settings: Settings,
        session: requests.Session,
        source: Source,
        url: str,
        file: BinaryIO,
        cancelled: Callable[[], bool],
    ) -> None:
        self._settings, self._session, self._source = settings, session, source
        self._url, self._file, self._cancelled = url, file, cancelled
        self._name = _printable(source.location)
        self._deadline = time.monotonic() + settings.fetch_timeout_sec
        self._regions: set[str] = set()  # the regions of S3 that this attempt was sent to

    def run(self) -> None:
        """Download into the file, in several attempts if necessary."""
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, _RetryableError)),
            reraise=True,
            sleep=self._sleep,
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=_pause,
        )
        try:
            for attempt in attempts:
                with attempt:
                    self._attempt()
        except _RetryableError as error:
            raise FetchFailed(str(error)) from error

    def _attempt(self) -> None:
        """Follow the redirects and save the body. Raises _RetryableError if another attempt may help."""
        with disk_errors():
            self._file.seek(0)
            self._file.truncate()
        self._regions.clear()
        url = self._url
        for _ in range(REDIRECTS + 1):
            target = self._get(url)
            if target is None:
                return
            url = target
        raise FetchFailed(f"{self._name} redirects more than {REDIRECTS} times", retryable=False)

    def _get(self, url: str) -> str | None:
        """Save the body of the response; or return the URL to which the response redirects."""
        self._check()
        left = max(0.1, self._deadline - time.monotonic())
        try:
            if urlsplit(url).scheme not in ("http", "https"):
                raise SourceForbidden(f"{self._name} redirects to a URL that is not http or https")
            with (
                safe_http.watch(self._check),
                self._session.get(
                    url,
                    stream=True,
                    allow_redirects=False,
                    headers={"Accept-Encoding": "identity"},
                    timeout=(min(CONNECT_SEC, left), min(READ_SEC, left)),
                ) as response,
            ):
                target = self._redirect(url, response)
                if target is None:
                    self._raise_for_status(response)
                    self._save(response)
                return target
        except safe_http.PrivateAddress as error:
            raise SourceForbidden(
                f"{self._name} leads to an address that is not public (ALLOW_PRIVATE_URLS)"
            ) from error
        except requests.exceptions.SSLError as error:
            raise FetchFailed(f"{self._name} has no valid certificate", retryable=False) from error
        except ValueError as error:  # of requests, urllib and the encoding of host names
            raise FetchFailed(f"{self._name} is not a valid URL", retryable=False) from error
        except (requests.exceptions.RequestException, Urllib3Error, OSError) as error:
            self._check()
            raise _RetryableError(f"{self._name} could not be read: {_reason(error)}") from error

    def _redirect(self, url: str, response: requests.Response) -> str | None:
        """Return the URL to which the response redirects; for S3, the URL signed for the bucket's own region."""
        region = response.headers.get("x-amz-bucket-region")
        may_be_elsewhere = self._source.kind == "s3" and response.status_code in (301, 307, 400)
        if may_be_elsewhere and region and region not in self._regions:
            self._regions.add(region)
            return s3.presign(self._source, self._settings, region=region).url
        if response.status_code in (301, 302, 303, 307, 308) and "location" in response.headers:
            return urljoin(url, response.headers["location"])
        return None

    def _raise_for_status(self, response: requests.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        if status in (404, 410):
            raise SourceNotFound(f"{self._name} does not exist (HTTP {status})")
        message = f"the server of {self._name} responded with HTTP {status}"
        if status != 429 and status < 500:
            raise FetchFailed(message, retryable=False)
        after_sec: float | None = None
        with contextlib.suppress(KeyError, ValueError):
            after_sec = max(0.0, float(response.headers["retry-after"]))
        raise _RetryableError(message, after_sec)

    def _save(self, response: requests.Response) -> None:
        length = response.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._settings.max_audio_bytes:
            raise_too_large(self._settings)
        total = 0
        while block := response.raw.read1(_BLOCK_BYTES, decode_content=True):
            total += len(block)
            if total > self._settings.max_audio_bytes:
                raise_too_large(self._settings)
            with disk_errors():
                self._file.write(block)
        if length.isdigit() and not response.headers.get("content-encoding") and total < int(length):
            raise _RetryableError(f"{self._name} ended after {total} of {length} bytes")

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._check()
            time.sleep(min(SLEEP_SEC, left))

    def _check(self) -> None:
        """Raise Cancelled or FetchFailed if the download must end."""
        if self._cancelled():
            raise Cancelled("the request was canceled during the download")
        if time.monotonic() > self._deadline:
            allowed_sec = self._settings.fetch_timeout_sec
            raise FetchFailed(f"{self._name} took longer than {allowed_sec:g} s (FETCH_TIMEOUT_SEC)")


class _RetryableError(Exception):
    """A failure that may pass. `after_sec`: the pause that the server asks for."""

    def __init__(self, message: str, after_sec: float | None = None) -> None:
        super().__init__(message)
        self.after_sec = after_sec


def raise_too_large(settings: Settings) -> NoReturn:
    """Raise TooLarge for a file of more than MAX_AUDIO_BYTES."""
    raise TooLarge(f"larger than the {settings.max_audio_bytes} bytes allowed (MAX_AUDIO_BYTES)")


def _pause(state: tenacity.RetryCallState) -> float:
    """Return the seconds until the next attempt."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _RetryableError) and error.after_sec is not None:
        return error.after_sec
    return _BACK_OFF(state)


def _printable(location: str) -> str:
    """Return the URL as messages show it: without user, query and fragment, and shortened."""
    try:
        parts = urlsplit(location)
        name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError as error:
        raise InputError("not a valid URL", param="source") from error
    return name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS - 3] + "..."


def _reason(error: Exception) -> str:
    text = str(error)
    if "NameResolution" in text or "getaddrinfo" in text:
        return "the host is unknown"
    if isinstance(error, requests.exceptions.Timeout | TimeoutError) or "timed out" in text:
        return "the server did not respond in time"
    if isinstance(error, requests.exceptions.ConnectionError) and "NewConnection" in text:
        return "no server listens at this address"
    return "the connection broke"
