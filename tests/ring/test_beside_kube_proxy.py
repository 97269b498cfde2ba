"""Beside a kube-proxy in iptables or nftables mode: who serves which Service, and what clients see of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.agent import Agent, command, running_agent
from lab.manifests import PORTS
from lab.topology import ADDRESSES, FAMILIES, Topology
from tests.ring.labelled import (
    FLAGS,
    HEALTH_PORT,
    LOCAL_INGRESS,
    LOCAL_NODE_PORT,
    TRAP,
    WEB,
    WEB_INGRESS,
    WEB_NODE_PORT,
    node_with_kube_proxy,
    write_services,
)
from tests.ring.neighbour import EMPTY, MODES, NODE_PORT, OTHER

PLACES = ("pod1", "pod3", "node", "client")


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def net(mode: str) -> Iterator[Topology]:
    with node_with_kube_proxy(mode) as net:
        yield net


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manifests")
    write_services(directory)
    return directory


@pytest.fixture(scope="module")
def agent(net: Topology, directory: Path) -> Iterator[Agent]:
    with running_agent(net, directory, *FLAGS) as agent:
        yield agent


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", PLACES)
def test_labelled_services_are_reached_from_everywhere(net: Topology, place: str, family: str) -> None:
    node = ADDRESSES["node"][family]
    seen = ADDRESSES[place][family] if place.startswith("pod") else node
    for address, port in ((WEB[family], 80), (WEB_INGRESS[family], 80), (node, WEB_NODE_PORT)):
        answers = [net.ask(place, address, port) for _ in range(4)]
        assert {name for name, _ in answers} == {"pod1", "pod4"}, (address, port)
        expected = {seen} if address == WEB[family] else {node}
        assert {source for name, source in answers if name != place} == expected, (address, port)
    for protocol in ("UDP", "SCTP"):
        answers = [net.ask(place, WEB[family], PORTS[protocol], protocol) for _ in range(4)]
        assert {name for name, _ in answers} == {"pod1", "pod4"}, protocol
    assert net.ask(place, TRAP[family], NODE_PORT)[0] == "pod1"


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
def test_policy_local_keeps_the_client_outside_and_gives_clients_in_the_cluster_all(net: Topology, family: str) -> None:
    for address, port in ((LOCAL_INGRESS[family], 80), (ADDRESSES["node"][family], LOCAL_NODE_PORT)):
        answers = {net.ask("client", address, port) for _ in range(4)}
        assert answers == {("pod1", ADDRESSES["client"][family])}
        for place in ("pod3", "node"):
            assert {net.ask(place, address, port)[0] for _ in range(4)} == {"pod1", "pod4"}
    with net.connect("client", ADDRESSES["node"][family], HEALTH_PORT) as health:
        health.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b" 200 " in health.recv(100)


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", PLACES)
def test_the_other_service_is_still_kube_proxys(net: Topology, place: str, family: str) -> None:
    seen = ADDRESSES[place if place.startswith("pod") else "node"][family]
    assert net.ask(place, OTHER[family], 80) == ("pod2", seen)
    assert net.ask(place, ADDRESSES["node"][family], NODE_PORT) == ("pod2", ADDRESSES["node"][family])
    with pytest.raises(ConnectionRefusedError):
        net.ask(place, EMPTY[family], 80)
    table = net.run("node", "ipvsadm", "-Ln")
    assert OTHER[family] not in table
    assert str(NODE_PORT) in table, "of the Service whose port it is"


@pytest.mark.usefixtures("agent")
def test_commands_find_the_agent_and_tell_whose_the_services_are(net: Topology, mode: str) -> None:
    assert "services   3 Services of the label ipvs, 0 conflicts" in command(net, "status")
    assert "ring/other" not in command(net, "services")
    told = command(net, "explain", "ring/other", status=1)
    assert "no Service ring/other with the label service.kubernetes.io/service-proxy-name: ipvs, and this agent" in told
    way = command(net, "explain", "--from", ADDRESSES["client"]["IPv4"], f"{WEB['IPv4']}:80")
    assert "balanced" in way
    assert "of others" not in way
    text = command(net, "doctor", "-o", "json")
    found = {(one["topic"], one["level"]) for one in json.loads(text)}
    assert ("agent", "ok") in found
    assert "problem" not in {level for _, level in found}
    assert "of others" not in text, "kube-proxy's rules are no interference"
    assert (("kube-proxy", "warning") in found) is (mode == "nftables"), "which clears IPVS away when it starts"
    checked = command(net, "migrate", "check", "--service-proxy-name", "ipvs")
    assert "an agent is at work on this node" in " ".join(checked.split())
