"""What changes on the node is followed without a restart: addresses of interfaces, the zone, the pods' network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import Agent, eventually, running_agent
from lab.manifests import TARGET_PORTS, endpoint
from lab.topology import ADDRESSES, Topology, servers, topology
from lab.witness import virtual_servers, weights

VIP = "10.96.0.50"
NEW_ADDRESS = "192.0.2.99"


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, ("pod1", "pod2"), TARGET_PORTS):
        yield net


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manifests")
    write_node(directory, "zone-a")
    hinted = [
        endpoint(ADDRESSES[pod]["IPv4"]) | {"hints": {"forZones": [{"name": zone}]}}
        for pod, zone in (("pod1", "zone-a"), ("pod2", "zone-b"))
    ]
    service = manifests.service(
        "web", VIP, node_ports={"TCP": 30050}, type="NodePort", externalIPs=[NEW_ADDRESS, "203.0.114.50"]
    )
    manifests.write(directory, "web", service, *manifests.slices("web", hinted))
    return directory


def write_node(directory: Path, zone: str, pods: list[str] | None = None) -> None:
    node = manifests.node()
    node["metadata"]["labels"] = {"topology.kubernetes.io/zone": zone}
    if pods is not None:
        node["spec"]["podCIDRs"] = pods
    manifests.write(directory, "node", node)


@pytest.fixture(scope="module")
def agent(net: Topology, directory: Path) -> Iterator[Agent]:
    with running_agent(net, directory, "--detect-local-mode", "NodeCIDR") as agent:
        yield agent


@pytest.mark.usefixtures("agent")
def test_zone_hints_follow_the_nodes_label(net: Topology, directory: Path) -> None:
    assert set(weights(net, VIP, 80)) == {ADDRESSES["pod1"]["IPv4"]}
    write_node(directory, "zone-b")
    eventually(lambda: weights(net, VIP, 80).get(ADDRESSES["pod2"]["IPv4"]) == 1)
    eventually(lambda: not weights(net, VIP, 80).get(ADDRESSES["pod1"]["IPv4"]))
    write_node(directory, "zone-a")
    eventually(lambda: weights(net, VIP, 80).get(ADDRESSES["pod1"]["IPv4"]) == 1)


@pytest.mark.usefixtures("agent")
def test_a_node_port_follows_an_address_of_an_interface(net: Topology) -> None:
    net.run("node", "ip", "address", "add", f"{NEW_ADDRESS}/32", "dev", "lo")
    eventually(lambda: (NEW_ADDRESS, 6, 30050) in virtual_servers(net))
    # It is also an external IP: the interface has it, so kube-ipvs0 gives it back.
    eventually(lambda: NEW_ADDRESS not in net.run("node", "ip", "-o", "address", "show", "dev", "kube-ipvs0"))
    assert (NEW_ADDRESS, 6, 80) in virtual_servers(net)
    assert net.ask("node", NEW_ADDRESS, 30050)[0] == "pod1"
    net.run("node", "ip", "address", "delete", f"{NEW_ADDRESS}/32", "dev", "lo")
    # The connection of a moment ago drains, for the minutes that the kernel remembers it.
    eventually(lambda: not virtual_servers(net).get((NEW_ADDRESS, 6, 30050)))
    eventually(lambda: NEW_ADDRESS in net.run("node", "ip", "-o", "address", "show", "dev", "kube-ipvs0"))


def test_rules_follow_the_network_of_the_nodes_pods(net: Topology, directory: Path, agent: Agent) -> None:
    assert "! -s 10.244.1.0/24" in net.run("node", "iptables-save")
    write_node(directory, "zone-a", ["10.244.7.0/24", "fd00:10:244:7::/64"])
    agent.wait_for("rules_adapted")
    eventually(lambda: "! -s 10.244.7.0/24" in net.run("node", "iptables-save"))
    assert "! -s fd00:10:244:7::/64" in net.run("node", "ip6tables-save")
