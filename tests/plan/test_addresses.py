"""Addresses as the API has stored them, lenient in the same way as kube-proxy."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvs_proxy.plan.addresses import is_of, parse_address
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
