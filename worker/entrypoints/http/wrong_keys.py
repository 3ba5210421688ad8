"""A limit on guesses at the API key: wrong keys are counted by address, in bounded memory.

    wait_sec(address, key)     for how long the server refuses to compare this key
    note(address, key, …)      count a key that was compared

Once an address has sent MOST wrong keys within WINDOW_SEC, only keys that matched from this address before are compared
until the window ends. A client that guesses keys from behind a proxy therefore locks out no client that is behind the
same proxy and has the key. An IPv6 address stands for its /64 network, because a client may pick any address of it.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from typing import TypeVar

MOST, WINDOW_SEC = 20, 60.0
REMEMBERED = 10_000  # addresses with wrong keys, and addresses with right keys; beyond that, the oldest is forgotten

Name = TypeVar("Name")
Value = TypeVar("Value")


class WrongKeys:
    """The counts of one server. For one event loop."""

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, tuple[float, int]] = OrderedDict()  # the end of the window, the keys in it
        self._right: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def wait_sec(self, address: str, key: bytes) -> float:
        """Return the seconds until the key may be compared: 0 if it may be compared now."""
        network = _network(address)
        end, count = self._wrong.get(network, (0.0, 0))
        if count < MOST or (network, key) in self._right:
            return 0.0
        return max(0.0, end - time.monotonic())

    def note(self, address: str, key: bytes, *, right: bool) -> None:
        """Count a key that was compared. `right`: whether the key matched."""
        network, now = _network(address), time.monotonic()
        if right:
            _remember(self._right, (network, key), None)
            return
        end, count = self._wrong.get(network, (0.0, 0))
        _remember(self._wrong, network, (end, count + 1) if now < end else (now + WINDOW_SEC, 1))


def _network(address: str) -> str:
    """Return the /64 network of an IPv6 address; return any other address unchanged."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address) or found.ipv4_mapped is not None:
        return address
    return str(ipaddress.IPv6Network((int(found), 64), strict=False))


def _remember(entries: OrderedDict[Name, Value], name: Name, value: Value) -> None:
    entries[name] = value
    entries.move_to_end(name)
    if len(entries) > REMEMBERED:
        entries.popitem(last=False)
