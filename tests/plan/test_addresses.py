"""Addresses as the API has stored them, lenient in the same way as kube-proxy."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvs_proxy.plan.addresses import is_of, is_special, ordinary_address, parse_address, parse_network
from ipvs_proxy.plan.tables import Family


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("255.255.255.255", "255.255.255.255"),
        ("010.000.000.001", "10.0.0.1"),
        ("10.0.0.010", "10.0.0.10"),
        ("10.0.0.099", "10.0.0.99"),
        ("fd00::1", "fd00::1"),
        ("FD00:0:0::0001", "fd00::1"),
        ("::", "::"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:a00:1", "10.0.0.1"),
        ("64:ff9b::10.0.0.1", "64:ff9b::a00:1"),
    ],
)
def test_good_addresses(text: str, canonical: str) -> None:
    assert parse_address(text) == ip_address(canonical).packed


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "None",
        "10.0.0",
        "10.0.0.1.2",
        "10..0.1",
        "10.0.0.256",
        "10.0.0.-1",
        "10.0.0.+1",
        "10.0.0.1 ",
        " 10.0.0.1",
        "10.0.0.1/32",
        "10.0.0.1:80",
        "10.0.0.0x1",
        "10.0.0.1_0",
        "10.0.0.\u0661",
        "10.0.0.\u00b2",
        "10.0.0." + "9" * 5000,
        "fe80::1%eth0",
        "fd00::1/128",
        "[fd00::1]",
        "fd00::1::2",
        "fd00::g",
        "1:2:3:4:5:6:7",
        "::ffff:10.0.0.256",
        "\x00",
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_bad_addresses_are_none(text: str) -> None:
    assert parse_address(text) is None


def test_the_family_is_that_of_the_packed_form() -> None:
    assert is_of(bytes(4), Family.IPV4)
    assert not is_of(bytes(4), Family.IPV6)
    assert is_of(bytes(16), Family.IPV6)
    assert not is_of(bytes(16), Family.IPV4)


@settings(deadline=None)
@given(st.text(max_size=40) | st.text(alphabet="0123456789abcdefF.:%/ ", max_size=40))
def test_no_text_raises(text: str) -> None:
    assert len(parse_address(text) or b"1234") in {4, 16}


@settings(deadline=None)
@given(st.ip_addresses())
def test_canonical_text_comes_back(address: IPv4Address | IPv6Address) -> None:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    assert parse_address(str(address)) == (mapped or address).packed
    assert parse_address(address.exploded) == (mapped or address).packed


EDGES = [
    *("0.0.0.0", "0.0.0.1", "126.255.255.255", "127.0.0.0", "127.0.0.1", "127.255.255.255", "128.0.0.0"),
    *("223.255.255.255", "224.0.0.0", "239.255.255.255", "240.0.0.0", "255.255.255.254", "255.255.255.255"),
    *("::", "::1", "::2", "::3", "1::", "1::1", "0:0:0:0:0:0:1:0", "fd00::1", "fe7f:ffff::1", "fe80::", "fe80::1"),
    *("febf::1", "fec0::1", "fee0::1", "feff::1", "ff00::", "ff02::1", "ffff::1", "80::1", "fc80::1", "2001:db8::80"),
]


def is_nobodys(address: IPv4Address | IPv6Address) -> bool:
    """What ``is_special`` says, in the words of the standard library."""
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        return True
    return address.is_link_local if isinstance(address, IPv6Address) else int(address) == 0xFFFFFFFF


@given(st.ip_addresses() | st.sampled_from(EDGES).map(ip_address))
@settings(max_examples=500)
def test_special_addresses_are_those_of_no_host(address: IPv4Address | IPv6Address) -> None:
    assert is_special(address.packed) is is_nobodys(address)


@pytest.mark.parametrize("text", EDGES)
def test_special_addresses_at_their_edges(text: str) -> None:
    address = ip_address(text)
    assert is_special(address.packed) is is_nobodys(address)
    family, other = (Family.IPV4, Family.IPV6) if address.version == 4 else (Family.IPV6, Family.IPV4)
    assert ordinary_address(text, family) in ({None} if is_nobodys(address) else {None, address.packed})
    assert ordinary_address(text, other) is None


@pytest.mark.parametrize(
    ("text", "family", "found"),
    [
        ("10.0.0.1", Family.IPV4, True),
        ("192.168.1.1", Family.IPV4, True),
        ("fd00::1", Family.IPV6, True),
        ("2001:db8::1", Family.IPV6, True),
        ("::ffff:10.0.0.1", Family.IPV6, False),
        ("010.0.0.1", Family.IPV4, False),
        ("nonsense", Family.IPV4, False),
        ("10.0.0.1\0", Family.IPV4, False),
    ],
)
def test_ordinary_addresses_are_packed_at_once(text: str, family: Family, found: bool) -> None:
    assert ordinary_address(text, family) == (parse_address(text) if found else None)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        (" 10.1.2.3/8\n", "10.0.0.0/8"),
        ("10.1.2.3/32", "10.1.2.3/32"),
        ("10.1.2.3/0", "0.0.0.0/0"),
        ("010.1.2.3/17", "10.1.0.0/17"),
        ("fd00:1:2::/48", "fd00:1:2::/48"),
        ("fd00::1/127", "fd00::/127"),
        ("fd00::1/128", "fd00::1/128"),
        ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
        ("::ffff:10.1.2.3/128", "10.1.2.3/32"),
        ("::ffff:10.1.2.3/96", "0.0.0.0/0"),
    ],
)
def test_networks_have_no_host_bits(text: str, network: str) -> None:
    expected = ip_network(network)
    assert parse_network(text) == (expected.network_address.packed, expected.prefixlen)


@pytest.mark.parametrize(
    "text",
    [
        *("", "/", "10.0.0.0", "10.0.0.0/", "/8", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/8/8"),
        *("10.0.0.0/\u0668", "10.0.0.0/ 8", "10.0.0.0 /8", "fd00::/129", "::ffff:10.0.0.0/95", "nonsense/8"),
        *("10.0.0.0/1.5", "10.0.0.0/\u00b2"),
    ],
)
def test_what_is_no_network(text: str) -> None:
    assert parse_network(text) is None
