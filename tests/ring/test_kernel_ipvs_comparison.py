"""IPVS compared with what is known of it, against a real kernel that ipvsadm changes; by both ways to list it."""

from __future__ import annotations

from contextlib import closing

import pytest

from ipvs_proxy.kernel.ipvs.comparison import Comparison
from ipvs_proxy.kernel.ipvs.records import ListDifference
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.netlink.socket import MessageCounts
from ipvs_proxy.plan.addresses import parse_address
from ipvs_proxy.plan.marks import mark_key
from ipvs_proxy.plan.tables import (
    ACTIVE,
    ONE_PACKET,
    PERSISTENT,
    SCHED1,
    SCHED2,
    Family,
    Protocol,
    RealServer,
    RealServerKey,
    RealServerOperation,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
)
from tests.support.namespaces import fresh_namespace, missing_piece, run

pytestmark = pytest.mark.skipif(missing_piece() is not None, reason=str(missing_piece()))


def virtual(address: str, port: int = 80, protocol: Protocol = Protocol.TCP) -> VirtualServerKey:
    return VirtualServerKey(parse_address(address), protocol, port)


def real(address: str, port: int = 8080) -> RealServerKey:
    return RealServerKey(parse_address(address), port)


ONE, TWO, THREE, SIX = virtual("10.96.0.1"), virtual("10.96.0.2"), virtual("10.96.0.3"), virtual("fd00::1")
MARK = 0x2005


@pytest.fixture(autouse=True)
def namespace():
    with fresh_namespace():
        yield


@pytest.fixture
def traffic():
    return MessageCounts()


@pytest.fixture
def comparison(namespace, traffic):
    with closing(Comparison(Ipvs(traffic=traffic))) as made:
        yield made


@pytest.fixture(params=[True, False], ids=["netlink", "getsockopt"])
def ipv6(request):
    """Whether the list has IPv6 in it, which only netlink can tell."""
    return request.param


def fill(*servers: VirtualServer) -> dict[VirtualServerKey, VirtualServer]:
    """Add virtual servers with their real servers; return them as they are known then."""
    operations = []
    for server in servers:
        operations.append(VirtualServerOperation(Verb.ADD, server))
        operations += [
            RealServerOperation(Verb.ADD, server.key, key, settings) for key, settings in server.real_servers.items()
        ]
    with closing(Ipvs()) as ipvs:
        assert not any(ipvs.apply(operations))
        return ipvs.read().virtual_servers


def with_one(key: VirtualServerKey) -> VirtualServer:
    return VirtualServer(key, "rr", real_servers={real("fd01::1" if len(key.address) == 16 else "10.0.0.1"): ACTIVE})


@pytest.mark.parametrize(
    ("change", "listed", "looked_at"),
    [
        ((), [], []),
        (("-E", "-t", "10.96.0.2:80", "-s", "wlc"), [TWO], []),
        (("-E", "-t", "10.96.0.2:80", "-s", "rr", "-p", "300"), [TWO], []),
        (("-D", "-t", "10.96.0.3:80"), [THREE], [THREE]),
        (("-C",), [ONE, TWO, THREE, SIX], [ONE, TWO, THREE, SIX]),
        (("-e", "-t", "10.96.0.1:80", "-r", "10.0.0.1:8080", "-m", "-w", "3"), [], [ONE]),
        (("-d", "-t", "10.96.0.1:80", "-r", "10.0.0.1:8080"), [ONE], [ONE]),
        (("-a", "-t", "[fd00::1]:80", "-r", "[fd01::2]:8080", "-m"), [], [SIX]),
        (("-E", "-t", "[fd00::1]:80", "-s", "wlc"), [SIX], []),
        (("-D", "-t", "[fd00::1]:80"), [SIX], [SIX]),
    ],
    ids=str,
)
def test_whatever_differs_from_what_is_known_is_found(comparison, change, listed, looked_at, ipv6):
    known = fill(*map(with_one, (ONE, TWO, THREE, SIX)))
    if change:
        run("ipvsadm", *change)
    found = comparison.compare_list(known, ipv6=ipv6)
    assert set(found.differing) == {key for key in listed if ipv6 or key is not SIX}
    assert (found.unknown, found.ipv6) == ({}, ipv6)
    assert set(comparison.differing(known.values())) == set(looked_at)


@pytest.mark.parametrize(
    "server",
    [
        VirtualServer(ONE, "rr"),
        VirtualServer(ONE, "wlc", PERSISTENT, 10800),
        VirtualServer(ONE, "wlc", PERSISTENT, 300, 24),
        VirtualServer(virtual("10.96.0.1", 53, Protocol.UDP), "rr", ONE_PACKET),
        VirtualServer(ONE, "mh", SCHED1 | SCHED2),
        VirtualServer(virtual("10.96.0.1", 65535, Protocol.SCTP), "sed"),
        VirtualServer(mark_key(MARK, Family.IPV4), "lc"),
    ],
    ids=str,
)
def test_both_lists_read_the_same_settings(comparison, server):
    known = fill(server)
    assert known == {server.key: server}
    for ipv6 in (True, False):
        assert comparison.compare_list({}, ipv6=ipv6) == ListDifference([], known, ipv6)
        assert comparison.compare_list(known, ipv6=ipv6) == ListDifference([], {}, ipv6)


def test_what_is_not_known_is_listed_with_its_real_servers(comparison, ipv6):
    known = fill(with_one(ONE), with_one(SIX))
    run("ipvsadm", "-A", "-f", "9", "-s", "rr")
    run("ipvsadm", "-A", "-u", "192.0.2.1:53", "-s", "rr")
    run("ipvsadm", "-a", "-u", "192.0.2.1:53", "-r", "192.0.2.2:53", "-m", "-w", "2")
    run("ipvsadm", "-A", "-t", "[fd00::9]:80", "-s", "rr")
    fill(VirtualServer(mark_key(MARK, Family.IPV4), "rr"))
    differing, unknown, _ = comparison.compare_list(known, ipv6=ipv6)
    foreign = virtual("192.0.2.1", 53, Protocol.UDP)
    expected = {foreign, mark_key(MARK, Family.IPV4)} | ({virtual("fd00::9")} if ipv6 else set())
    assert (differing, set(unknown)) == ([], expected), "a mark that is not ours is left out"
    assert unknown[foreign].real_servers == {real("192.0.2.2", 53): RealServer(2)}


def test_a_real_server_of_the_other_family_is_found(comparison, ipv6):
    """IPVS's older interface leaves it out of the real servers, but counts it."""
    with closing(Ipvs()) as ipvs:
        known = VirtualServer(ONE, "rr", real_servers={real("10.244.0.1"): ACTIVE})
        ipvs.apply(
            [VirtualServerOperation(Verb.ADD, known), RealServerOperation(Verb.ADD, ONE, real("10.244.0.1"), ACTIVE)]
        )
    assert comparison.compare_list({ONE: known}, ipv6=ipv6).differing == []
    run("ipvsadm", "-a", "-t", "10.96.0.1:80", "-r", "[fd00::7]:80", "-i")
    assert comparison.compare_list({ONE: known}, ipv6=ipv6).differing == [ONE]


def test_a_round_takes_a_system_call_for_each_virtual_server_and_few_for_the_list(comparison, traffic):
    known = fill(*(with_one(virtual(f"10.96.{number // 250}.{number % 250 + 1}")) for number in range(600)))
    before = traffic.system_calls
    assert comparison.differing(known.values()) == []
    assert traffic.system_calls - before == 600
    before = traffic.system_calls
    assert comparison.compare_list(known, ipv6=False) == ListDifference([], {}, False)
    assert traffic.system_calls - before == 2
    assert comparison.compare_list(known, ipv6=True) == ListDifference([], {}, True)
    assert traffic.system_calls - before <= 2 + 10


def test_without_ipv4_everything_is_asked_over_netlink(comparison, monkeypatch):
    def refuse(_: MessageCounts) -> None:
        raise OSError("no IPv4")

    monkeypatch.setattr("ipvs_proxy.kernel.ipvs.sockopt.QuickLook", refuse)
    known = fill(with_one(ONE), with_one(SIX))
    assert comparison.differing(known.values()) == []
    assert comparison.compare_list(known, ipv6=False) == ListDifference([], {}, True)
