"""Which IP addresses belong to the public internet, by a table of Aviary's own.

The `ipaddress` module knows other special addresses in each version of Python, so the answer does not depend on it. The
tables follow IANA's registries: IPv4 and IPv6 special-purpose addresses (RFC 6890), IPv4 multicast, and the global
unicast space of IPv6 (2000::/3), outside which IANA has allocated no address to a host. A block in which only some
services of the network itself are reachable, such as 192.0.0.0/24, is not public.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_NOT_PUBLIC_V4 = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared between a provider and its customers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, with the metadata services of clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments, with another metadata service
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4, deprecated
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, with the broadcast address
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
    )
)
# Blocks of IPv6 that stand for IPv4, and by how many bits the IPv4 address is shifted in them.
_CARRIERS = (
    (IPv6Network("::ffff:0:0/96"), 0),  # mapped
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (IPv6Network("2002::/16"), 80),  # 6to4
)


def is_public(address: str) -> bool:
    """Return whether an IPv4 or IPv6 address belongs to the public internet.

    An IPv4 address inside an IPv6 address (mapped, NAT64, 6to4) is judged as the IPv4 address. Raises: ValueError if
    `address` is not an IP address.
    """
    ip = ip_address(address.split("%", 1)[0])
    if isinstance(ip, IPv6Address):
        inner = _inner(ip)
        if inner is None:
            return ip in _GLOBAL_UNICAST and not any(ip in block for block in _NOT_PUBLIC_V6)
        ip = inner
    return not any(ip in block for block in _NOT_PUBLIC_V4)


def _inner(ip: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that an IPv6 address stands for, if it does."""
    for block, shift in _CARRIERS:
        if ip in block:
            return IPv4Address(int(ip) >> shift & 0xFFFFFFFF)
    return None
