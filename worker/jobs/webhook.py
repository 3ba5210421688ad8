"""Webhooks: POST a finished job's status to the URL that its submitter gave.

    job ended ──▶ store: the webhook is due ──▶ POST, up to ATTEMPTS times ──▶ store: the delivery is over

The pauses between attempts grow. A permanent refusal (a redirect, or a 4xx status except 408 and 429) is not retried.
A failed delivery does not change the job. The store keeps deliveries until they are over, so a restart loses none. A
process that is killed between the response and its own note of it delivers twice; receivers recognize the repetition by
the job's id in the body. With a secret, the header

    X-Aviary-Signature: t=<seconds since 1970>,v1=<hex HMAC-SHA256 of "<t>.<body>">

proves the origin of the body and the time of sending. Addresses are checked like those of inputs; see
`worker.net.safe_http`.
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
from worker.net.addresses import is_public

log = logging.getLogger(__name__)

ATTEMPTS = 5
TIMEOUT_SEC = (5.0, 10.0)  # to connect, and for the response; their sum limits one attempt
HOLD_SEC = 180.0  # how long a delivery is reserved for one process; longer than all attempts and pauses
POLL_SEC = 5.0
MAX_URL_CHARS = 2048

_BACK_OFF = tenacity.wait_exponential_jitter(initial=1, max=30, jitter=1)


def check(url: Any, *, allow_private: bool) -> str:
    """Return the URL of a webhook if its text is acceptable. The address is checked again on each connection.

    Raises: RequestError if it is not an http(s) URL, or if its host is a private address and `allow_private` is False.
    """
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
    if not allow_private and _is_private(host):
        raise RequestError("the address of webhook is not public (ALLOW_PRIVATE_URLS)", param="webhook")
    return url


def sign(secret: str, body: bytes, at: int) -> str:
    """Return the value of X-Aviary-Signature for a body that is sent `at` seconds since 1970."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


class Webhooks:
    """Delivers the webhooks that are due, on its own threads.

    Args:
        store: The jobs.
        secret: The key of the signature; without one, deliveries are not signed.
        allow_private: Whether webhooks may go to private addresses.
        shape: Returns the body for a job, as JSON.
        threads: The number of deliveries at a time.
        wait: The pause between attempts, as one of tenacity's wait strategies.
    """

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
        self._threads = [threading.Thread(target=self._loop, name=f"webhook-{i}", daemon=True) for i in range(threads)]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Check for due webhooks at once; call this when a job has ended."""
        with self._changed:
            self._due = True
            self._changed.notify()

    def stop(self) -> None:
        """Stop without further attempts. Another process, or the next start, delivers the remaining webhooks."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        until = time.monotonic() + sum(TIMEOUT_SEC)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=max(0.0, until - time.monotonic()))

    def _loop(self) -> None:
        while not self._stopping.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._stopping.is_set(), POLL_SEC)
                self._due = False
            try:
                self._deliver_next()
            except StoreError as error:
                log.warning("no webhook is delivered: %s", error)
            except Exception:
                log.exception("the delivery of a webhook failed")

    def _deliver_next(self) -> None:
        for job in self._store.webhooks_due(HOLD_SEC):
            self.wake()  # this or another thread checks for the next one
            self._store.webhook_over(job.id, again=not self._deliver(job))

    def _deliver(self, job: Job) -> bool:
        """Send a job's webhook. Return whether the delivery is over: it succeeded, or no attempt is left."""
        host = urlsplit(str(job.webhook)).hostname
        body = json.dumps(self._shape(job)).encode()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Redeliver),
            reraise=True,
            wait=self._wait,
            sleep=tenacity.sleep_using_event(self._stopping),
            stop=tenacity.stop_any(tenacity.stop_after_attempt(ATTEMPTS), tenacity.stop_when_event_set(self._stopping)),
        )
        try:
            retrying(self._post, str(job.webhook), body)
        except _Redeliver as error:
            if self._stopping.is_set():
                return False
            log.warning("job %s: the webhook to %s failed %d times: %s", job.id, host, ATTEMPTS, error)
        except _Rejected as error:
            log.warning("job %s: the webhook to %s was rejected: %s", job.id, host, error)
        return True

    def _post(self, url: str, body: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "aviary"}
        if self._secret:
            headers["X-Aviary-Signature"] = sign(self._secret, body, int(time.time()))
        try:
            with (
                safe_http.watch(_deadline(time.monotonic() + sum(TIMEOUT_SEC))),
                safe_http.session(allow_private=self.allow_private) as session,
                session.post(
                    url, data=body, headers=headers, timeout=TIMEOUT_SEC, allow_redirects=False, stream=True
                ) as response,
            ):  # the body of the response is not read
                status = response.status_code
        except safe_http.PrivateAddress as error:
            raise _Rejected("the address is not public (ALLOW_PRIVATE_URLS)") from error
        except (requests.exceptions.InvalidURL, UnicodeError) as error:
            raise _Rejected("the URL is not valid") from error
        except (requests.exceptions.RequestException, Urllib3Error, OSError) as error:
            raise _Redeliver(type(error).__name__) from error
        if status >= 500 or status in (408, 429):
            raise _Redeliver(f"HTTP {status}")
        if status >= 300:
            raise _Rejected(f"HTTP {status}")


class _Redeliver(Exception):
    """Another attempt may succeed."""


class _Rejected(Exception):
    """No further attempt can succeed."""


def _deadline(deadline: float) -> Callable[[], None]:
    """Return a check that raises once the deadline (monotonic clock) has passed."""

    def check() -> None:
        if time.monotonic() > deadline:
            raise _Redeliver("no response in time")

    return check


def _is_private(host: str) -> bool:
    """Return whether the host is known to be private from its text alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return not is_public(str(ipaddress.ip_address(host)))
    except ValueError:
        return False  # a name, which is resolved and checked on each connection
