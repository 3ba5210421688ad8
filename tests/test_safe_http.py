"""Addresses that are not public are refused, on the very connection."""

from __future__ import annotations

import ipaddress
import socket

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from worker.net import safe_http

PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2002:a00:1::",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "192.0.2.1",
    "198.18.0.1",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private(address):
    assert not safe_http.is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public(address):
    assert safe_http.is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_however_ipv6_carries_it(address):
    mapped = f"::ffff:{address}"
    nat64 = str(ipaddress.IPv6Address(int(ipaddress.ip_address("64:ff9b::")) + int(address)))
    assert safe_http.is_public(mapped) == safe_http.is_public(nat64) == safe_http.is_public(str(address))


def listening() -> socket.socket:
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.2)
    return server


def never_reached(server: socket.socket) -> bool:
    try:
        server.accept()
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "2130706433", "0.0.0.0"])
def test_loopback_is_refused_however_it_is_written(host):
    with listening() as server, safe_http.session(allow_private=False) as session:
        with pytest.raises(safe_http.PrivateAddress):
            session.get(f"http://{host}:{server.getsockname()[1]}/", timeout=2)
        assert never_reached(server)


def test_the_address_checked_is_the_one_connected_to(monkeypatch):
    """A name that is public when first asked and private when asked again is asked once only."""
    asked = []
    with listening() as server:
        port = server.getsockname()[1]

        def rebinding(*_args, **_kwargs):
            asked.append(1)
            address = "8.8.8.8" if len(asked) == 1 else "127.0.0.1"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        def unreachable(_self, address):
            connected.append(address)
            raise OSError

        connected = []
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        monkeypatch.setattr(socket.socket, "connect", unreachable)
        with safe_http.session(allow_private=False) as session, pytest.raises(requests.ConnectionError):
            session.get(f"http://rebind.example:{port}/", timeout=2)
    assert connected == [("8.8.8.8", port)]
    assert len(asked) == 1


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch):
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_a, **_k: [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")
        ],
    )
    with safe_http.session(allow_private=False) as session, pytest.raises(safe_http.PrivateAddress):
        session.get("http://mixed.example/", timeout=2)


def test_the_environment_s_proxy_is_not_used(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with safe_http.session(allow_private=False) as session:
        assert not session.trust_env
