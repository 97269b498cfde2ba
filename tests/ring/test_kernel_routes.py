"""Local routes in the place of addresses where these are very many, against a real kernel; ``ip`` is the witness."""

from __future__ import annotations

import json
import socket as sockets
from collections.abc import Iterator
from contextlib import closing
from errno import EADDRNOTAVAIL, EEXIST, ENODEV

import pytest

from ipvs_proxy.kernel.links.addresses import Addresses
from ipvs_proxy.kernel.links.placement import MOST_ADDRESSES
from ipvs_proxy.netlink.socket import MessageCounts
from ipvs_proxy.plan.tables import AddressOperation, Verb
from lab.namespaces import NETWORK, unshare
from tests.support.namespaces import fresh_namespace, missing_piece, run
from tests.support.objects import packed

pytestmark = pytest.mark.skipif(missing_piece() is not None, reason=str(missing_piece()))

MOST = 3
#: As ``ip route`` takes what the agent makes.
OURS = ("table", "local", "dev", "kube-ipvs0", "proto", "73", "scope", "host")


def operations(verb: Verb, *texts: str) -> list[AddressOperation]:
    return [AddressOperation(verb, packed(text)) for text in texts]


def add(*texts: str) -> list[AddressOperation]:
    return operations(Verb.ADD, *texts)


def delete(*texts: str) -> list[AddressOperation]:
    return operations(Verb.DELETE, *texts)


def vips(first: int, last: int) -> list[str]:
    return [f"10.96.0.{number}" for number in range(first, last + 1)]


def on_link() -> list[str]:
    (link,) = json.loads(run("ip", "-json", "address", "show", "dev", "kube-ipvs0"))
    return sorted(info["local"] for info in link["addr_info"])


def routed() -> list[str]:
    shown = json.loads(run("ip", "-json", "route", "show", "table", "local", "type", "local", "proto", "73") or "[]")
    assert {route["dev"] for route in shown} <= {"kube-ipvs0"}
    return sorted(route["dst"] for route in shown)


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with fresh_namespace():
        yield


@pytest.fixture
def addresses() -> Iterator[Addresses]:
    with closing(Addresses(most=MOST)) as made:
        made.ensure_link()
        yield made


@pytest.fixture
def full(addresses: Addresses) -> Addresses:
    """Three addresses and three routes."""
    assert not any(addresses.apply(add(*vips(1, 6))))
    return addresses


def test_beyond_the_bound_ipv4_has_routes_and_ipv6_addresses(addresses: Addresses) -> None:
    ipv6 = ["fd00::1", "fd00::2", "fd00::3", "fd00::4"]
    assert addresses.apply(add(*ipv6[:2], *vips(1, 2))) == [0] * 4
    assert routed() == []
    assert addresses.apply(add(*vips(3, 5), *ipv6[2:])) == [0] * 5
    assert on_link() == [*vips(1, 3), *ipv6]
    assert routed() == vips(4, 5)
    assert addresses.read() == set(map(packed, [*vips(1, 5), *ipv6]))


def test_a_route_does_what_an_address_does(full: Addresses) -> None:
    """Packets to it are the node's, programs can bind to it, and it is the source of the node's own connections."""
    del full
    run("ip", "link", "add", "eth0", "type", "dummy")
    run("ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
    run("ip", "link", "set", "eth0", "up")
    seen = []
    for vip in ("10.96.0.1", "10.96.0.4"):
        assert run("ip", "route", "get", vip).split()[:2] == ["local", vip]
        assert run("ip", "route", "get", "192.0.2.7", "from", vip).split()[2] == vip
        with (
            sockets.create_server((vip, 0)) as listener,
            sockets.create_connection(listener.getsockname()) as client,
            listener.accept()[0] as served,
        ):
            client.sendall(b"!")
            seen.append((served.recv(1), served.getpeername()[0] == vip, client.getsockname()[0] == vip))
    assert seen == [(b"!", True, True)] * 2


def test_what_is_there_stays_as_it_is(full: Addresses) -> None:
    assert full.apply(add("10.96.0.1", "10.96.0.5")) == [EEXIST, EEXIST]
    assert full.apply(delete("10.96.0.2")) == [0]
    assert full.apply(add("10.96.0.6", "10.96.0.7", "10.96.0.8")) == [EEXIST, 0, 0]
    assert (on_link(), routed()) == (["10.96.0.1", "10.96.0.3", "10.96.0.7"], [*vips(4, 6), "10.96.0.8"])


def test_each_is_deleted_as_what_it_is(full: Addresses) -> None:
    assert full.apply(delete("10.96.0.2", "10.96.0.5", "10.96.0.9")) == [0, 0, EADDRNOTAVAIL]
    assert (on_link(), routed()) == (["10.96.0.1", "10.96.0.3"], ["10.96.0.4", "10.96.0.6"])
    assert full.apply(delete("10.96.0.2", "10.96.0.5")) == [EADDRNOTAVAIL, EADDRNOTAVAIL]
    assert run("ip", "route", "get", "10.96.0.4").split()[0] == "local"


def test_routes_stay_when_the_last_address_goes(full: Addresses) -> None:
    assert full.apply(delete(*vips(1, 3))) == [0] * 3
    assert (on_link(), routed()) == ([], vips(4, 6))
    assert full.read() == set(map(packed, vips(4, 6)))


def test_the_next_agent_finds_addresses_and_routes(full: Addresses) -> None:
    with closing(Addresses(most=MOST)) as later:
        assert later.read() == set(map(packed, vips(1, 6)))
        assert later.traffic.writes == 0
        assert later.apply(delete("10.96.0.1", "10.96.0.4") + add("10.96.0.7", "10.96.0.8")) == [0] * 4
    assert (on_link(), routed()) == (["10.96.0.2", "10.96.0.3", "10.96.0.7"], ["10.96.0.5", "10.96.0.6", "10.96.0.8"])
    with closing(Addresses(most=MOST)) as unread:
        assert unread.apply(delete("10.96.0.5", "10.96.0.2")) == [0, 0]
    assert (on_link(), routed()) == (["10.96.0.3", "10.96.0.7"], ["10.96.0.6", "10.96.0.8"])
    assert full.read() == set(map(packed, ["10.96.0.3", "10.96.0.6", "10.96.0.7", "10.96.0.8"]))


def test_what_an_earlier_version_put_on_the_link_stays_there(addresses: Addresses) -> None:
    for text in vips(1, 8):
        run("ip", "address", "add", f"{text}/32", "dev", "kube-ipvs0")
    assert addresses.read() == set(map(packed, vips(1, 8)))
    assert addresses.apply(delete("10.96.0.8") + add("10.96.0.9")) == [0, 0]
    assert (on_link(), routed()) == (vips(1, 7), ["10.96.0.9"])


def test_what_somebody_adds_or_takes_away_is_read(full: Addresses) -> None:
    run("ip", "route", "add", "local", "10.96.9.9", *OURS)
    run("ip", "route", "delete", "local", "10.96.0.4", *OURS)
    run("ip", "address", "add", "10.96.0.5/32", "dev", "kube-ipvs0")
    assert full.read() == set(map(packed, [*vips(1, 3), *vips(5, 6), "10.96.9.9"]))
    # One that has both goes with both.
    assert full.apply(delete("10.96.9.9", "10.96.0.5")) == [0, 0]
    assert (on_link(), routed()) == (vips(1, 3), ["10.96.0.6"])
    assert full.apply(add("10.96.0.4")) == [0]
    assert routed() == ["10.96.0.4", "10.96.0.6"]
    # An address that comes and goes takes no route of ours with it.
    for verb in ("add", "delete"):
        run("ip", "address", verb, "10.96.0.6/32", "dev", "kube-ipvs0")
    assert routed() == ["10.96.0.4", "10.96.0.6"]


def test_routes_of_others_are_left_alone(full: Addresses) -> None:
    """A route of another protocol, to another link, to a network, and of another table."""
    run("ip", "link", "add", "eth0", "type", "dummy")
    run("ip", "link", "set", "eth0", "up")
    theirs = (
        "local 10.97.0.1 table local dev kube-ipvs0 proto 4 scope host",
        "local 10.97.0.2 table local dev eth0 proto 73 scope host",
        "local 10.97.1.0/24 table local dev kube-ipvs0 proto 73 scope host",
        "local 10.97.0.3 table 100 dev kube-ipvs0 proto 73 scope host",
        "10.97.0.4 table main dev eth0 proto 73",
    )
    for route in theirs:
        run("ip", "route", "add", *route.split())
    assert full.read() == set(map(packed, vips(1, 6)))
    with closing(Addresses(most=MOST)) as later:
        assert later.read() == set(map(packed, vips(1, 6)))


def test_a_route_is_made_beside_the_address_of_another_link(full: Addresses) -> None:
    run("ip", "link", "add", "eth0", "type", "dummy")
    run("ip", "address", "add", "10.96.0.8/32", "dev", "eth0")
    assert full.apply(add("10.96.0.8")) == [0]
    assert full.read() == set(map(packed, [*vips(1, 6), "10.96.0.8"]))
    run("ip", "address", "delete", "10.96.0.8/32", "dev", "eth0")
    assert run("ip", "route", "get", "10.96.0.8").split()[0] == "local"
    run("ip", "address", "add", "10.96.0.8/32", "dev", "eth0")
    assert full.apply(delete("10.96.0.8")) == [0]
    assert run("ip", "route", "get", "10.96.0.8").split()[0] == "local", "it is still the other link's"


def test_routes_go_with_the_link(full: Addresses) -> None:
    run("ip", "link", "delete", "kube-ipvs0")
    assert routed() == []
    assert full.read() == set()
    assert full.apply(add("10.96.0.4")) == [ENODEV]
    assert full.ensure_link() is True
    assert full.apply(add(*reversed(vips(1, 6)))) == [0] * 6
    assert (on_link(), routed()) == (vips(4, 6), vips(1, 3))
    full.delete_link()
    assert routed() == []


def test_a_link_that_is_set_up_and_down_keeps_its_routes(full: Addresses) -> None:
    for state in ("up", "down"):
        run("ip", "link", "set", "kube-ipvs0", state)
        assert full.read() == set(map(packed, vips(1, 6)))
        assert run("ip", "route", "get", "10.96.0.4").split()[0] == "local"


def test_a_namespace_without_any_ipv4_address_is_read() -> None:
    """Not even lo has one: the table of local routes is not there yet."""
    unshare(NETWORK)
    with closing(Addresses(most=0)) as addresses:
        addresses.ensure_link()
        assert addresses.read() == set()
        assert addresses.apply(add("fd00::1", "10.96.0.1")) == [0, 0]
        assert addresses.read() == {packed("fd00::1"), packed("10.96.0.1")}
        assert routed() == ["10.96.0.1"]


def work(traffic: MessageCounts, before: MessageCounts) -> tuple[int, int]:
    return traffic.writes - before.writes, traffic.reads - before.reads


def test_below_the_bound_only_the_first_read_asks_for_routes() -> None:
    with closing(Addresses(most=MOST)) as addresses:
        addresses.ensure_link()
        spent = []
        for call in (
            addresses.read,
            lambda: addresses.apply(add(*vips(1, 2))),
            addresses.read,
            lambda: addresses.apply(delete("10.96.0.1")),
            lambda: addresses.apply(add("10.96.0.1")),
            addresses.read,
            lambda: addresses.apply(add(*vips(3, 4))),
            addresses.read,
            lambda: addresses.apply(delete("10.96.0.4")),
            addresses.read,
            addresses.read,
        ):
            before = MessageCounts(addresses.traffic.writes, addresses.traffic.reads)
            call()
            spent.append(work(addresses.traffic, before))
    # A read is the link and two families, and routes where there may be any; a write looks the link up.
    assert spent == [(0, 4), (2, 1), (0, 3), (1, 1), (1, 1), (0, 3), (2, 1), (0, 4), (1, 1), (0, 4), (0, 4)]


def test_the_link_has_room_for_what_most_clusters_have() -> None:
    everything = [bytes((10, 96, number >> 8, number & 255)) for number in range(MOST_ADDRESSES + 2)]
    with closing(Addresses()) as addresses:
        addresses.ensure_link()
        assert not any(addresses.apply([AddressOperation(Verb.ADD, address) for address in everything[:-2]]))
        assert routed() == []
        assert not any(addresses.apply([AddressOperation(Verb.ADD, address) for address in everything[-2:]]))
        assert list(map(packed, routed())) == everything[-2:]
        assert addresses.read() == set(everything)
