"""ClusterIP Services with real packets: who answers, and which source address the pod sees.

One agent serves all tests of this module. The table ``SOURCES`` reads as documentation of the masquerade decision with
``--cluster-cidr``: a pod's address is kept wherever the pod runs; what comes from anywhere else gets an address of the
node, because the answer has to come back through it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import manifests
from lab.agent import Agent, running_agent
from lab.manifests import PORTS, TARGET_PORTS, endpoint
from lab.topology import ADDRESSES, FAMILIES, PODS, Topology, server, servers, topology

PROTOCOLS = ("TCP", "UDP", "SCTP")
EVERYWHERE = ("pod1", "pod2", "pod3", "pod4")
VIPS = {"IPv4": "10.96.0.20", "IPv6": "fd00:10:96::20"}
HAIRPIN = {"IPv4": "10.96.0.21", "IPv6": "fd00:10:96::21"}
AFFINITY = {"IPv4": "10.96.0.22", "IPv6": "fd00:10:96::22"}
NEAR = {"IPv4": "10.96.0.24", "IPv6": "fd00:10:96::24"}
EMPTY = {"IPv4": "10.96.0.23", "IPv6": "fd00:10:96::23"}

#: (where the client is, whose source address the pods see)
SOURCES = (
    ("pod1", "pod1"),
    ("pod4", "pod4"),
    ("node", "node"),
    ("client", "node"),
    ("peer", "node"),
)


def endpoints(*pods: str) -> list[dict]:
    """Endpoints of pods in both families, each on its node."""
    return [
        endpoint(ADDRESSES[pod][family], "peer" if pod == "pod4" else "node") for pod in pods for family in FAMILIES
    ]


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, EVERYWHERE, TARGET_PORTS):
        yield net


@pytest.fixture(scope="module")
def agent(net: Topology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    directory = tmp_path_factory.mktemp("manifests")
    services = {
        "all": (VIPS, EVERYWHERE, 0),
        "self": (HAIRPIN, ("pod1",), 0),
        "sticky": (AFFINITY, EVERYWHERE, 600),
        "near": (NEAR, PODS, 0),
        "empty": (EMPTY, (), 0),
    }
    manifests.write(directory, "node", manifests.node())
    for name, (vips, pods, affinity) in services.items():
        manifests.write(
            directory,
            name,
            manifests.service(name, *vips.values(), protocols=PROTOCOLS, affinity=affinity),
            *manifests.slices(name, endpoints(*pods), PROTOCOLS),
        )
    with running_agent(net, directory) as agent:
        yield agent


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("client", "seen"), SOURCES)
def test_cluster_ip_reaches_every_endpoint_and_masquerades_what_is_not_a_pod(
    net: Topology, client: str, seen: str, protocol: str, family: str
) -> None:
    # A pod of the other node reaches this one only through its own node's agent in a cluster, which also masquerades
    # the pod that answers itself: so it asks for the others here.
    vips, pods = (NEAR, PODS) if client == "pod4" else (VIPS, EVERYWHERE)
    answers = [net.ask(client, vips[family], PORTS[protocol], protocol) for _ in range(8)]
    assert {name for name, _ in answers} == set(pods)
    # A pod that answers itself is the hairpin: it must see the node, or it would answer past the node.
    sources = {source for name, source in answers if name != client}
    assert sources == {ADDRESSES[seen][family]}


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pod_reaches_itself_through_its_service_and_sees_the_node(net: Topology, protocol: str, family: str) -> None:
    assert net.ask("pod1", HAIRPIN[family], PORTS[protocol], protocol) == ("pod1", ADDRESSES["node"][family])


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_affinity_keeps_a_client_at_one_endpoint(net: Topology, protocol: str, family: str) -> None:
    answers = {net.ask("client", AFFINITY[family], PORTS[protocol], protocol)[0] for _ in range(8)}
    assert len(answers) == 1


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
def test_service_without_endpoints_gives_no_connection(net: Topology, family: str) -> None:
    with pytest.raises(OSError):
        net.ask("client", EMPTY[family], PORTS["TCP"], "TCP", timeout=1.0)


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
def test_port_of_the_node_itself_is_refused_at_a_cluster_ip(net: Topology, family: str) -> None:
    with server(net, "node", "0.0.0.0" if family == "IPv4" else "::", 2222):
        assert net.ask("client", ADDRESSES["node"][family], 2222)[0] == "node"
        with pytest.raises(OSError):
            net.ask("client", VIPS[family], 2222, timeout=1.0)
