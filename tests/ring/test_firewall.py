"""What may pass: source ranges of load balancers, and the node's own ports behind virtual addresses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab import manifests, packet_filter
from lab.agent import Agent, eventually, running_agent
from lab.manifests import TARGET_PORTS, endpoint
from lab.topology import ADDRESSES, FAMILIES, Topology, exchange, server, servers, topology
from tests.ring.silence import Request, silence, unanswered

CLUSTER_IP = {"IPv4": "10.96.2.1", "IPv6": "fd00:10:96::2:1"}
LOAD_BALANCER = {"IPv4": "203.0.112.1", "IPv6": "fd00:1b::1"}
EXTERNAL = {"IPv4": "203.0.114.1", "IPv6": "fd00:e::1"}
RANGED = {"IPv4": "203.0.112.2", "IPv6": "fd00:1b::2"}
HOST_LENGTH = {"IPv4": 32, "IPv6": 128}

#: The ranges take turns. The client is in all of them, in different ways; the peer in none.
RANGES = (
    ["198.51.100.9/32", "fd00:51::9/128", "192.0.2.128/25", "fd00:2:1::/64"],
    ["198.51.100.0/24", "fd00:51::/64"],
    ["198.51.100.8/29", "198.51.100.9/32", "fd00:51::8/125", "10.1.0.0/16", "fd01::/16"],
    ["198.0.0.0/8", "fd00:51::/32"],
)
NODE_IN = [f"{ADDRESSES['node'][family]}/{HOST_LENGTH[family]}" for family in FAMILIES]


def ranged(ranges: list[str]) -> dict:
    return manifests.service(
        "ranged",
        "10.96.2.2",
        "fd00:10:96::2:2",
        protocols=("TCP", "UDP"),
        ingress=RANGED.values(),
        type="LoadBalancer",
        loadBalancerSourceRanges=ranges,
    )


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, ("pod2", "pod4"), TARGET_PORTS):
        yield net


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("manifests")


@pytest.fixture(scope="module", autouse=True)
def agent(net: Topology, directory: Path) -> Iterator[Agent]:
    manifests.write(directory, "node", manifests.node())
    plain = manifests.service(
        "plain",
        *CLUSTER_IP.values(),
        ingress=LOAD_BALANCER.values(),
        type="LoadBalancer",
        externalIPs=list(EXTERNAL.values()),
    )
    endpoints = [endpoint(ADDRESSES["pod2"][family]) for family in FAMILIES]
    manifests.write(directory, "plain", plain, *manifests.slices("plain", endpoints))
    manifests.write(directory, "ranged", ranged(RANGES[0]), *manifests.slices("ranged", endpoints, ("TCP", "UDP")))
    with running_agent(net, directory) as agent:
        yield agent


class Asker(threading.Thread):
    """Asks again and again over UDP, every time from a new port; counts answers and questions without one."""

    def __init__(self, net: Topology, place: str, address: str, patience: float) -> None:
        super().__init__(daemon=True)
        self.answered = self.unanswered = 0
        self._net, self._place, self._address, self._patience = net, place, address, patience
        self._stopping = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopping.is_set():
            with self._net.connect(self._place, self._address, 53, "UDP", timeout=self._patience) as client:
                try:
                    exchange(client)
                    self.answered += 1
                except OSError:
                    self.unanswered += 1

    def stop(self) -> None:
        self._stopping.set()
        self.join()


@contextmanager
def asking(net: Topology, place: str, patience: float) -> Iterator[list[Asker]]:
    """Ask at the address of each family until the block ends; a question waits so many seconds for its answer."""
    askers = [Asker(net, place, RANGED[family], patience) for family in FAMILIES]
    try:
        yield askers
    finally:
        for asker in askers:
            asker.stop()


def test_ranges_that_change_never_open_or_close_the_wrong_door(net: Topology, agent: Agent, directory: Path) -> None:
    endpoints = [endpoint(ADDRESSES["pod2"][family]) for family in FAMILIES]
    slices = manifests.slices("ranged", endpoints, ("TCP", "UDP"))
    with asking(net, "client", 5.0) as allowed, asking(net, "peer", silence(net)) as refused:
        eventually(lambda: all(asker.answered > 3 for asker in allowed))
        for turn in range(1, 9):
            done = len(agent.named("programmed"))
            manifests.write(directory, "ranged", ranged(RANGES[turn % len(RANGES)]), *slices)
            agent.wait_for("programmed", done + 1)
            reached = [asker.answered for asker in allowed]
            eventually(lambda reached=reached: all(a.answered > n for a, n in zip(allowed, reached, strict=True)))
        eventually(lambda: all(asker.unanswered > 3 for asker in refused))
    assert [asker.unanswered for asker in allowed] == [0, 0]
    assert [asker.answered for asker in refused] == [0, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_node_itself_needs_its_own_address_in_a_range(
    net: Topology, agent: Agent, directory: Path, family: str
) -> None:
    endpoints = [endpoint(ADDRESSES["pod2"][name]) for name in FAMILIES]
    slices = manifests.slices("ranged", endpoints, ("TCP", "UDP"))
    unanswered(net, Request("node", RANGED[family], 80))
    done = len(agent.named("programmed"))
    manifests.write(directory, "ranged", ranged([*RANGES[0], *NODE_IN]), *slices)
    agent.wait_for("programmed", done + 1)
    assert net.ask("node", RANGED[family], 80)[0] == "pod2"
    manifests.write(directory, "ranged", ranged(RANGES[0]), *slices)
    agent.wait_for("programmed", done + 2)
    unanswered(net, Request("node", RANGED[family], 80))


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("firewall", ["no firewall", "default drop"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_virtual_address_leads_to_a_port_of_the_node(net: Topology, family: str, firewall: str) -> None:
    with ExitStack() as stack:
        stack.enter_context(server(net, "node", "0.0.0.0" if family == "IPv4" else "::", 22))
        if firewall == "default drop":
            stack.enter_context(default_drop(net))
        assert net.ask("client", ADDRESSES["node"][family], 22)[0] == "node"
        virtual = [address[family] for address in (CLUSTER_IP, LOAD_BALANCER, EXTERNAL, RANGED)]
        unanswered(net, *(Request(place, address, 22) for place in ("client", "peer", "pod1") for address in virtual))
        # The Service itself answers, if the firewall lets its port pass.
        for address in virtual[:-1]:
            assert net.ask("client", address, 80)[0] == "pod2"


#: The same as rules of iptables below.
DEFAULT_DROP = """
table inet host {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        tcp dport { 22, 80 } accept
        meta l4proto ipv6-icmp accept
    }
}
"""


@contextmanager
def default_drop(net: Topology) -> Iterator[None]:
    """A host firewall as operators write them: what is not known is dropped, ssh and the Services' port are open."""
    if packet_filter.CHOSEN == packet_filter.NFTABLES:
        net.run("node", "nft", "-f", "-", text=DEFAULT_DROP)
        try:
            yield
        finally:
            net.run("node", "nft", "delete", "table", "inet", "host")
        return
    rules = (
        "-P INPUT DROP",
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A INPUT -p tcp -m multiport --dports 22,80 -j ACCEPT",
    )
    undo = ("-P INPUT ACCEPT", *(rule.replace("-A ", "-D ") for rule in rules[1:]))
    icmp6 = "-A INPUT -p icmpv6 -j ACCEPT"
    for program in ("iptables", "ip6tables"):
        for rule in (*rules, *([icmp6] if program == "ip6tables" else [])):
            net.run("node", program, "-w", *rule.split())
    try:
        yield
    finally:
        for program in ("iptables", "ip6tables"):
            for rule in (*undo, *([icmp6.replace("-A ", "-D ")] if program == "ip6tables" else [])):
                net.run("node", program, "-w", *rule.split())
