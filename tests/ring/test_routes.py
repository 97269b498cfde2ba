"""Services whose addresses have routes only, as on a node with very many of them; with real packets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import Agent, eventually, running_agent
from lab.manifests import PORTS, TARGET_PORTS
from lab.topology import ADDRESSES, Topology, server, servers, topology
from lab.witness import addresses, assert_as_planned, routed
from tests.ring.kube_proxy import ipvs_proxy
from tests.ring.troubles import answers_arp
from tests.ring.web_service import PODS, VIPS, write_objects

VIP4 = VIPS["IPv4"]
GONE = "10.96.9.9"
NO_AUDIT = ("--ipvs-sync-period", "1h")
AUDITS = ("--ipvs-sync-period", "300ms")


@pytest.fixture
def net() -> Iterator[Topology]:
    """A node whose former agent has left the route of a Service that there is, and that of a Service that is gone."""
    with topology() as net, servers(net, PODS, TARGET_PORTS):
        net.run("node", "ip", "link", "add", "kube-ipvs0", "type", "dummy")
        for address in (VIP4, GONE):
            route = f"local {address} table local dev kube-ipvs0 proto 73 scope host"
            net.run("node", "ip", "route", "add", *route.split())
        yield net


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_objects(tmp_path)


def answers(net: Topology) -> bool:
    """Whether both addresses answer, to a client, a pod and the node itself."""
    asked = [net.ask(who, vip, PORTS["TCP"])[0] for who in ("client", "pod4", "node") for vip in VIPS.values()]
    return set(asked) <= set(PODS)


def repaired(agent: Agent, table: str) -> int:
    return len([event for event in agent.named("drift_repaired") if event["table"] == table])


def test_an_address_that_has_a_route_is_taken_over_and_serves(net: Topology, directory: Path) -> None:
    with running_agent(net, directory, *NO_AUDIT) as agent:
        assert_as_planned(net, directory)
        assert routed(net) == {VIP4}
        assert answers(net)
        assert answers_arp(net, VIP4), "the node answers for it as for any address of its own"
        # A port of the node itself is no more open there than at an address of the link.
        with server(net, "node", "0.0.0.0", 4444):
            assert net.ask("client", ADDRESSES["node"]["IPv4"], 4444)[0] == "node"
            with pytest.raises(ConnectionRefusedError):
                net.connect("client", VIP4, 4444)
        agent.stop()
    with running_agent(net, directory, *NO_AUDIT) as successor:
        assert successor.named("started")[0]["kernel_writes"] == 0
        assert routed(net) == {VIP4}
        assert answers(net)


def test_routes_are_back_at_once_after_the_link_was_deleted(net: Topology, directory: Path) -> None:
    with running_agent(net, directory, *NO_AUDIT) as agent:
        net.run("node", "ip", "link", "delete", "kube-ipvs0")
        eventually(lambda: repaired(agent, "addresses") == 1, patience=20.0)
        eventually(lambda: addresses(net) == set(VIPS.values()), patience=20.0)
        assert answers(net)


def test_a_route_that_somebody_deleted_is_back_with_the_next_audit(net: Topology, directory: Path) -> None:
    with running_agent(net, directory, *AUDITS) as agent:
        before = repaired(agent, "addresses")
        net.run("node", "ip", "route", "delete", "local", VIP4, "table", "local", "dev", "kube-ipvs0")
        eventually(lambda: repaired(agent, "addresses") > before)
        eventually(lambda: addresses(net) == set(VIPS.values()))
        assert answers(net)


def test_a_route_goes_with_its_service(net: Topology, directory: Path) -> None:
    with running_agent(net, directory, *NO_AUDIT):
        (directory / "service.json").unlink()
        eventually(lambda: not addresses(net))
        manifests.write(directory, "service", manifests.service("web", *VIPS.values()))
        eventually(lambda: assert_as_planned(net, directory) is None)
        assert answers(net)


def test_cleanup_removes_routes_with_the_link(net: Topology, directory: Path) -> None:
    with running_agent(net, directory, *NO_AUDIT) as agent:
        agent.stop()
    assert routed(net) == {VIP4}
    done = ipvs_proxy(net, "cleanup")
    assert (done.returncode, done.stderr) == (0, "")
    assert "removed the link kube-ipvs0 with 2 addresses" in done.stdout.splitlines()
    assert VIP4 not in net.run("node", "ip", "route", "show", "table", "local")


def test_doctor_finds_an_address_that_has_a_route_on_another_link(net: Topology, directory: Path) -> None:
    net.run("node", "ip", "link", "add", "dns", "type", "dummy")
    net.run("node", "ip", "address", "add", f"{VIP4}/32", "dev", "dns")
    with running_agent(net, directory, *NO_AUDIT):
        assert f"{VIP4} is on kube-ipvs0 and on dns" in " ".join(ipvs_proxy(net, "doctor").stdout.split())
