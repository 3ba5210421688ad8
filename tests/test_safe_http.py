"""Addresses that are not public are refused, on the very connection."""

from __future__ import annotations

import socket

import pytest
import requests

from worker.net import safe_http


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
