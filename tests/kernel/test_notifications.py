"""Notifications of links and addresses: bytes of a real kernel, messages of our codec, and garbage."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvs_proxy.kernel.links import notifications
from ipvs_proxy.kernel.links.codec import DELETE_ADDRESS, DELETE_LINK, NEW_ADDRESS, NEW_LINK, Address, encode_address
from ipvs_proxy.kernel.links.notifications import AddressNotice, LinkNotice, read_notification
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.netlink.wire import Data, MalformedMessage, attribute, parse, text_attribute
from ipvs_proxy.plan.tables import AddressOperation, Verb
from tests.support.objects import packed

#: ``ip address add 192.0.2.7 peer 192.0.2.8/32 dev eth0`` in Linux 7.2.
POINT_TO_POINT = (
    "5000000014000000f4850d6b24000000022080000a00000008000100c000020808000200c0000207"
    "090003006574683000000000080008008000000014000600ffffffffffffffff6900000069000000"
)


def address(kind: int, text: str, ifindex: int = 4) -> Data:
    return Data(kind, 0, 0, encode_address(AddressOperation(Verb.ADD, packed(text)), ifindex=ifindex).payload)


def link(kind: int, name: str, ifindex: int = 4) -> Data:
    return Data(kind, 0, 0, pack("=BxHiII", 0, 0, ifindex, 0, 0) + text_attribute(3, name))


@pytest.mark.skipif(sys.byteorder != "little", reason="the golden bytes are those of little-endian hosts")
def test_the_address_of_a_point_to_point_link_is_our_own():
    (message,) = parse(bytes.fromhex(POINT_TO_POINT))
    assert isinstance(message, Data)
    assert read_notification(message) == AddressNotice(Address(10, packed("192.0.2.7"), 32), present=True)


@pytest.mark.parametrize(("kind", "present"), [(NEW_ADDRESS, True), (DELETE_ADDRESS, False)])
@pytest.mark.parametrize("text", ["192.0.2.7", "2001:db8::7", "fe80::7"])
def test_addresses_come_and_go(text, kind, present):
    found = Address(4, packed(text), len(packed(text)) * 8)
    assert read_notification(address(kind, text)) == AddressNotice(found, present)


def test_an_ipv6_address_without_a_local_one_is_that_of_the_link():
    payload = pack("=BBBBI", 10, 64, 0, 0, 3) + attribute(1, packed("2001:db8::1"))
    notice = AddressNotice(Address(3, packed("2001:db8::1"), 64), present=True)
    assert read_notification(Data(NEW_ADDRESS, 0, 0, payload)) == notice


@pytest.mark.parametrize(("kind", "present"), [(NEW_LINK, True), (DELETE_LINK, False)])
def test_links_come_and_go(kind, present):
    assert read_notification(link(kind, "kube-ipvs0")) == LinkNotice(4, "kube-ipvs0", present)


def test_other_messages_tell_nothing():
    assert read_notification(Data(24, 0, 0, bytes(12))) is None


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (NEW_ADDRESS, b""),
        (NEW_ADDRESS, pack("=BBBBI", 2, 32, 0, 0, 3)),
        (DELETE_ADDRESS, pack("=BBBBI", 10, 32, 0, 0, 3) + attribute(2, bytes(4))),
        (NEW_LINK, b"1234"),
    ],
)
def test_what_cannot_be_read_is_malformed(kind, payload):
    with pytest.raises(MalformedMessage):
        read_notification(Data(kind, 0, 0, payload))


@settings(deadline=None)
@given(st.sampled_from((NEW_ADDRESS, DELETE_ADDRESS, NEW_LINK, DELETE_LINK)), st.binary(max_size=80))
def test_garbage_is_read_or_malformed(kind, garbage):
    with contextlib.suppress(MalformedMessage):
        read_notification(Data(kind, 0, 0, garbage))


def test_pyroute2_is_imported_when_it_is_asked_for_and_not_with_the_agent():
    program = (
        "import sys, ipvs_proxy.agent.run; from ipvs_proxy.kernel.links import notifications; "
        "assert 'pyroute2' not in sys.modules; notifications.prepare(); assert 'pyroute2' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_pyroute2_that_cannot_be_imported_is_told_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever listens tries again after an ``Unusable``."""
    notifications._classes.cache_clear()
    monkeypatch.setitem(sys.modules, "pyroute2.netlink.rtnl.ifaddrmsg", None)
    with pytest.raises(Unusable, match=r"pyroute2 cannot be imported: .*: install ipvs-proxy with its dependencies"):
        notifications.prepare()
    notifications._classes.cache_clear()
