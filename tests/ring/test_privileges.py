"""The agent with exactly the rights that the chart gives it: it serves, follows changes and repairs; with one less it
says which."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.agent import eventually, running_agent
from lab.manifests import PORTS, TARGET_PORTS
from lab.packet_filter import CHOSEN, IPTABLES, NFTABLES
from lab.topology import CLUSTER_CIDR, FAMILIES, Topology, servers, topology
from lab.witness import assert_as_planned
from tests.ring.kube_proxy import ipvs_proxy
from tests.ring.web_service import PODS, VIPS, set_endpoints, write_objects
from tests.support.confined import capabilities_of_the_chart, confined

GIVEN = capabilities_of_the_chart(CHOSEN)


@pytest.fixture
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, PODS, TARGET_PORTS):
        yield net


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_objects(tmp_path)


def break_rules(net: Topology) -> None:
    if CHOSEN == IPTABLES:
        net.run("node", "iptables", "-t", "nat", "-F", "KUBE-SERVICES")
    else:
        net.run("node", "nft", "flush", "chain", "inet", "ipvs-proxy", "nat-prerouting")


def test_the_capabilities_of_the_chart_are_enough(net: Topology, directory: Path) -> None:
    flags = ("--manifests", str(directory), "--packet-filter", CHOSEN)
    net.run("node", sys.executable, "-m", "ipvs_proxy", *flags, "--init-only")
    with running_agent(net, directory, "--ipvs-sync-period", "300ms", prefix=confined(GIVEN)) as agent:
        assert_as_planned(net, directory)
        assert {net.ask("client", VIPS[family], PORTS["TCP"], "TCP")[0] for family in FAMILIES for _ in "1234"} == set(
            PODS
        )
        set_endpoints(directory, "pod1")
        eventually(lambda: assert_as_planned(net, directory) is None)
        net.run("node", "ip", "link", "del", "kube-ipvs0")
        net.run("node", "ipvsadm", "-C")
        break_rules(net)
        eventually(lambda: assert_as_planned(net, directory) is None)
        assert "another_agent_is_running" not in "".join(agent.printed)
        refused = ipvs_proxy(net, "cleanup")
        assert "an agent is running on this node" in refused.stderr, "it is seen without any right to raw sockets"
        agent.stop()
    # An audit may have looked for the link just before it went: the next attempt makes it.
    assert {event["error"] for event in agent.named("operation_failed")} <= {"No such device"}


@pytest.mark.parametrize("missing", GIVEN)
def test_without_one_of_them_the_start_ends_with_a_line_that_names_it(
    missing: str, net: Topology, directory: Path
) -> None:
    left = [name for name in GIVEN if name != missing]
    command = (
        *confined(left),
        *(sys.executable, "-m", "ipvs_proxy", "--manifests", str(directory), "--hostname-override", "node"),
        *("--cluster-cidr", CLUSTER_CIDR, "--logging-format", "json", "--packet-filter", CHOSEN),
    )
    with net.inside("node"):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode == 1, done.stderr
    assert len(errors) == 1, done.stderr
    assert f"CAP_{missing}" in errors[0]


@pytest.mark.packet_filter(IPTABLES)
def test_what_nftables_has_is_enough_to_take_over_from_iptables_and_ipset(net: Topology, directory: Path) -> None:
    with running_agent(net, directory) as agent:
        agent.stop()
    flags = ("--packet-filter", NFTABLES)
    with running_agent(net, directory, *flags, prefix=confined(capabilities_of_the_chart(NFTABLES))) as agent:
        assert agent.named("other_mode_not_removed") == []
        assert net.run("node", "ipset", "list", "-n") == ""
        assert "KUBE-" not in net.run("node", "iptables-save") + net.run("node", "ip6tables-save")
        assert {net.ask("client", VIPS[family], PORTS["TCP"], "TCP")[0] for family in FAMILIES for _ in "1234"} == set(
            PODS
        )
