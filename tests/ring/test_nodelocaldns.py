"""NodeLocal DNSCache on a node of ours: installed as for IPVS it and the cluster's DNS both answer; as for iptables,
doctor says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import command, running_agent
from lab.manifests import PORTS, TARGET_PORTS, endpoint
from lab.topology import ADDRESSES, Topology, server, servers, topology

DNS, CACHE = "10.96.0.10", "169.254.20.10"
PORT = PORTS["UDP"]


@pytest.fixture
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, ("pod2",), TARGET_PORTS):
        yield net


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    manifests.write(tmp_path, "node", manifests.node())
    manifests.write(tmp_path, "service", manifests.service("dns", DNS, protocols=("TCP", "UDP")))
    slices = manifests.slices("dns", [endpoint(ADDRESSES["pod2"]["IPv4"])], ("TCP", "UDP"))
    manifests.write(tmp_path, "slices", *slices)
    return tmp_path


@contextmanager
def cache(net: Topology, *addresses: str) -> Iterator[None]:
    """The link, the addresses and the rules that node-cache makes for each address (kubernetes/dns, cmd/node-cache)."""
    net.run("node", "ip", "link", "add", "nodelocaldns", "type", "dummy")
    rules = [
        (table, chain, "-p", protocol, side, address, port, str(PORT), "-j", target)
        for address in addresses
        for protocol in ("tcp", "udp")
        for table, chain, side, port, target in (
            ("raw", "PREROUTING", "-d", "--dport", "NOTRACK"),
            ("raw", "OUTPUT", "-d", "--dport", "NOTRACK"),
            ("raw", "OUTPUT", "-s", "--sport", "NOTRACK"),
            ("filter", "INPUT", "-d", "--dport", "ACCEPT"),
            ("filter", "OUTPUT", "-s", "--sport", "ACCEPT"),
        )
    ]
    try:
        for address in addresses:
            net.run("node", "ip", "address", "add", f"{address}/32", "dev", "nodelocaldns")
        for table, chain, *rule in rules:
            net.run("node", "iptables", "-t", table, "-I", chain, *rule)
        with server(net, "node", CACHE, PORT, "UDP"):
            yield
    finally:
        for table, chain, *rule in rules:
            net.run("node", "iptables", "-t", table, "-D", chain, *rule)
        net.run("node", "ip", "link", "del", "nodelocaldns")


def problems(net: Topology, status: int) -> dict[str, str]:
    """What doctor finds to be a problem or a warning, by topic."""
    found = json.loads(command(net, "doctor", "-o", "json", status=status))
    return {one["topic"]: one["text"] for one in found if one["level"] != "ok"}


def test_installed_as_for_ipvs_the_cache_and_the_clusters_dns_answer_on_one_node(
    net: Topology, directory: Path
) -> None:
    with running_agent(net, directory), cache(net, CACHE):
        for place in ("pod1", "client", "node"):
            assert net.ask(place, CACHE, PORT, "UDP")[0] == "node"
            assert net.ask(place, DNS, PORT, "UDP")[0] == "pod2"
        assert problems(net, 0) == {}


def test_installed_as_for_iptables_the_cache_has_the_clusters_address_and_doctor_says_so(
    net: Topology, directory: Path
) -> None:
    with running_agent(net, directory), cache(net, CACHE, DNS):
        with pytest.raises(TimeoutError):
            net.ask("node", DNS, PORT, "UDP", timeout=1)
        found = problems(net, 2)
    assert found.keys() == {"addresses", "raw"}
    assert found["addresses"].startswith(f"{DNS} is on kube-ipvs0 and on nodelocaldns")
    assert f"keep conntrack off {DNS}:{PORT}/UDP" in found["raw"]
