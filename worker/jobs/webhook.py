"""Webhooks: a finished job's status, POSTed to the address that its submitter gave.

A delivery is tried ATTEMPTS times, with growing waits between; what the other side refuses for good (4xx but 408 and
429,
or a redirect) is not tried again. Its failure changes nothing about the job. Deliveries are kept in the store until
they are over, so a restart loses none; a process killed between the other side's answer and its own note of it delivers
twice, which the job's id in the body tells. With a secret, the header

    X-Aviary-Signature: t=<seconds since 1970>,v1=<hex HMAC-SHA256 of "<t>.<body>">

says that the body is ours and when it was sent. Addresses are guarded like those of inputs: see
worker/net/safe_http.py.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests
import tenacity
from tenacity.wait import wait_base
from urllib3.exceptions import HTTPError as Urllib3Error

from worker.errors import RequestError, StoreError
from worker.jobs.records import Job
from worker.jobs.store import JobStore
from worker.net import safe_http

log = logging.getLogger(__name__)

ATTEMPTS = 5
TIMEOUT_SEC = (5.0, 10.0)  # to connect, and for the answer; both together are what a try may take
HOLD_SEC = 180.0  # a delivery that took longer was lost with its process: longer than all attempts and waits
POLL_SEC = 5.0
MAX_URL_CHARS = 2048

_BACK_OFF = tenacity.wait_exponential_jitter(initial=1, max=30, jitter=1)


def check(url: Any, *, allow_private: bool) -> str:
    """The URL, if a webhook may be sent there as far as its text tells. Raises RequestError otherwise."""
    if not isinstance(url, str) or len(url) > MAX_URL_CHARS or not url.isascii() or not url.isprintable() or " " in url:
        raise RequestError(
            f"webhook must be a URL of printable ASCII, at most {MAX_URL_CHARS} characters", param="webhook"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port == 0 or parts.scheme not in ("http", "https"):
        raise RequestError("webhook must be an http or https URL with a host", param="webhook")
    if not allow_private and _surely_private(host):
        raise RequestError("webhook leads to an address that is not public (ALLOW_PRIVATE_URLS)", param="webhook")
    return url


def sign(secret: str, body: bytes, at: int) -> str:
    """The signature header's value for a body sent at that second."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


class Webhooks:
    """Delivers what is due, on threads of its own. `shape` makes the body of a job; `wait` is tenacity's, between
    tries."""

    def __init__(
        self,
        store: JobStore,
        *,
        secret: str | None = None,
        allow_private: bool = False,
        shape: Callable[[Job], dict[str, Any]] = Job.status,
        threads: int = 4,
        wait: wait_base = _BACK_OFF,
    ) -> None:
        self.allow_private = allow_private
        self._store, self._secret, self._shape, self._wait = store, secret, shape, wait
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._due = True
        self._threads = [threading.Thread(target=self._live, name=f"webhook-{i}", daemon=True) for i in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Something may be due: it is looked for at once."""
        with self._changed:
            self._due = True
            self._changed.notify()

    def stop(self) -> None:
        """Gives up waiting between tries; what was not delivered is left to the next process."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        until = time.monotonic() + sum(TIMEOUT_SEC)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=max(0.0, until - time.monotonic()))

    def _live(self) -> None:
        while not self._stopping.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._stopping.is_set(), POLL_SEC)
                self._due = False
            try:
                self._next()
            except StoreError as error:
                log.warning("webhooks wait: %s", error)
            except Exception:
                log.exception("a webhook failed")

    def _next(self) -> None:
        for job in self._store.webhooks_due(HOLD_SEC):
            self.wake()  # there may be more, for this thread or another
            self._store.webhook_over(job.id, again=not self._deliver(job))

    def _deliver(self, job: Job) -> bool:
        """Whether the delivery is over: done, or given up."""
        host = urlsplit(str(job.webhook)).hostname
        body = json.dumps(self._shape(job)).encode()
        trying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Redeliver),
            reraise=True,
            wait=self._wait,
            sleep=tenacity.sleep_using_event(self._stopping),
            stop=tenacity.stop_any(tenacity.stop_after_attempt(ATTEMPTS), tenacity.stop_when_event_set(self._stopping)),
        )
        try:
            trying(self._post, str(job.webhook), body)
        except _Redeliver as error:
            if self._stopping.is_set():
                return False
            log.warning("job %s: its webhook at %s was given up: %s", job.id, host, error)
        except _Rejected as error:
            log.warning("job %s: its webhook at %s was refused: %s", job.id, host, error)
        return True

    def _post(self, url: str, body: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "aviary"}
        if self._secret:
            headers["X-Aviary-Signature"] = sign(self._secret, body, int(time.time()))
        try:
            with (
                safe_http.watch(_until(time.monotonic() + sum(TIMEOUT_SEC))),
                safe_http.session(allow_private=self.allow_private) as session,
                session.post(
                    url, data=body, headers=headers, timeout=TIMEOUT_SEC, allow_redirects=False, stream=True
                ) as response,
            ):  # its answer's body is not read
                status = response.status_code
        except safe_http.PrivateAddress as error:
            raise _Rejected("its address is not public (ALLOW_PRIVATE_URLS)") from error
        except (requests.exceptions.InvalidURL, UnicodeError) as error:
            raise _Rejected("it is not a valid URL") from error
        except (requests.exceptions.RequestException, Urllib3Error, OSError) as error:
            raise _Redeliver(type(error).__name__) from error
        if status >= 500 or status in (408, 429):
            raise _Redeliver(f"HTTP {status}")
        if status >= 300:
            raise _Rejected(f"HTTP {status}")


class _Redeliver(Exception):
    """Another try may help."""


class _Rejected(Exception):
    """No other try will help."""


def _until(deadline: float) -> Callable[[], None]:
    def check() -> None:
        if time.monotonic() > deadline:
            raise _Redeliver("too slow")

    return check


def _surely_private(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return not safe_http.is_public(str(ipaddress.ip_address(host)))
    except ValueError:
        return False  # a name: what it resolves to is checked on the connection
