"""The agent never loses the API server to a Service: it keeps its connection and hears of the correction.

The API server is on the other node, in a network namespace of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import manifests
from lab.agent import command, eventually, running_agent
from lab.manifests import endpoint
from lab.topology import ADDRESSES, Topology, servers, topology
from lab.witness import addresses, virtual_servers
from tests.support.cluster import Cluster, kubeconfig, listen, serving

PODS = ADDRESSES["pod1"].values()
API, OTHER_API = ADDRESSES["peer"]["IPv4"], ADDRESSES["client"]["IPv4"]
NODE = ADDRESSES["node"]["IPv4"]
CLUSTER_IPS, KUBERNETES = ("10.96.9.1", "fd00:10:96::9:1"), "10.96.0.1"
#: Addresses that no host has.
CORRECT = {"IPv4": "203.0.115.7", "IPv6": "fd00:115::7"}


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, ("pod1",), {"TCP": 8080}):
        yield net


@pytest.fixture(autouse=True)
def clean(net: Topology) -> Iterator[None]:
    yield
    with net.inside("node"):
        subprocess.run((sys.executable, "-m", "ipvs_proxy", "cleanup"), check=True, capture_output=True, timeout=120)


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.apply(manifests.node(), web(), *manifests.slices("web", list(map(endpoint, PODS))))
    return cluster


def web(*external: str, **spec: Any) -> dict[str, Any]:
    return manifests.service("web", *CLUSTER_IPS, externalIPs=list(external), **spec)


def serve_kubernetes() -> list[dict[str, Any]]:
    """``default/kubernetes`` as the API server makes it: its cluster IP leads to the API server's own address."""
    wanted = manifests.service("kubernetes", KUBERNETES, ports=[{"name": "https", "port": 443, "protocol": "TCP"}])
    (piece,) = manifests.slices("kubernetes", [endpoint(API, "peer")])
    piece["ports"] = [{"name": "https", "port": 6443, "protocol": "TCP"}]
    for item in (wanted, piece):
        item["metadata"]["namespace"] = "default"
    return [wanted, piece]


def told(cluster: Cluster) -> list[tuple[str, str, str]]:
    return [
        (event["type"], event["reason"], event["note"])
        for event in cluster.events
        if event["regarding"]["kind"] == "Service"
    ]


def left_out(where: str) -> tuple[str, str, str]:
    return "Warning", "NotServed", f"service ring/web {where}: api-server-address"


def test_an_answer_that_is_no_list_leaves_the_kernel_as_it_is(net: Topology, cluster: Cluster, tmp_path: Path) -> None:
    with net.inside("peer"):
        listening = listen(API, 6443)
    with serving(cluster, listening), running_agent(net, kubeconfig(tmp_path, API)) as agent:
        eventually(lambda: net.ask("client", CLUSTER_IPS[0], 80)[0] == "pod1")
        before = virtual_servers(net), addresses(net)
        cluster.say(b'{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[]}')
        # Three resources, a streaming list and a page each.
        eventually(lambda: cluster.said >= 6)
        assert (virtual_servers(net), addresses(net)) == before
        assert net.ask("client", CLUSTER_IPS[0], 80)[0] == "pod1"
        assert len(agent.named("watch_interrupted")) == 1, "it is told once"
        cluster.says = None
        cluster.apply(web(CORRECT["IPv4"]))
        eventually(lambda: CORRECT["IPv4"] in addresses(net))


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_the_address_of_the_api_server_is_not_taken_and_the_correction_is_heard(
    net: Topology, cluster: Cluster, tmp_path: Path, family: str
) -> None:
    api, correct = ADDRESSES["peer"][family], CORRECT[family]
    with net.inside("peer"):
        listening = listen(api, 6443)
    with serving(cluster, listening), running_agent(net, kubeconfig(tmp_path, api)) as agent:
        watched = list(cluster.watched_from)
        for wanted in (web(api), web(api, ports=[{"name": "tcp", "port": 6443}])):
            cluster.apply(wanted)
            eventually(lambda: left_out(f"externalIPs {api}") in told(cluster))
            assert api not in addresses(net)
            assert not [key for key in virtual_servers(net) if key[0] == api]
            assert f"externalIPs {api}: api-server-address" in command(net, "explain", "ring/web")
        cluster.apply({**web(), "status": {"loadBalancer": {"ingress": [{"ip": api}]}}})
        eventually(lambda: left_out(f"ingress {api}") in told(cluster))
        cluster.apply(web(correct))
        eventually(lambda: (correct, 6, 80) in virtual_servers(net))
        assert net.ask("node", correct, 80)[0] == "pod1"
        assert cluster.watched_from == watched, "the connections have not lived on"
        assert not agent.named("watch_interrupted")


def test_on_the_api_servers_own_node_its_port_is_not_taken(net: Topology, cluster: Cluster, tmp_path: Path) -> None:
    with net.inside("node"):
        listening = listen(NODE, 6443)
    with serving(cluster, listening), running_agent(net, kubeconfig(tmp_path, NODE)):
        ports = [{"name": "tcp", "port": 6443, "nodePort": 30443}, {"name": "web", "port": 80, "nodePort": 6443}]
        cluster.apply(web(NODE, ports=ports))
        for where in (f"port tcp external-ip {NODE}:6443/TCP", f"port web node-port {NODE}:6443/TCP"):
            eventually(lambda where=where: left_out(where) in told(cluster))
        assert virtual_servers(net).keys() >= {(NODE, 6, 80), (NODE, 6, 30443)}
        assert (NODE, 6, 6443) not in virtual_servers(net)
        # A new connection, and what else there is to say of the address.
        with net.connect("node", NODE, 6443) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(64).startswith(b"HTTP/1.0 404")
        note = "address-of-this-node; it is served, and other nodes that serve it do not reach this node any more"
        eventually(
            lambda: ("Warning", "ServedOtherwise", f"service ring/web externalIPs {NODE}: {note}") in told(cluster)
        )


def test_behind_its_cluster_ip_the_api_server_keeps_its_address_too(
    net: Topology, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.apply(*serve_kubernetes())
    with net.inside("peer"):
        listening = listen(API, 6443)
    with serving(cluster, listening):
        with running_agent(net, kubeconfig(tmp_path, API)):
            pass
        # From now on the agent lives on the virtual server that it keeps.
        with running_agent(net, kubeconfig(tmp_path, KUBERNETES, 443)) as agent:
            assert virtual_servers(net)[KUBERNETES, 6, 443] == {(API, 6443): 1}
            watched = list(cluster.watched_from)
            cluster.apply(web(API, KUBERNETES))
            for address in (API, KUBERNETES):
                eventually(lambda where=f"externalIPs {address}": left_out(where) in told(cluster))
            assert API not in addresses(net)
            assert (KUBERNETES, 6, 80) not in virtual_servers(net)
            cluster.apply(web(CORRECT["IPv4"]))
            eventually(lambda: (CORRECT["IPv4"], 6, 80) in virtual_servers(net))
            assert cluster.watched_from == watched
            assert not agent.named("watch_interrupted")


def test_an_api_server_that_moves_to_an_address_of_a_service_gets_it_back(
    net: Topology, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.apply(web(OTHER_API))
    successor = Cluster()
    successor.apply(manifests.node(), web(OTHER_API), *manifests.slices("web", list(map(endpoint, PODS))))
    with net.inside("peer"):
        first = listen(API, 6443)
    with net.inside("client"):
        second = listen(OTHER_API, 6443)
    with (
        serving(cluster, first),
        serving(successor, second),
        running_agent(net, kubeconfig(tmp_path, API)) as agent,
    ):
        assert OTHER_API in addresses(net)
        kubeconfig(tmp_path, OTHER_API)
        cluster.refuse()
        # What the agent tries to reach is on its own link. It lets go of it, and gets there.
        eventually(lambda: len(successor.watched_from) >= 3)
        assert OTHER_API not in addresses(net)
        assert not [key for key in virtual_servers(net) if key[0] == OTHER_API]
        eventually(lambda: left_out(f"externalIPs {OTHER_API}") in told(successor))
        successor.apply(web(CORRECT["IPv4"]))
        eventually(lambda: (CORRECT["IPv4"], 6, 80) in virtual_servers(net))
        assert OTHER_API in agent.named("node_facts_changed")[-1]["api_servers"]
