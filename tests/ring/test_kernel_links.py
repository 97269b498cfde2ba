"""Several links for very many addresses, against a real kernel; ``ip`` is the witness."""

from __future__ import annotations

import json
import socket as sockets
from collections.abc import Iterator
from contextlib import closing
from errno import EADDRNOTAVAIL, EEXIST, ENODEV

import pytest

from ipvs_proxy.kernel.links.addresses import Addresses
from ipvs_proxy.kernel.links.monitor import LinkChange, LinkEvent, Monitor
from ipvs_proxy.netlink.socket import MessageCounts
from ipvs_proxy.plan.node_addresses import ADDRESSES_OF_A_LINK
from ipvs_proxy.plan.tables import AddressOperation, Verb
from tests.support.namespaces import fresh_namespace, missing_piece, run
from tests.support.objects import packed

pytestmark = pytest.mark.skipif(missing_piece() is not None, reason=str(missing_piece()))

ROOM = 3


def operations(verb: Verb, *texts: str) -> list[AddressOperation]:
    return [AddressOperation(verb, packed(text)) for text in texts]


def add(*texts: str) -> list[AddressOperation]:
    return operations(Verb.ADD, *texts)


def delete(*texts: str) -> list[AddressOperation]:
    return operations(Verb.DELETE, *texts)


def vips(first: int, last: int) -> list[str]:
    return [f"10.96.0.{number}" for number in range(first, last + 1)]


def witnessed() -> dict[str, list[str]]:
    """Return the addresses of each link whose name begins as ours do, as ``ip`` sees them."""
    return {
        link["ifname"]: sorted(info["local"] for info in link["addr_info"])
        for link in json.loads(run("ip", "-json", "address", "show"))
        if link["ifname"].startswith("kube-ipvs")
    }


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with fresh_namespace():
        yield


@pytest.fixture
def addresses() -> Iterator[Addresses]:
    with closing(Addresses(room=ROOM)) as made:
        made.ensure_link()
        yield made


@pytest.fixture
def full(addresses: Addresses) -> Addresses:
    """Three links: two full ones, and one with an address."""
    assert not any(addresses.apply(add(*vips(1, 7))))
    return addresses


def test_addresses_without_room_go_to_further_links(addresses: Addresses) -> None:
    assert addresses.apply(add(*vips(1, 3), "fd00::1", "fd00::2")) == [0] * 5
    assert witnessed() == {"kube-ipvs0": [*vips(1, 3), "fd00::1", "fd00::2"]}
    assert addresses.apply(add("10.96.0.4", "fd00::3")) == [0, 0]
    assert addresses.apply(add(*vips(5, 10))) == [0] * 6
    assert witnessed() == {
        "kube-ipvs0": [*vips(1, 3), "fd00::1", "fd00::2", "fd00::3"],
        "kube-ipvs1": vips(4, 6),
        "kube-ipvs2": vips(7, 9),
        "kube-ipvs3": ["10.96.0.10"],
    }
    assert addresses.read() == set(map(packed, [*vips(1, 10), "fd00::1", "fd00::2", "fd00::3"]))
    links = json.loads(run("ip", "-json", "-details", "link", "show", "type", "dummy"))
    assert not any("UP" in link["flags"] for link in links)
    # What attracts packets is there, wherever the address is.
    assert run("ip", "route", "get", "10.96.0.10").split()[:2] == ["local", "10.96.0.10"]
    with sockets.create_server(("10.96.0.10", 0)) as listener:
        assert listener.getsockname()[0] == "10.96.0.10"


def test_an_address_that_is_there_stays_on_its_link(full: Addresses) -> None:
    assert full.apply(add("10.96.0.1", "10.96.0.5", "10.96.0.7")) == [EEXIST] * 3
    assert full.apply(delete("10.96.0.2")) == [0]
    assert full.apply(add("10.96.0.5", "10.96.0.8")) == [EEXIST, 0]
    assert witnessed() == {
        "kube-ipvs0": ["10.96.0.1", "10.96.0.3", "10.96.0.8"],
        "kube-ipvs1": vips(4, 6),
        "kube-ipvs2": ["10.96.0.7"],
    }


def test_an_address_is_deleted_from_the_link_that_has_it(full: Addresses) -> None:
    assert full.apply(delete("10.96.0.2", "10.96.0.5", "10.96.0.7", "10.96.0.9")) == [0, 0, 0, EADDRNOTAVAIL]
    assert witnessed() == {
        "kube-ipvs0": ["10.96.0.1", "10.96.0.3"],
        "kube-ipvs1": ["10.96.0.4", "10.96.0.6"],
        "kube-ipvs2": [],
    }


def test_the_next_agent_finds_every_address_where_it_is(full: Addresses) -> None:
    with closing(Addresses(room=ROOM)) as later:
        assert later.read() == set(map(packed, vips(1, 7)))
        assert later.ensure_link() is False
        assert later.traffic.writes == 0
        assert later.apply(delete("10.96.0.4")) == [0]
        assert later.apply(add("10.96.0.8", "10.96.0.9", "10.96.0.10", "10.96.0.11")) == [0] * 4
    assert witnessed() == {
        "kube-ipvs0": vips(1, 3),
        "kube-ipvs1": ["10.96.0.5", "10.96.0.6", "10.96.0.8"],
        "kube-ipvs2": ["10.96.0.10", "10.96.0.7", "10.96.0.9"],
        "kube-ipvs3": ["10.96.0.11"],
    }


def test_an_agent_that_has_not_read_anything_finds_them_too(full: Addresses) -> None:
    with closing(Addresses(room=ROOM)) as later:
        assert later.apply(delete("10.96.0.7", "10.96.0.4")) == [0, 0]
    assert witnessed() == {"kube-ipvs0": vips(1, 3), "kube-ipvs1": ["10.96.0.5", "10.96.0.6"], "kube-ipvs2": []}


def test_what_an_earlier_version_put_on_one_link_stays_there(addresses: Addresses) -> None:
    for text in vips(1, 8):
        run("ip", "address", "add", f"{text}/32", "dev", "kube-ipvs0")
    assert addresses.read() == set(map(packed, vips(1, 8)))
    assert addresses.apply(delete("10.96.0.8") + add("10.96.0.9")) == [0, 0]
    assert addresses.ensure_link() is False
    assert witnessed() == {"kube-ipvs0": vips(1, 7), "kube-ipvs1": ["10.96.0.9"]}


def test_empty_links_go_but_for_the_first(full: Addresses) -> None:
    assert not any(full.apply(delete(*vips(1, 6))))
    assert full.ensure_link() is False
    assert witnessed() == {"kube-ipvs0": [], "kube-ipvs2": ["10.96.0.7"]}
    assert not any(full.apply(delete("10.96.0.7")))
    assert full.ensure_link() is False
    assert witnessed() == {"kube-ipvs0": []}
    assert full.apply(add(*vips(1, 4))) == [0] * 4
    assert witnessed() == {"kube-ipvs0": vips(1, 3), "kube-ipvs1": ["10.96.0.4"]}


def test_an_empty_link_that_somebody_has_renamed_is_left_to_them(full: Addresses) -> None:
    assert full.apply(delete("10.96.0.7")) == [0]
    run("ip", "link", "set", "kube-ipvs2", "name", "theirs")
    assert full.ensure_link() is False
    run("ip", "link", "show", "dev", "theirs")


def test_addresses_that_somebody_added_are_read_and_can_be_deleted(full: Addresses) -> None:
    run("ip", "address", "add", "10.96.9.9/32", "dev", "kube-ipvs1")
    run("ip", "address", "add", "fd00::9/128", "dev", "kube-ipvs2")
    run("ip", "link", "add", "kube-ipvs8", "type", "dummy")
    run("ip", "address", "add", "10.96.9.8/24", "dev", "kube-ipvs8")
    theirs = ["10.96.9.9", "fd00::9", "10.96.9.8"]
    assert full.read() == set(map(packed, [*vips(1, 7), *theirs]))
    assert full.apply(delete("10.96.9.9", "fd00::9")) == [0, 0]
    assert witnessed()["kube-ipvs1"] == vips(4, 6)
    assert witnessed()["kube-ipvs2"] == ["10.96.0.7"]


def test_an_address_on_two_links_goes_from_both(full: Addresses) -> None:
    run("ip", "address", "add", "10.96.0.1/32", "dev", "kube-ipvs1")
    run("ip", "address", "add", "10.96.0.1/32", "dev", "kube-ipvs2")
    assert full.read() == set(map(packed, vips(1, 7)))
    assert full.apply(delete("10.96.0.1")) == [0]
    assert witnessed() == {"kube-ipvs0": ["10.96.0.2", "10.96.0.3"], "kube-ipvs1": vips(4, 6), "kube-ipvs2": vips(7, 7)}


def test_a_link_that_somebody_deleted_is_made_again_once_that_is_read(full: Addresses) -> None:
    run("ip", "link", "delete", "kube-ipvs1")
    assert full.apply(add("10.96.0.4")) == [ENODEV]
    assert full.read() == set(map(packed, [*vips(1, 3), "10.96.0.7"]))
    assert full.apply(add(*vips(4, 6))) == [0] * 3
    assert witnessed() == {"kube-ipvs0": vips(1, 3), "kube-ipvs1": vips(4, 6), "kube-ipvs2": vips(7, 7)}


def test_without_the_first_link_nothing_is_written(full: Addresses) -> None:
    run("ip", "link", "delete", "kube-ipvs0")
    assert full.apply(delete("10.96.0.4")) == [ENODEV]
    assert full.read() == set(map(packed, vips(4, 7)))
    assert full.ensure_link() is True
    assert full.apply(add(*vips(1, 3))) == [0] * 3
    assert witnessed() == {"kube-ipvs0": vips(1, 3), "kube-ipvs1": vips(4, 6), "kube-ipvs2": vips(7, 7)}


def test_a_link_of_another_kind_keeps_its_name(addresses: Addresses) -> None:
    run("ip", "link", "add", "kube-ipvs1", "type", "bridge")
    run("ip", "address", "add", "192.0.2.1/24", "dev", "kube-ipvs1")
    assert addresses.apply(add(*vips(1, 4))) == [0] * 4
    assert addresses.read() == set(map(packed, vips(1, 4)))
    assert addresses.names() == ["kube-ipvs0", "kube-ipvs2"]
    addresses.delete_links()
    assert witnessed() == {"kube-ipvs1": ["192.0.2.1"]}


def test_all_links_are_named_and_deleted(full: Addresses) -> None:
    run("ip", "link", "add", "kube-ipvsx", "type", "dummy")
    run("ip", "link", "add", "kube-ipvs10", "type", "dummy")
    assert full.names() == ["kube-ipvs0", "kube-ipvs1", "kube-ipvs2", "kube-ipvs10"]
    run("ip", "link", "delete", "kube-ipvs0")
    assert full.names() == ["kube-ipvs1", "kube-ipvs2", "kube-ipvs10"]
    full.delete_links()
    full.delete_links()
    assert witnessed() == {"kube-ipvsx": []}


def test_what_becomes_of_further_links_is_told(full: Addresses) -> None:
    assert full.apply(delete("10.96.0.7")) == [0]
    with closing(Monitor()) as monitor:
        full.ensure_link()
        assert "kube-ipvs2" not in witnessed()
        assert monitor.read() == [], "it was empty"
        run("ip", "link", "delete", "kube-ipvs1")
        assert set(monitor.read()) == {LinkEvent(LinkChange.ADDRESS_REMOVED, packed(text)) for text in vips(4, 6)}
        full.read()
        assert full.apply(add("10.96.0.4")) == [0]
        assert monitor.read() == [
            LinkEvent(LinkChange.LINK_ADDED),
            LinkEvent(LinkChange.ADDRESS_ADDED, packed("10.96.0.4")),
        ]


def work(traffic: MessageCounts, before: MessageCounts) -> tuple[int, int]:
    return traffic.writes - before.writes, traffic.reads - before.reads


def test_a_change_costs_one_question_on_however_many_links() -> None:
    with closing(Addresses(room=ROOM)) as addresses:
        addresses.ensure_link()
        addresses.read()
        for number in range(1, 10):
            before = MessageCounts(addresses.traffic.writes, addresses.traffic.reads)
            assert addresses.apply(add(f"10.96.0.{number}")) == [0]
            # A link that is made is one message and one question more.
            made = number in {4, 7}
            assert work(addresses.traffic, before) == (1 + made, 1 + made)
        before = MessageCounts(addresses.traffic.writes, addresses.traffic.reads)
        assert addresses.apply(delete("10.96.0.1", "10.96.0.5", "10.96.0.9")) == [0, 0, 0]
        assert work(addresses.traffic, before) == (3, 1)
        before = MessageCounts(addresses.traffic.writes, addresses.traffic.reads)
        assert len(addresses.read()) == 6
        assert addresses.ensure_link() is False
        assert work(addresses.traffic, before) == (0, 4), "links, two families, and the first link once more"


def test_the_first_link_has_room_for_what_most_clusters_have() -> None:
    everything = [bytes((10, 96, number >> 8, number & 255)) for number in range(ADDRESSES_OF_A_LINK + 1)]
    with closing(Addresses()) as addresses:
        addresses.ensure_link()
        assert not any(addresses.apply([AddressOperation(Verb.ADD, address) for address in everything[:-1]]))
        assert addresses.names() == ["kube-ipvs0"]
        assert addresses.apply([AddressOperation(Verb.ADD, everything[-1])]) == [0]
        assert addresses.names() == ["kube-ipvs0", "kube-ipvs1"]
        assert addresses.read() == set(everything)
