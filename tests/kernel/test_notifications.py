"""Notifications of links and addresses: bytes of a real kernel, what is ours, and garbage."""

from __future__ import annotations

import contextlib
import sys
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvs_proxy.kernel.links.codec import Address, encode_address
from ipvs_proxy.kernel.links.notifications import AddressNotice, LinkNotice, read_notifications
from ipvs_proxy.netlink.wire import HEADER, MalformedMessage, Request, attribute, frame, text_attribute
from ipvs_proxy.plan.tables import AddressOperation, Verb
from tests.support.objects import packed

NEW_LINK, DELETE_LINK, NEW_ADDRESS, DELETE_ADDRESS = 16, 17, 20, 21
#: ``ip address add 192.0.2.7 peer 192.0.2.8/32 dev eth0`` in Linux 7.2.
POINT_TO_POINT = (
    "5000000014000000f4850d6b24000000022080000a00000008000100c000020808000200c0000207"
    "090003006574683000000000080008008000000014000600ffffffffffffffff6900000069000000"
)


def told(kind: int, payload: bytes) -> bytes:
    return frame(Request(kind, payload, 0), sequence=0)


def address(kind: int, text: str, ifindex: int = 4) -> bytes:
    return told(kind, encode_address(AddressOperation(Verb.ADD, packed(text)), ifindex=ifindex).payload)


def link(kind: int, name: str, ifindex: int = 4) -> bytes:
    return told(kind, pack("=BxHiII", 0, 0, ifindex, 0, 0) + text_attribute(3, name))


@pytest.mark.skipif(sys.byteorder != "little", reason="the golden bytes are those of little-endian hosts")
def test_the_address_of_a_point_to_point_link_is_our_own():
    (notice,) = read_notifications(bytes.fromhex(POINT_TO_POINT))
    assert notice == AddressNotice(Address(10, packed("192.0.2.7"), 32), present=True)


@pytest.mark.parametrize("text", ["192.0.2.7", "2001:db8::7", "fe80::7"])
def test_addresses_come_and_go(text):
    length = len(packed(text)) * 8
    datagram = address(NEW_ADDRESS, text) + address(DELETE_ADDRESS, text, ifindex=5)
    assert list(read_notifications(datagram)) == [
        AddressNotice(Address(4, packed(text), length), present=True),
        AddressNotice(Address(5, packed(text), length), present=False),
    ]


def test_an_ipv6_address_without_a_local_one_is_that_of_the_link():
    payload = pack("=BBBBI", 10, 64, 0, 0, 3) + attribute(1, packed("2001:db8::1"))
    assert list(read_notifications(told(NEW_ADDRESS, payload))) == [
        AddressNotice(Address(3, packed("2001:db8::1"), 64), present=True)
    ]


def test_links_come_and_go():
    assert list(read_notifications(link(NEW_LINK, "kube-ipvs0") + link(DELETE_LINK, "eth0", 9))) == [
        LinkNotice(4, "kube-ipvs0", present=True),
        LinkNotice(9, "eth0", present=False),
    ]


def test_other_messages_are_left_out():
    route = told(24, bytes(12))
    assert list(read_notifications(route + link(NEW_LINK, "eth0"))) == [LinkNotice(4, "eth0", present=True)]


@pytest.mark.parametrize(
    "datagram",
    [
        HEADER.pack(16, 4, 0, 0, 0),  # lost
        told(NEW_ADDRESS, b""),
        told(NEW_ADDRESS, pack("=BBBBI", 2, 32, 0, 0, 3)),
        told(NEW_LINK, b"1234"),
    ],
)
def test_what_cannot_be_read_is_malformed(datagram):
    with pytest.raises(MalformedMessage):
        list(read_notifications(datagram))


@settings(deadline=None)
@given(st.sampled_from((NEW_ADDRESS, DELETE_ADDRESS, NEW_LINK, DELETE_LINK)), st.binary(max_size=80))
def test_garbage_is_read_or_malformed(kind, garbage):
    with contextlib.suppress(MalformedMessage):
        list(read_notifications(told(kind, garbage)))
