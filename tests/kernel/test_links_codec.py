"""Links, addresses and local routes: golden bytes, pyroute2 as the oracle, and garbage."""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl import rt_scope, rt_type
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ipvs_proxy.kernel.links import codec
from ipvs_proxy.kernel.links.codec import Address, Link
from ipvs_proxy.netlink.wire import MalformedMessage, attribute, frame
from ipvs_proxy.plan.tables import AddressOperation, Family, Verb

little_endian = pytest.mark.skipif(
    sys.byteorder != "little", reason="the golden bytes are those of little-endian hosts"
)

VIP = bytes((10, 96, 0, 1))
VIP6 = bytes.fromhex("fd000000000000000000000000000001")


@little_endian
@pytest.mark.parametrize(
    ("request_", "kind", "flags", "golden"),
    [
        (
            codec.encode_address(AddressOperation(Verb.ADD, VIP), ifindex=7),
            20,
            0x601,
            "02 20 00 00 07000000 0800 0200 0a600001",
        ),
        (
            codec.encode_address(AddressOperation(Verb.DELETE, VIP), ifindex=7),
            21,
            0x1,
            "02 20 00 00 07000000 0800 0200 0a600001",
        ),
        (
            codec.encode_address(AddressOperation(Verb.ADD, VIP6), ifindex=7),
            20,
            0x601,
            "0a 80 02 00 07000000 1400 0200 fd000000000000000000000000000001",
        ),
        (
            codec.encode_new_dummy("kube-ipvs0"),
            16,
            0x601,
            (
                "00 00 0000 00000000 00000000 00000000 0f00 0300 6b7562652d697076733000 00"
                "1000 1280 0900 0100 64756d6d79 000000"
            ),
        ),
        (
            codec.encode_get_link("lo"),
            18,
            0x1,
            "00 00 0000 00000000 00000000 00000000 0700 0300 6c6f00 00",
        ),
        (codec.encode_dump_addresses(Family.IPV6, ifindex=7), 22, 0x1, "0a 00 00 00 07000000"),
        (codec.encode_dump_addresses(Family.IPV4), 22, 0x1, "02 00 00 00 00000000"),
        (codec.encode_delete_link(7), 17, 0x1, "00 00 0000 07000000 00000000 00000000"),
        (
            codec.encode_route(AddressOperation(Verb.ADD, VIP), ifindex=7),
            24,
            0xC01,
            "02 20 00 00 ff 49 fe 02 00000000 0800 0100 0a600001 0800 0400 07000000",
        ),
        (
            codec.encode_route(AddressOperation(Verb.DELETE, VIP), ifindex=7),
            25,
            0x1,
            "02 20 00 00 ff 49 fe 02 00000000 0800 0100 0a600001 0800 0400 07000000",
        ),
        (codec.encode_dump_routes(7), 26, 0x1, "02 00 00 00 ff 49 00 02 00000000 0800 0400 07000000"),
        (codec.encode_dump_links(), 18, 0x1, "00 00 0000 00000000 00000000 00000000"),
    ],
)
def test_golden_bytes(request_, kind, flags, golden):
    assert request_.payload.hex() == golden.replace(" ", "")
    assert (request_.type, request_.flags) == (kind, flags)


@pytest.mark.parametrize(
    ("address", "text", "family", "length", "flags"),
    [(VIP, "10.96.0.1", 2, 32, 0), (VIP6, "fd00::1", 10, 128, 0x02)],
)
def test_pyroute2_reads_what_is_encoded(address, text, family, length, flags):
    request = codec.encode_address(AddressOperation(Verb.ADD, address), ifindex=7)
    message = ifaddrmsg(frame(request, sequence=1))
    message.decode()
    assert (message["family"], message["prefixlen"], message["scope"], message["index"]) == (family, length, 0, 7)
    assert message.get_attr("IFA_LOCAL") == text
    assert message["flags"] == flags


def test_pyroute2_reads_the_route_that_is_encoded():
    message = rtmsg(frame(codec.encode_route(AddressOperation(Verb.ADD, VIP), ifindex=7), sequence=1))
    message.decode()
    assert (message["family"], message["dst_len"], message["table"], message["proto"]) == (2, 32, 255, 73)
    assert (message["type"], message["scope"], message["flags"]) == (rt_type["local"], rt_scope["host"], 0)
    assert (message.get_attr("RTA_DST"), message.get_attr("RTA_OIF")) == ("10.96.0.1", 7)


def test_pyroute2_reads_the_link_to_make():
    message = ifinfmsg(frame(codec.encode_new_dummy("kube-ipvs0"), sequence=1))
    message.decode()
    assert message.get_attr("IFLA_IFNAME") == "kube-ipvs0"
    assert message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "dummy"
    assert message["flags"] == 0


def test_what_pyroute2_encodes_is_read():
    link = ifinfmsg()
    link["index"] = 3
    link["attrs"] = [("IFLA_IFNAME", "kube-ipvs0"), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "dummy")]})]
    link.encode()
    assert codec.decode_link(bytes(link.data[16:])) == Link(3, "kube-ipvs0", "dummy")

    address = ifaddrmsg()
    address["family"], address["prefixlen"], address["index"] = 10, 64, 3
    address["attrs"] = [("IFA_ADDRESS", "fd00::1")]
    address.encode()
    assert codec.decode_address(bytes(address.data[16:])) == Address(3, VIP6, 64)


def test_the_local_address_counts_not_the_peers():
    payload = pack("=BBBBI", 2, 32, 0, 0, 3) + attribute(1, b"\x0a\0\0\x02") + attribute(2, b"\x0a\0\0\x01")
    assert codec.decode_address(payload).address == b"\x0a\0\0\x01"


@given(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16), st.integers(1, 0x7FFFFFFF))
def test_addresses_come_back(address, ifindex):
    request = codec.encode_address(AddressOperation(Verb.ADD, address), ifindex=ifindex)
    assert codec.decode_address(request.payload) == Address(ifindex, address, len(address) * 8)


@pytest.mark.parametrize(
    "operation", [AddressOperation(Verb.ADD, b"123"), AddressOperation(Verb.SET, VIP), AddressOperation(Verb.ADD, b"")]
)
def test_what_is_no_operation_on_an_address_is_refused(operation):
    with pytest.raises(ValueError):
        codec.encode_address(operation, ifindex=7)


@pytest.mark.parametrize(
    "operation", [AddressOperation(Verb.ADD, VIP6), AddressOperation(Verb.SET, VIP), AddressOperation(Verb.ADD, b"")]
)
def test_what_is_no_operation_on_a_route_is_refused(operation):
    with pytest.raises(ValueError):
        codec.encode_route(operation, ifindex=7)


@given(st.binary(min_size=4, max_size=4), st.integers(1, 0x7FFFFFFF))
def test_routes_come_back(address, ifindex):
    request = codec.encode_route(AddressOperation(Verb.ADD, address), ifindex=ifindex)
    assert codec.decode_route(request.payload, ifindex=ifindex) == address
    assert codec.decode_route(request.payload, ifindex=ifindex + 1) is None


def route(position, value):
    """Return the route to an address with one byte of its header changed."""
    payload = bytearray(codec.encode_route(AddressOperation(Verb.ADD, VIP), ifindex=7).payload)
    payload[position] = value
    return bytes(payload)


@pytest.mark.parametrize(
    ("position", "value"),
    [(0, 10), (1, 24), (4, 254), (5, 2), (5, 4), (7, 1)],
    ids=["family", "prefix length", "table", "the kernel's own", "another protocol", "type"],
)
def test_routes_of_others_are_none_of_ours(position, value):
    assert codec.decode_route(route(position, value), ifindex=7) is None


def test_a_dump_of_routes_gives_ours():
    ours = [
        codec.encode_route(AddressOperation(Verb.ADD, bytes((10, 97, 0, last))), ifindex=7).payload for last in range(9)
    ]
    flagged = [bytes((*payload[:8], 1, *payload[9:])) for payload in ours[6:]]
    others = [route(5, 2), codec.encode_route(AddressOperation(Verb.ADD, VIP), ifindex=8).payload, route(4, 254)]
    dump = [others[0], *ours[:3], *others, *ours[3:6], *flagged]
    assert codec.decode_routes(dump, ifindex=7) == {bytes((10, 97, 0, last)) for last in range(9)}
    assert codec.decode_routes(others, ifindex=7) == set()


def test_a_dump_with_a_route_without_destination_is_malformed():
    good = codec.encode_route(AddressOperation(Verb.ADD, VIP), ifindex=7).payload
    with pytest.raises(MalformedMessage):
        codec.decode_routes([good, good[:12] + attribute(4, pack("=I", 7))], ifindex=7)


def test_a_route_without_destination_is_malformed():
    with pytest.raises(MalformedMessage):
        codec.decode_route(route(0, 2)[:12] + attribute(4, pack("=I", 7)), ifindex=7)


@pytest.mark.parametrize("decode", [codec.decode_link, codec.decode_address, partial(codec.decode_route, ifindex=7)])
@given(payload=st.binary(max_size=120))
def test_garbage_is_read_or_malformed(decode, payload):
    with contextlib.suppress(MalformedMessage):
        decode(payload)
