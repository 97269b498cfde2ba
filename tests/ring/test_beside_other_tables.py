"""Our table of nftables beside the tables of others, with real packets: whose rules decide, and why it is those."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab import manifests
from lab.agent import Agent, running_agent
from lab.manifests import TARGET_PORTS, endpoint
from lab.packet_filter import NFTABLES
from lab.topology import ADDRESSES, FAMILIES, Topology, servers, topology

pytestmark = [pytest.mark.packet_filter(NFTABLES), pytest.mark.usefixtures("agent")]

CLUSTER_IP = {"IPv4": "10.96.2.1", "IPv6": "fd00:10:96::2:1"}
LOAD_BALANCER = {"IPv4": "203.0.112.1", "IPv6": "fd00:1b::1"}
EXTERNAL = {"IPv4": "203.0.114.1", "IPv6": "fd00:e::1"}
#: Its endpoint is the node itself.
MARKED = {"IPv4": "203.0.112.2", "IPv6": "fd00:1b::2"}
VIRTUAL = (CLUSTER_IP, LOAD_BALANCER, EXTERNAL)
WORDS = {"IPv4": ("ip", "10.244.2.4"), "IPv6": ("ip6", "[fd00:10:244:2::4]")}


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, ("node", "pod2", "pod4"), TARGET_PORTS):
        yield net


@pytest.fixture(scope="module")
def agent(net: Topology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    directory = tmp_path_factory.mktemp("manifests")
    manifests.write(directory, "node", manifests.node())
    service = manifests.service(
        "web",
        *CLUSTER_IP.values(),
        ingress=LOAD_BALANCER.values(),
        type="LoadBalancer",
        externalIPs=list(EXTERNAL.values()),
    )
    endpoints = [endpoint(ADDRESSES["pod2"][family]) for family in FAMILIES]
    manifests.write(directory, "web", service, *manifests.slices("web", endpoints))
    marked = manifests.service(
        "marked",
        "10.96.2.2",
        "fd00:10:96::2:2",
        ingress=MARKED.values(),
        type="LoadBalancer",
        externalTrafficPolicy="Local",
    )
    here = [endpoint(ADDRESSES["node"][family]) for family in FAMILIES]
    manifests.write(directory, "marked", marked, *manifests.slices("marked", here))
    with running_agent(net, directory) as agent:
        yield agent


@contextmanager
def others(net: Topology, chain: str, rule: str) -> Iterator[None]:
    """Have a table of somebody else on the node."""
    net.run("node", "nft", "-f", "-", text=f"table inet others {{ chain theirs {{ {chain}; {rule}; }}; }}")
    try:
        yield
    finally:
        net.run("node", "nft", "delete", "table", "inet", "others")


@pytest.mark.parametrize("hook", ["prerouting", "output"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rules_of_host_ports_take_what_is_for_the_node_and_nothing_that_is_for_a_service(
    net: Topology, family: str, hook: str
) -> None:
    ip, pod = WORDS[family]
    chain = f"type nat hook {hook} priority -100"
    place = "client" if hook == "prerouting" else "node"
    with others(net, chain, f"fib daddr type local tcp dport 80 dnat {ip} to {pod}:8080"):
        assert net.ask(place, ADDRESSES["node"][family], 80)[0] == "pod4"
        assert {net.ask(place, address[family], 80)[0] for address in VIRTUAL} == {"pod2"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chain_that_is_asked_before_ours_takes_connections_to_services(net: Topology, family: str) -> None:
    ip, pod = WORDS[family]
    rule = f"fib daddr type local tcp dport 80 dnat {ip} to {pod}:8080"
    with others(net, "type nat hook prerouting priority -111", rule):
        assert net.ask("client", CLUSTER_IP[family], 80)[0] == "pod4"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_source_of_what_we_masquerade_is_the_nodes_whatever_others_would_make_of_it(
    net: Topology, family: str
) -> None:
    ip, _ = WORDS[family]
    wrong = {"IPv4": "192.0.2.99", "IPv6": "[fd00:2::99]"}[family]
    _, before = net.ask("client", CLUSTER_IP[family], 80)
    with others(net, "type nat hook postrouting priority 100", f"tcp dport 8080 snat {ip} to {wrong}"):
        assert net.ask("client", CLUSTER_IP[family], 80) == ("pod2", before)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_another_table_drops_is_dropped_and_what_it_accepts_is_refused_all_the_same(
    net: Topology, family: str
) -> None:
    with others(net, "type filter hook input priority -200", "tcp dport 80 drop"), pytest.raises(TimeoutError):
        net.ask("client", CLUSTER_IP[family], 80, timeout=1.0)
    with (
        others(net, "type filter hook input priority -200", "tcp dport 22 accept"),
        pytest.raises(ConnectionRefusedError),
    ):
        net.ask("client", CLUSTER_IP[family], 22)


COUNTERS = """
table inet others {
    chain before_ipvs { type filter hook input priority 97; meta mark 0x2000-0x3fff counter name before; }
    chain own_before_ipvs { type filter hook output priority -99; meta mark 0x2000-0x3fff counter name before; }
    chain behind_ipvs { type filter hook input priority 101; meta mark 0x2000-0x3fff counter name behind; }
    chain own_behind_ipvs { type filter hook output priority -96; meta mark 0x2000-0x3fff counter name behind; }
    chain sent { type filter hook postrouting priority -400; meta mark 0x2000-0x3fff counter name behind; }
    chain again { type filter hook prerouting priority -400; meta mark 0x2000-0x3fff counter name behind; }
}
"""


@pytest.mark.parametrize("place", ["pod1", "node"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mark_ends_right_behind_ipvs_for_what_it_delivers_on_the_node_too(
    net: Topology, family: str, place: str
) -> None:
    for name in ("before", "behind"):
        net.run("node", "nft", f"add table inet others; add counter inet others {name}")
    net.run("node", "nft", "-f", "-", text=COUNTERS)
    assert net.ask(place, MARKED[family], 80)[0] == "node"
    listed = json.loads(net.run("node", "nft", "-j", "list", "counters", "table", "inet", "others"))["nftables"]
    net.run("node", "nft", "delete", "table", "inet", "others")
    seen = {item["counter"]["name"]: item["counter"]["packets"] for item in listed if "counter" in item}
    assert seen == {"before": 1, "behind": 0}, "only the first packet has a mark"
