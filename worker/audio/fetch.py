"""Source → an open file: the bytes of a URL, an S3 object, a path or a data: URI, within the limits, leaving nothing
behind.

What is downloaded goes through a temporary file that has no name from the start, so that even a killed worker leaves
nothing on disk. Raises SourceForbidden, SourceNotFound, FetchFailed, TooLarge, DecodeFailed (a data: URI that is none),
EmptyAudio, Cancelled. Messages never carry a URL's query, where signatures are, nor the address a name resolved to.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import io
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast
from urllib.parse import unquote, unquote_to_bytes, urljoin, urlsplit

import requests
import tenacity
from urllib3.exceptions import HTTPError as Urllib3Error

from worker.config import Settings
from worker.errors import (
    Cancelled,
    DecodeFailed,
    EmptyAudio,
    FetchFailed,
    InputError,
    SourceForbidden,
    SourceNotFound,
    TooLarge,
)
from worker.net import s3, safe_http
from worker.types import Source

ATTEMPTS = 4
REDIRECTS = 5
CONNECT_SEC = 10.0
READ_SEC = 30.0
_CHUNK = 1 << 18
_FILES = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else None  # the open files by their numbers; Linux


class Fetcher:
    """Opens sources; thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._local = threading.local()

    def open(self, source: Source, *, cancelled: Callable[[], bool] = lambda: False) -> BinaryIO:
        """An open, seekable, regular file at position 0 that holds the source's bytes. The caller closes it."""
        if source.kind == "path":
            return self._path(source)
        if source.kind == "file":
            return self._again(source)
        file = self._temporary()
        try:
            if source.kind == "data":
                self._data(source, file)
            else:
                self._download(source, file, cancelled)
            if not file.tell():
                raise EmptyAudio("holds no bytes")
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def close(self) -> None:
        """Sessions end with the threads that made them; nothing else is held."""

    def _temporary(self) -> BinaryIO:
        self._settings.make_data_dir()
        return cast(BinaryIO, tempfile.TemporaryFile(dir=self._settings.data_dir))

    def _session(self, *, allow_private: bool) -> requests.Session:
        name = f"session_{allow_private}"
        if not hasattr(self._local, name):
            setattr(self._local, name, safe_http.session(allow_private=allow_private))
        return cast(requests.Session, getattr(self._local, name))

    def _again(self, source: Source) -> BinaryIO:
        """A door's open file, opened anew: the door may close its own meanwhile, and others read it at the same
        time."""
        assert source.file is not None
        file: io.BytesIO | io.FileIO
        try:
            if isinstance(source.file, io.BytesIO):
                file = io.BytesIO(source.file.getvalue())  # shares the bytes
            else:
                held = source.file.fileno()
                file = io.FileIO(
                    os.dup(held) if _FILES is None else os.open(f"{_FILES}/{held}", os.O_RDONLY | os.O_CLOEXEC)
                )
        except (OSError, ValueError) as error:
            raise Cancelled("the upload is gone") from error
        if not file.seek(0, os.SEEK_END):
            file.close()
            raise EmptyAudio("holds no bytes")
        file.seek(0)
        return cast(BinaryIO, file)

    # Paths

    def _path(self, source: Source) -> BinaryIO:
        text = source.location
        if text[:5].lower() == "file:":
            text = unquote(urlsplit(text).path)
        if "\0" in text:
            raise SourceNotFound("no such file")
        if not source.trusted:
            check_allowed(Path(text), self._settings)
        try:
            descriptor = os.open(text, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SourceNotFound(f"no such file: {text}") from error
        except OSError as error:
            raise FetchFailed(f"cannot read {text}: {error.strerror}", retryable=False) from error
        try:
            if _FILES is not None and not source.trusted:  # what was opened, whatever became of the path
                _check_real(Path(os.readlink(f"{_FILES}/{descriptor}")), Path(text), self._settings)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SourceForbidden(f"not a regular file: {text}")
            if status.st_size > self._settings.max_audio_bytes:
                self._too_large()
            if status.st_size == 0:
                raise EmptyAudio("holds no bytes")
        except BaseException:
            os.close(descriptor)
            raise
        return cast(BinaryIO, io.FileIO(descriptor))

    # data: URIs

    def _data(self, source: Source, file: BinaryIO) -> None:
        head, comma, body = source.location.partition(",")
        if not comma:
            raise DecodeFailed("a data: URI has a comma before its data")
        if len(body) > self._settings.max_audio_bytes * 4 // 3 + 4:
            self._too_large()
        if not head.lower().endswith(";base64"):
            file.write(unquote_to_bytes(body))
            return
        text = "".join(unquote(body).split()).replace("-", "+").replace("_", "/").rstrip("=")
        try:
            file.write(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
        except (binascii.Error, ValueError) as error:
            raise DecodeFailed("the data is not base64") from error

    # Downloads

    def _download(self, source: Source, file: BinaryIO, cancelled: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._settings.fetch_timeout_sec
        url, trusted = source.location, False
        if source.kind == "s3":
            url, trusted = s3.presign(source, self._settings)
        allow_private = trusted or self._settings.allow_private_urls
        name = _name(source.location)

        def sleep(seconds: float) -> None:
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                _check(cancelled, deadline, self._settings.fetch_timeout_sec, name)
                time.sleep(min(0.2, left))

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, _Refetch)),
            reraise=True,
            sleep=sleep,
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=_wait,
        )
        try:
            for attempt in retrying:
                with attempt:
                    file.seek(0)
                    file.truncate()
                    self._attempt(source, url, name, file, allow_private, deadline, cancelled)
        except _Refetch as error:
            raise FetchFailed(str(error)) from error

    def _attempt(
        self,
        source: Source,
        url: str,
        name: str,
        file: BinaryIO,
        allow_private: bool,
        deadline: float,
        cancelled: Callable[[], bool],
    ) -> None:
        """One try, redirects followed. Raises _Again where another try may help."""
        session = self._session(allow_private=allow_private)
        regions: set[str] = set()
        for _ in range(REDIRECTS + 1):
            _check(cancelled, deadline, self._settings.fetch_timeout_sec, name)
            if urlsplit(url).scheme not in ("http", "https"):
                raise SourceForbidden(f"{name} redirects to something that is not http or https")
            left = max(0.1, deadline - time.monotonic())
            try:
                with (
                    safe_http.watch(lambda: _check(cancelled, deadline, self._settings.fetch_timeout_sec, name)),
                    session.get(
                        url,
                        stream=True,
                        allow_redirects=False,
                        headers={"Accept-Encoding": "identity"},
                        timeout=(min(CONNECT_SEC, left), min(READ_SEC, left)),
                    ) as response,
                ):
                    region = response.headers.get("x-amz-bucket-region")
                    if (
                        source.kind == "s3"
                        and response.status_code in (301, 307, 400)
                        and region
                        and region not in regions
                    ):
                        regions.add(region)
                        url = s3.presign(source, self._settings, region=region).url
                    elif response.status_code in (301, 302, 303, 307, 308) and "location" in response.headers:
                        url = urljoin(url, response.headers["location"])
                    else:
                        _raise_for(response, name)
                        self._save(response, file, name)
                        return
            except safe_http.PrivateAddress as error:
                raise SourceForbidden(f"{name} leads to an address that is not public (ALLOW_PRIVATE_URLS)") from error
            except requests.exceptions.SSLError as error:
                raise FetchFailed(f"{name} has no valid certificate", retryable=False) from error
            except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, UnicodeError) as error:
                raise FetchFailed(f"{name} is not a valid URL", retryable=False) from error
            except (requests.exceptions.RequestException, Urllib3Error, OSError) as error:
                _check(cancelled, deadline, self._settings.fetch_timeout_sec, name)
                raise _Refetch(f"{name} could not be read: {_kind(error)}") from error
        raise FetchFailed(f"{name} redirects more than {REDIRECTS} times", retryable=False)

    def _save(self, response: requests.Response, file: BinaryIO, name: str) -> None:
        limit = self._settings.max_audio_bytes
        length = response.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            self._too_large()
        total = 0
        while block := response.raw.read1(_CHUNK, decode_content=True):
            total += len(block)
            if total > limit:
                self._too_large()
            file.write(block)
        if length.isdigit() and not response.headers.get("content-encoding") and total < int(length):
            raise _Refetch(f"{name} broke off after {total} of {length} bytes")

    def _too_large(self) -> NoReturn:
        raise TooLarge(f"larger than the {self._settings.max_audio_bytes} bytes allowed (MAX_AUDIO_BYTES)")


class _Refetch(Exception):
    """A failure that may pass. `after`: seconds the server asked to wait."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


_BACK_OFF = tenacity.wait_exponential_jitter(initial=0.3, max=8, jitter=0.3)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.after if isinstance(error, _Refetch) else None
    return asked if asked is not None else _BACK_OFF(state)


def _raise_for(response: requests.Response, name: str) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in (404, 410):
        raise SourceNotFound(f"{name} does not exist (HTTP {status})")
    if status == 429 or status >= 500:
        after: float | None = None
        with contextlib.suppress(KeyError, ValueError):
            after = max(0.0, float(response.headers["retry-after"]))
        raise _Refetch(f"{name} answered HTTP {status}", after)
    raise FetchFailed(f"{name} answered HTTP {status}", retryable=False)


def _check(cancelled: Callable[[], bool], deadline: float, allowed_sec: float, name: str) -> None:
    if cancelled():
        raise Cancelled("cancelled while fetching")
    if time.monotonic() > deadline:
        raise FetchFailed(f"{name} took longer than {allowed_sec:g} s (FETCH_TIMEOUT_SEC)")


def _name(location: str) -> str:
    """The location as it may be shown: without user, query and fragment, and not too long."""
    try:
        parts = urlsplit(location)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError as error:
        raise InputError("not a valid URL", param="source") from error
    return shown if len(shown) <= 120 else shown[:117] + "..."


def _kind(error: Any) -> str:
    text = str(error)
    if "NameResolution" in text or "getaddrinfo" in text:
        return "its host is unknown"
    if isinstance(error, requests.exceptions.Timeout | TimeoutError) or "timed out" in text:
        return "it timed out"
    if isinstance(error, requests.exceptions.ConnectionError) and "NewConnection" in text:
        return "nothing answers there"
    return "the connection broke"


def check_allowed(path: Path, settings: Settings) -> None:
    """Raises SourceForbidden for a path that leads out of ALLOWED_PATHS, by whatever links."""
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError):
        real = os.sep  # no path at all
    _check_real(Path(real), path, settings)


def _check_real(real: Path, path: Path, settings: Settings) -> None:
    """The same for a path whose links are followed already."""
    for _ in range(2):
        if any(real.is_relative_to(_real(folder)) for folder in settings.allowed_paths):
            return
        _real.cache_clear()  # a folder may be a link that leads elsewhere by now
    raise SourceForbidden(f"{path} is outside the folders this worker may read (ALLOWED_PATHS)")


@functools.lru_cache(maxsize=256)
def _real(folder: Path) -> Path:
    """Kept: to follow it anew for each file takes longer than to open the file."""
    return folder.resolve()
