"""Which addresses are public: each special block, and nothing that this Python counts as special."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.net import addresses
from worker.net.addresses import is_public

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
    "192.0.0.192",
    "192.0.0.8",
    "192.88.99.1",
    "198.19.255.255",
    "100.127.255.255",
    "203.0.113.9",
    "fec0::1",
    "3fff::1",
    "3fff:fff:ffff::1",
    "5f00::1",
    "100::1",
    "100:0:0:1::1",
    "2001:2::1",
    "2001:10::1",
    "2001:1ff:ffff::1",
    "64:ff9b:1::808:808",
    "64:ff9b::6440:1",
    "::ffff:0:8.8.8.8",
    "::8.8.8.8",
    "4000::1",
    "2002:c058:6301::1",
    "2001:0:4136:e378:8000:63bf:f7f7:f7f7",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "100.63.255.255",
        "100.128.0.0",
        "192.0.1.1",
        "192.31.196.1",
        "198.20.0.1",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2001:200::1",
        "2001:4860:4860::8888",
        "3fff:1000::1",
        "2002:808:808::1",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ],
)
def test_public(address):
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_however_ipv6_carries_it(address):
    mapped = f"::ffff:{address}"
    nat64 = str(ipaddress.IPv6Address(int(ipaddress.ip_address("64:ff9b::")) + int(address)))
    assert is_public(mapped) == is_public(nat64) == is_public(str(address))


# Blocks that some versions of Python call global, or judge without the IPv4 address in them.
ONLY_OURS = [
    ipaddress.ip_network(block)
    for block in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20", "64:ff9b::/96", "fec0::/10")
]
EDGES = [
    edge
    for block in (*addresses._NOT_PUBLIC_V4, *addresses._NOT_PUBLIC_V6, addresses._GLOBAL_UNICAST, *ONLY_OURS)
    for number in (int(block[0]) - 1, int(block[0]), int(block[-1]), int(block[-1]) + 1)
    if 0 <= number < 1 << block.max_prefixlen
    for edge in [type(block[0])(number)]
]


@given(st.ip_addresses() | st.ip_addresses(network="2000::/3") | st.sampled_from(EDGES))
def test_what_this_python_knows_to_be_special_is_not_public(ip):
    judged = getattr(ip, "ipv4_mapped", None) or ip  # releases of Python differ in how they judge a mapped address
    special = not judged.is_global or judged.is_multicast or judged.is_reserved
    known = not any(judged in block for block in ONLY_OURS if block.version == judged.version)
    if known:
        assert is_public(str(ip)) == (not special)
    elif special and ip not in addresses._CARRIERS[1][0]:  # Python counts NAT64 as reserved, whatever it carries
        assert not is_public(str(ip))


@pytest.mark.parametrize("ip", EDGES, ids=str)
def test_the_edges_of_every_block(ip):
    test_what_this_python_knows_to_be_special_is_not_public.hypothesis.inner_test(ip)


@pytest.mark.parametrize("address", ["", "localhost", "1.2.3", "0x7f000001", "::1::"])
def test_what_is_no_address_is_an_error(address):
    with pytest.raises(ValueError, match="does not appear to be"):
        is_public(address)
