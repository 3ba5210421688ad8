"""HTTP that cannot be talked into reaching inside: connections to addresses that are not public are refused.

The check is made where the connection is made, on the address that is connected to, so neither a redirect nor a name that
resolves differently the second time gets past it. Proxies and netrc of the environment are not used.
"""
from __future__ import annotations

import ipaddress
import socket
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


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
    made = requests.Session()
    made.trust_env = False
    if not allow_private:
        adapter = _GuardedAdapter()
        made.mount("http://", adapter)
        made.mount("https://", adapter)
    return made


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


class _GuardedHTTP(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self)


class _GuardedHTTPS(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connect(self)


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _GuardedHTTP


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _GuardedHTTPS


class _GuardedAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
