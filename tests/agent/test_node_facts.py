"""The node's facts follow its Node and its interfaces."""

from __future__ import annotations

import asyncio
import threading
from errno import EPERM
from ipaddress import ip_network

import pytest
from structlog.testing import capture_logs

from ipvs_proxy.agent.sync.node_facts import ZONE, Facts, NodeFacts
from ipvs_proxy.kube.objects import Node, NodeAddress, NodeStatus, ObjectMeta
from ipvs_proxy.plan.node_addresses import PRIMARY
from ipvs_proxy.plan.tables import Family
from tests.support.objects import packed


class Host:
    """Interfaces that a test can change."""

    def __init__(self, **interfaces: str) -> None:
        self.error: OSError | None = None
        self.interfaces = dict(interfaces)

    def read(self) -> dict[str, set[bytes]]:
        if self.error is not None:
            raise self.error
        return {name: {packed(text) for text in texts.split()} for name, texts in self.interfaces.items()}


def node(*addresses: str, zone: str = "") -> Node:
    status = NodeStatus([NodeAddress("InternalIP", address) for address in addresses])
    return Node(ObjectMeta("here", labels={ZONE: zone} if zone else None), status=status)


def all_of(*texts: str) -> tuple[bytes, ...]:
    return tuple(map(packed, texts))


async def test_facts_come_from_the_node_and_the_interfaces() -> None:
    host = Host(lo="127.0.0.1 ::1", eth0="192.0.2.9 192.0.2.1 2001:db8::1 fe80::1")
    host.interfaces["kube-ipvs0"] = "10.96.0.1"
    facts = NodeFacts(host.read)
    assert facts.facts == Facts()
    assert await facts.refresh()
    assert facts.update(node("2001:db8::1", "192.0.2.1", zone="a"))
    assert facts.facts == Facts(
        host_addresses=frozenset(all_of("192.0.2.1", "192.0.2.9", "2001:db8::1")),
        node_port_addresses=all_of("192.0.2.1", "192.0.2.9", "2001:db8::1"),
        node_ips=all_of("2001:db8::1", "192.0.2.1"),
        node_addresses=frozenset(all_of("2001:db8::1", "192.0.2.1")),
        zone="a",
    )


async def test_what_stays_the_same_is_no_change_and_no_line() -> None:
    host = Host(eth0="192.0.2.1")
    facts = NodeFacts(host.read)
    await facts.refresh()
    facts.update(node("192.0.2.1"))
    host.interfaces = {"wan0": "192.0.2.1 fe80::7", "kube-ipvs0": "10.96.0.1"}
    with capture_logs() as logs:
        assert not await facts.refresh()
        assert not facts.update(node("192.0.2.1"))
        # A second address is one that Services should not ask for.
        assert facts.update(node("192.0.2.1", "192.0.2.2"))
    assert logs == []


async def test_a_change_is_logged_with_what_came_and_went() -> None:
    host = Host(eth0="192.0.2.1")
    facts = NodeFacts(host.read, node_port_cidrs=(ip_network("192.0.2.0/24"),))
    with capture_logs() as logs:
        assert await facts.refresh()
        host.interfaces["eth0"] = "192.0.2.3 10.0.0.1"
        assert await facts.refresh()
        host.interfaces["eth0"] = "192.0.2.3"
        assert await facts.refresh()
        assert facts.update(node("192.0.2.3"))
        assert facts.update(node("192.0.2.3", zone="b"))
    line = {"event": "node_facts_changed", "log_level": "info"}
    assert logs == [
        line | {"added": ["192.0.2.1"], "node_port_addresses": ["192.0.2.1"]},
        line | {"added": ["10.0.0.1", "192.0.2.3"], "removed": ["192.0.2.1"], "node_port_addresses": ["192.0.2.3"]},
        line | {"removed": ["10.0.0.1"]},
        line | {"node_ips": ["192.0.2.3"]},
        line | {"zone": "b"},
    ]


async def test_a_zone_of_any_length_is_quoted_in_part() -> None:
    facts = NodeFacts(Host(eth0="192.0.2.1").read)
    with capture_logs() as logs:
        assert facts.update(node("192.0.2.3", zone="\x1bz" * 100_000))
    assert len(logs[-1]["zone"]) < 250
    assert logs[-1]["zone"].isprintable()


async def test_primary_follows_the_node_and_the_bind_address() -> None:
    host = Host(eth0="192.0.2.1 192.0.2.2 2001:db8::1")
    facts = NodeFacts(host.read, node_port_cidrs=PRIMARY, bind_address=packed("2001:db8::1"))
    await facts.refresh()
    assert facts.facts.node_port_addresses == all_of("2001:db8::1")
    assert facts.update(node("192.0.2.2"))
    assert facts.facts.node_port_addresses == all_of("192.0.2.2", "2001:db8::1")
    assert facts.facts.node_ips == all_of("2001:db8::1", "192.0.2.2")
    assert facts.update(node("192.0.2.1"))
    assert facts.facts.node_port_addresses == all_of("192.0.2.1", "2001:db8::1")


async def test_a_family_that_the_host_has_not_is_left_out() -> None:
    facts = NodeFacts(Host(eth0="192.0.2.1 2001:db8::1").read, families=(Family.IPV4,))
    await facts.refresh()
    assert facts.facts.host_addresses == {packed("192.0.2.1")}
    assert facts.facts.node_port_addresses == all_of("192.0.2.1")


async def test_a_read_that_fails_leaves_the_facts() -> None:
    host = Host(eth0="192.0.2.1")
    facts = NodeFacts(host.read)
    await facts.refresh()
    before = facts.facts
    host.error = PermissionError(EPERM, "refused")
    with pytest.raises(PermissionError):
        await facts.refresh()
    assert facts.facts == before
    host.error = None
    host.interfaces["eth0"] = "192.0.2.2"
    assert await facts.refresh()


async def test_reads_do_not_overlap_and_the_last_one_counts() -> None:
    host, running = Host(eth0="192.0.2.1"), threading.Lock()

    def read() -> dict[str, set[bytes]]:
        assert running.acquire(blocking=False)
        try:
            return host.read()
        finally:
            running.release()

    facts = NodeFacts(read)
    assert (await asyncio.gather(*(facts.refresh() for _ in range(5)))).count(True) == 1
    assert facts.facts.host_addresses == {packed("192.0.2.1")}
