"""What notifications of links and addresses mean, without a kernel."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_proxy.kernel.links.codec import Address
from ipvs_proxy.kernel.links.monitor import LinkChange, LinkEvent, LinkState
from ipvs_proxy.kernel.links.notifications import AddressNotice, LinkNotice
from tests.support.objects import packed

DUMMY, ETH0, VETH1, VETH2 = 3, 4, 5, 6
VIP, OWN, OWN6 = "10.96.0.1", "192.0.2.1", "2001:db8::1"


Notice = AddressNotice | LinkNotice


def added(ifindex: int, address: str) -> Notice:
    return AddressNotice(Address(ifindex, packed(address), 32), present=True)


def removed(ifindex: int, address: str) -> Notice:
    return AddressNotice(Address(ifindex, packed(address), 32), present=False)


def link(ifindex: int, name: str, *, present: bool = True) -> Notice:
    return LinkNotice(ifindex, name, present)


def state(*known: tuple[int, str], ifindex: int = DUMMY) -> LinkState:
    return LinkState("kube-ipvs0", ifindex, [Address(owner, packed(address), 32) for owner, address in known])


def read(links: LinkState, *messages: Notice) -> list[LinkEvent | str]:
    """Take messages as one read does."""
    events: list[LinkEvent | str] = [event for event in map(links.take, messages) if event is not None]
    return [*events, "host"] if links.host_addresses_changed() else events


@pytest.mark.parametrize(
    ("messages", "changed"),
    [
        ([added(ETH0, "192.0.2.2")], True),
        ([added(ETH0, "192.0.2.2"), added(ETH0, "192.0.2.3")], True),
        ([removed(ETH0, OWN)], True),
        ([removed(ETH0, OWN6)], True),
        # Announced again: lifetimes, flags, the end of duplicate address detection.
        ([added(ETH0, OWN6)], False),
        ([added(ETH0, OWN), added(ETH0, OWN)], False),
        # Never known.
        ([removed(ETH0, "192.0.2.2")], False),
        ([removed(VETH1, OWN)], False),
        # Link-local and loopback addresses.
        ([added(VETH1, "fe80::1"), removed(VETH1, "fe80::1")], False),
        ([added(VETH1, "fe80::1")], False),
        ([added(1, "127.0.0.2")], False),
        ([added(1, "::1")], False),
        # There and back, and from one link to another, is no change of what the host has.
        ([added(ETH0, "192.0.2.2"), removed(ETH0, "192.0.2.2")], False),
        ([removed(ETH0, OWN), added(ETH0, OWN)], False),
        ([removed(ETH0, OWN), added(VETH1, OWN)], False),
        ([removed(ETH0, OWN), added(VETH1, "192.0.2.2")], True),
        # Links by themselves.
        ([link(VETH1, "veth1"), link(VETH1, "veth1", present=False), link(ETH0, "wan0")], False),
    ],
)
def test_changes_of_the_hosts_addresses(messages: list[Notice], changed: bool) -> None:
    links = state((ETH0, OWN), (ETH0, OWN6), (ETH0, "fe80::2"), (1, "127.0.0.1"), (1, "::1"))
    assert read(links, *messages) == (["host"] if changed else [])
    assert read(links) == []


def test_a_change_is_told_once() -> None:
    links = state()
    assert read(links, added(ETH0, OWN)) == ["host"]
    assert read(links, added(ETH0, OWN)) == []
    assert read(links, removed(ETH0, OWN)) == ["host"]
    assert read(links, removed(ETH0, OWN)) == []


def test_an_address_that_every_pods_link_has_changes_with_the_first_and_the_last() -> None:
    links = state()
    assert read(links, added(VETH1, "10.244.0.1")) == ["host"]
    assert read(links, added(VETH2, "10.244.0.1")) == []
    assert read(links, removed(VETH1, "10.244.0.1")) == []
    assert read(links, removed(VETH2, "10.244.0.1")) == ["host"]


def test_addresses_of_the_dummy_link_are_not_the_hosts() -> None:
    links = state((DUMMY, VIP))
    vip, other = packed(VIP), packed("10.96.0.2")
    assert read(links, added(DUMMY, VIP), added(DUMMY, "10.96.0.2")) == [
        LinkEvent(LinkChange.ADDRESS_ADDED, vip),
        LinkEvent(LinkChange.ADDRESS_ADDED, other),
    ]
    assert read(links, removed(DUMMY, VIP)) == [LinkEvent(LinkChange.ADDRESS_REMOVED, vip)]
    # An address of both is the host's from when another link has it.
    assert read(links, added(ETH0, "10.96.0.2")) == ["host"]
    assert read(links, removed(DUMMY, "10.96.0.2")) == [LinkEvent(LinkChange.ADDRESS_REMOVED, other)]


def test_a_dummy_link_that_is_renamed_leaves_its_addresses_to_the_host() -> None:
    links = state((DUMMY, VIP), (DUMMY, "10.96.0.2"), (ETH0, "10.96.0.2"))
    assert read(links, link(DUMMY, "elsewhere")) == [LinkEvent(LinkChange.LINK_REMOVED), "host"]
    assert read(links, link(VETH1, "kube-ipvs0"), added(VETH1, VIP)) == [
        LinkEvent(LinkChange.LINK_ADDED),
        LinkEvent(LinkChange.ADDRESS_ADDED, packed(VIP)),
    ]
    assert read(links, removed(DUMMY, VIP)) == ["host"]


def test_a_link_with_addresses_that_becomes_the_dummy_takes_them_from_the_host() -> None:
    links = state((ETH0, OWN), ifindex=0)
    assert read(links, link(ETH0, "kube-ipvs0")) == [LinkEvent(LinkChange.LINK_ADDED), "host"]
    assert read(links, removed(ETH0, OWN), link(ETH0, "kube-ipvs0", present=False)) == [
        LinkEvent(LinkChange.ADDRESS_REMOVED, packed(OWN)),
        LinkEvent(LinkChange.LINK_REMOVED),
    ]


OWNERS = st.sampled_from((DUMMY, ETH0, VETH1))
NOTICES = st.one_of(
    st.builds(added, OWNERS, st.sampled_from((VIP, OWN, OWN6, "fe80::1"))),
    st.builds(removed, OWNERS, st.sampled_from((VIP, OWN, OWN6, "fe80::1"))),
    st.builds(link, OWNERS, st.sampled_from(("kube-ipvs0", "eth0"))),
)


def host_set(messages: Iterable[Notice]) -> set[bytes]:
    """What the host has after all messages, worked out anew from the last word on each link and address."""
    known: dict[tuple[int, bytes], bool] = {}
    dummy = DUMMY
    for message in messages:
        if isinstance(message, AddressNotice):
            known[message.address.ifindex, message.address.address] = message.present
        else:
            dummy = message.ifindex if message.name == "kube-ipvs0" else 0 if dummy == message.ifindex else dummy
    return {a for (owner, a), there in known.items() if there and owner != dummy and a != packed("fe80::1")}


@given(st.lists(st.lists(NOTICES, max_size=6), max_size=6))
def test_a_change_is_told_exactly_when_the_hosts_addresses_differ(reads: list[list[Notice]]) -> None:
    links, so_far, before = state(), list[Notice](), set[bytes]()
    for messages in reads:
        so_far += messages
        after = host_set(so_far)
        assert ("host" in read(links, *messages)) is (before != after)
        before = after
