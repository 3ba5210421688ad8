"""HTTP sessions that refuse to connect to private addresses (protection against server-side request forgery).

    session(allow_private=False)    a requests.Session whose connections go to public addresses only
    watch(check)                    `check` runs while a response is awaited or read, and may abort it

The address check runs when the connection is made, on the address that is connected to. Neither a redirect nor a name
that resolves differently the second time gets past the check. Proxies and netrc files from the environment are ignored.

A timeout of requests limits each read on its own, so a server that sends one byte now and then outlasts any timeout;
`watch` enforces an overall deadline. The body of a redirect is never read.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from worker.net.addresses import is_public

_CHECK_EVERY_SEC = 0.25
_watching = threading.local()


class PrivateAddress(Exception):
    """The address of the host is not public."""


def session(*, allow_private: bool) -> requests.Session:
    """Return a session that connects to public addresses only, or to any address if `allow_private`.

    The requests of the session raise PrivateAddress if any address of the host is not public.
    """
    session = _Session()
    session.trust_env = False
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter() if allow_private else _GuardedAdapter())
    return session


@contextlib.contextmanager
def watch(check: Callable[[], None]) -> Iterator[None]:
    """Call `check` every 0.25 s while this thread connects or reads a response within the block.

    An exception that `check` raises aborts the request and propagates.
    """
    _watching.check = check
    try:
        yield
    finally:
        _watching.check = None


def _check() -> None:
    check = getattr(_watching, "check", None)
    if check is not None:
        check()


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None: requests reads the whole body of a redirect, even with `allow_redirects=False`."""


def _connect(connection: HTTPConnection) -> socket.socket:
    """Connect to the first address of the host that accepts. Raises: PrivateAddress unless all of them are public."""
    host, port = connection._dns_host.strip("[]"), connection.port
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise NameResolutionError(connection.host, connection, socket.gaierror(str(error))) from error
    if not addresses or any(not is_public(str(address[4][0])) for address in addresses):
        raise PrivateAddress
    failure: OSError = OSError("no address")
    for family, kind, protocol, _, address in addresses:
        _check()
        sock = socket.socket(family, kind, protocol)
        try:
            for option in connection.socket_options or ():
                sock.setsockopt(*option)
            if isinstance(connection.timeout, int | float):
                sock.settimeout(connection.timeout)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    if isinstance(failure, TimeoutError):
        raise ConnectTimeoutError(connection, f"connecting to {connection.host} timed out") from failure
    raise NewConnectionError(connection, f"connecting to {connection.host} failed") from failure


class _Watched(io.RawIOBase):
    """The byte stream under a response: reads the socket, and calls the watcher's `check` while no data arrives."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw, self._sock = raw, sock  # raw keeps the socket open

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        limit = self._sock.gettimeout()
        deadline = None if limit is None else time.monotonic() + limit
        self._sock.settimeout(_CHECK_EVERY_SEC if limit is None else min(limit, _CHECK_EVERY_SEC))
        try:
            while True:
                _check()
                try:
                    return self._sock.recv_into(buffer)
                except TimeoutError:
                    if deadline is not None and time.monotonic() >= deadline:
                        raise
        finally:
            self._sock.settimeout(limit)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Watched(self.fp.detach(), sock))


class _HTTP(HTTPConnection):
    response_class = _Response


class _HTTPS(HTTPSConnection):
    response_class = _Response


class _GuardedHTTP(_HTTP):
    def _new_conn(self) -> socket.socket:
        return _connect(self)


class _GuardedHTTPS(_HTTPS):
    def _new_conn(self) -> socket.socket:
        return _connect(self)


def _pools(http: type[HTTPConnection], https: type[HTTPSConnection]) -> dict[str, type[HTTPConnectionPool]]:
    return {
        "http": type("_Pool", (HTTPConnectionPool,), {"ConnectionCls": http}),
        "https": type("_Pool", (HTTPSConnectionPool,), {"ConnectionCls": https}),
    }


class _Adapter(HTTPAdapter):
    pools = _pools(_HTTP, _HTTPS)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self.pools


class _GuardedAdapter(_Adapter):
    pools = _pools(_GuardedHTTP, _GuardedHTTPS)
