"""HTTP that cannot be talked into reaching inside: connections to addresses that are not public are refused.

The check is made where the connection is made, on the address that is connected to, so neither a redirect nor a name
that resolves differently the second time gets past it. Proxies and netrc of the environment are not used.

A timeout holds for each read alone, so a server that sends a byte now and then would outlast any: see `watched`. A
redirect's body is never read.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
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

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOOK_SEC = 0.25
_watch = threading.local()


class PrivateAddress(Exception):
    """The host's address is not public."""


def is_public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address is one of the open internet, also where IPv6 carries an IPv4 address inside."""
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def session(*, allow_private: bool) -> requests.Session:
    """A session that connects to public addresses only, or to any. Raises PrivateAddress from its requests."""
    made = _Session()
    made.trust_env = False
    for scheme in ("http://", "https://"):
        made.mount(scheme, _Adapter() if allow_private else _GuardedAdapter())
    return made


@contextlib.contextmanager
def watched(check: Callable[[], None]) -> Iterator[None]:
    """Within the block, `check` is called again and again while this thread reads an answer, its head as well; what it
    raises ends the reading."""
    _watch.check = check
    try:
        yield
    finally:
        _watch.check = None


def _check() -> None:
    check = getattr(_watch, "check", None)
    if check is not None:
        check()


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None ever: requests would read the whole body of one, though it is told not to follow it."""


def _connect(connection: HTTPConnection) -> socket.socket:
    """Connects to the first of the host's addresses that answers; all of them must be public."""
    host, port = connection._dns_host.strip("[]"), connection.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise NameResolutionError(connection.host, connection, socket.gaierror(str(error))) from error
    if not found or any(not is_public(str(address[4][0])) for address in found):
        raise PrivateAddress
    failure: OSError = OSError("no address")
    for family, kind, protocol, _, address in found:
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
    """What a response reads from: the socket; while nothing comes, `check` is called."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw, self._sock = raw, sock  # raw: it keeps the socket open

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        limit = self._sock.gettimeout()
        until = None if limit is None else time.monotonic() + limit
        self._sock.settimeout(_LOOK_SEC if limit is None else min(limit, _LOOK_SEC))
        try:
            while True:
                _check()
                try:
                    return self._sock.recv_into(buffer)
                except TimeoutError:
                    if until is not None and time.monotonic() >= until:
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
