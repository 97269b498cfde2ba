"""Whose a virtual server is, by what else the kernel holds."""

from __future__ import annotations

import pytest

from ipvs_proxy.plan.marks import CLASS, mark_key
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.ownership import handed_over, has_family, ledger
from ipvs_proxy.plan.tables import Family, Protocol, SetEntry, SetEntryOperation, Verb, VirtualServer, VirtualServerKey
from tests.support.objects import packed, virtual
from tests.support.roles import role

SHARED, OTHER = "203.0.115.1", "203.0.115.2"
EXTERNAL = ("KUBE-LOAD-BALANCER", "KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL")


def tables(*members: tuple[str, SetEntry], addresses: tuple[str, ...] = (SHARED,)) -> KernelTables:
    found = KernelTables(addresses=set(map(packed, addresses)))
    for name, entry in members:
        found.entries.setdefault(role(name), set()).add(entry)
    return found


def member(name: str, address: str, port: int) -> tuple[str, SetEntry]:
    return name, SetEntry(packed(address), Protocol.TCP, port)


@pytest.mark.parametrize("name", EXTERNAL)
def test_at_an_external_address_only_what_a_set_names_is_ours(name: str) -> None:
    is_ours = ledger(tables(member(name, SHARED, 80)))
    assert is_ours(virtual(SHARED, 80))
    assert not is_ours(virtual(SHARED, 6443))
    assert not is_ours(virtual(SHARED, 80, Protocol.UDP))


@pytest.mark.parametrize("name", [*EXTERNAL, "KUBE-CLUSTER-IP", "IPVS-PROXY-LEAVING"])
def test_what_a_set_names_is_ours_whether_its_address_is_on_the_link_or_not(name: str) -> None:
    assert ledger(tables(member(name, SHARED, 80), addresses=()))(virtual(SHARED, 80))


def test_at_a_cluster_ip_all_is_ours() -> None:
    """A crash may have left a port of it that no set names any more; nobody else balances at a cluster IP."""
    is_ours = ledger(tables(member("KUBE-CLUSTER-IP", SHARED, 80), member("KUBE-EXTERNAL-IP", SHARED, 80)))
    assert is_ours(virtual(SHARED, 81))


def test_at_an_address_of_the_link_that_no_set_names_all_is_ours() -> None:
    """Somebody flushed the sets, as is often advised to get rid of kube-proxy."""
    assert ledger(tables(member("KUBE-LOAD-BALANCER", OTHER, 80)))(virtual(SHARED, 6443))
    assert ledger(tables())(virtual(SHARED, 6443))


def test_what_nothing_names_is_foreign() -> None:
    assert not ledger(tables(addresses=()))(virtual(SHARED, 80))
    assert not ledger(KernelTables())(VirtualServerKey(packed("fd00::1"), Protocol.SCTP, 80))


@pytest.mark.parametrize(
    ("name", "protocol", "entry"),
    [
        ("KUBE-NODE-PORT-TCP", Protocol.TCP, SetEntry(port=30080)),
        ("KUBE-NODE-PORT-UDP", Protocol.UDP, SetEntry(port=30080)),
        ("KUBE-NODE-PORT-SCTP-HASH", Protocol.SCTP, SetEntry(packed("192.0.2.1"), Protocol.SCTP, 30080)),
    ],
)
def test_node_ports_are_ours_on_any_address_of_the_node(name: str, protocol: Protocol, entry: SetEntry) -> None:
    is_ours = ledger(tables((name, entry), addresses=()))
    assert is_ours(virtual("192.0.2.1", 30080, protocol))
    assert not is_ours(virtual("192.0.2.1", 30081, protocol))


def test_marks_of_ours_are_ours() -> None:
    assert ledger(KernelTables())(mark_key(CLASS | 5, Family.IPV6))


def test_members_of_another_packet_filter_are_handed_over_to_the_sets_that_are_there() -> None:
    known, new = (SetEntry(packed(SHARED), Protocol.TCP, port) for port in (80, 81))
    cluster, bits = role("KUBE-CLUSTER-IP"), role("IPVS-PROXY-LEAVING")
    left = {cluster: {known, new}, bits: {new}}
    assert list(handed_over(left, {cluster: {known}})) == [SetEntryOperation(Verb.ADD, cluster, new)]
    assert list(handed_over(left, {cluster: {known, new}, bits: {new}})) == []


def test_an_address_that_has_a_mark_already_keeps_it() -> None:
    internal = role("IPVS-PROXY-INTERNAL")
    bare = SetEntry(packed(SHARED), Protocol.TCP, 80)
    left, own = bare._replace(mark=CLASS | 5), bare._replace(mark=CLASS | 9)
    assert list(handed_over({internal: {left}}, {internal: {own}})) == []
    assert list(handed_over({internal: {left}}, {internal: set()})) == [SetEntryOperation(Verb.ADD, internal, left)]


@pytest.mark.parametrize(
    ("actual", "families"),
    [
        (KernelTables(), set()),
        (KernelTables(entries={role("KUBE-6-CLUSTER-IP"): set()}), set()),
        (KernelTables(entries={role("KUBE-6-CLUSTER-IP"): {SetEntry(packed("fd00::1"), 6, 80)}}), {Family.IPV6}),
        (KernelTables(entries={role("KUBE-NODE-PORT-TCP"): {SetEntry(port=80)}}), {Family.IPV4}),
        (KernelTables(addresses={packed("10.96.0.1")}), {Family.IPV4}),
        (KernelTables(addresses={packed("10.96.0.1"), packed("fd00::1")}), set(Family)),
        (KernelTables({virtual("fd00::1"): VirtualServer(virtual("fd00::1"), "rr")}), {Family.IPV6}),
        (KernelTables({(key := mark_key(CLASS | 5, Family.IPV6)): VirtualServer(key, "rr")}), {Family.IPV6}),
    ],
    ids=[
        "nothing",
        "an empty set",
        "a member",
        "a node port",
        "an address",
        "addresses of both",
        "a virtual server",
        "one behind a mark",
    ],
)
def test_a_family_of_which_the_kernel_holds_anything_may_have_virtual_servers_of_ours(
    actual: KernelTables, families: set[Family]
) -> None:
    assert {family for family in Family if has_family(actual, family)} == families
