"""The sockets of a server process: a private Unix socket, a TCP address that others share, ports of its own."""

from __future__ import annotations

import socket
from pathlib import Path

from worker.errors import ConfigError

DRAIN_SEC = 30  # how long a server that is shutting down may take to finish its accepted requests


def bind(uds: Path | None, shared: tuple[str, int] | None) -> list[socket.socket] | None:
    """Return the bound sockets to serve on, or None if uvicorn is to bind HOST and PORT itself.

    Raises ConfigError if the Unix socket `uds` cannot be claimed.
    """
    if uds is None:
        return None
    private = socket.socket(socket.AF_UNIX)
    claim(uds)
    private.bind(str(uds))
    return [private] + ([bind_shared(*shared)] if shared else [])


def claim(uds: Path) -> None:
    """Remove a stale Unix socket. Raises ConfigError if a server listens on it or the path cannot be used."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(uds))
        except (ConnectionRefusedError, FileNotFoundError):
            remove(uds)
            return
        except (TimeoutError, BlockingIOError):
            pass  # a server listens, and its backlog is full
        except OSError as error:
            raise ConfigError(f"cannot serve on {uds}: {error.strerror or error}") from None
    raise ConfigError(f"another server is listening on {uds}. Stop it or choose another path.")


def remove(uds: Path) -> None:
    """Remove the file if it is a Unix socket."""
    if uds.is_socket():
        uds.unlink()


def bind_shared(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address that other processes bind to as well (SO_REUSEPORT)."""
    return _bind(host, port, socket.SO_REUSEADDR, socket.SO_REUSEPORT)


def bind_ports(host: str, *ports: int) -> list[socket.socket]:
    """Return a socket bound to each port. Raises ConfigError if a port cannot be bound."""
    bound: list[socket.socket] = []
    for port in ports:
        try:
            bound.append(_bind(host, port, socket.SO_REUSEADDR))
        except OSError as error:
            for other in bound:
                other.close()
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another PORT or PORT_HEALTH."
            ) from None
    return bound


def _bind(host: str, port: int, *options: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        for option in options:
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
