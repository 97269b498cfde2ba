"""Cleanup leaves a node as it was before the agent or kube-proxy came, and nothing of others is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import running_agent
from lab.manifests import endpoint
from lab.topology import ADDRESSES, FAMILIES, Topology, topology
from tests.ring.kube_proxy import (
    ipvs_proxy,
    leave_iptables_mode,
    leave_ipvs_mode,
    leave_nftables_mode,
    leave_others,
    witnessed,
)

CLEAN = "nothing to remove, this node is clean\n"
MODES: dict[str, Callable[[Topology], None]] = {
    "iptables": leave_iptables_mode,
    "iptables, legacy": lambda net: leave_iptables_mode(net, "legacy"),
    "nftables": leave_nftables_mode,
    "ipvs": leave_ipvs_mode,
}


@pytest.fixture
def net() -> Iterator[Topology]:
    with topology() as net:
        leave_others(net)
        yield net


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Services of all kinds; one with the policy Local and an endpoint on each node has a mark."""
    ingress = ("198.51.100.80", "fd00:51::80")
    local = manifests.service(
        "local",
        "10.96.0.31",
        "fd00:10:96::31",
        protocols=("TCP", "UDP"),
        node_ports={"TCP": 30080, "UDP": 30053},
        ingress=ingress,
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        loadBalancerSourceRanges=["198.51.100.0/24", "fd00:51::/64"],
    )
    manifests.write(tmp_path, "node", manifests.node())
    manifests.write(tmp_path, "services", manifests.service("web", "10.96.0.30", "fd00:10:96::30"), local)
    endpoints = [endpoint(ADDRESSES["pod1"][family]) for family in FAMILIES]
    endpoints += [endpoint(ADDRESSES["pod4"][family], "peer") for family in FAMILIES]
    slices = manifests.slices("web", endpoints) + manifests.slices("local", endpoints, ("TCP", "UDP"))
    manifests.write(tmp_path, "slices", *slices)
    return tmp_path


def test_the_node_is_as_it_was_before_the_agent_came(net: Topology, directory: Path) -> None:
    before = witnessed(net)
    with running_agent(net, directory) as agent:
        agent.stop()
    left = witnessed(net)
    assert {part for part in left if left[part] != before[part]} == {
        *("ipvs", "sets", "links", "addresses", "nf_tables IPv4", "nf_tables IPv6")
    }
    assert any(" -f " in line and " -f 77 " not in line for line in left["ipvs"]), "no virtual server of a mark"
    foretold = ipvs_proxy(net, "cleanup", "--dry-run")
    assert (foretold.returncode, foretold.stderr) == (0, "")
    assert witnessed(net) == left
    done = ipvs_proxy(net, "cleanup")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == foretold.stdout.replace("would remove", "removed")
    servers = len([line for line in left["ipvs"] if line.startswith("-A")]) - 3
    sets = len([line for line in left["sets"] if line.startswith("create")]) - 1
    addresses = len([line for line in left["addresses"] if line.startswith("kube-ipvs0")])
    assert done.stdout.splitlines() == [
        f"removed {servers} virtual servers",
        f"removed the link kube-ipvs0 with {addresses} addresses",
        "removed 18 chains and 15 jumps of IPv4 nf_tables",
        "removed 18 chains and 15 jumps of IPv6 nf_tables",
        f"removed {sets} sets",
    ]
    assert witnessed(net) == before
    again = ipvs_proxy(net, "cleanup")
    assert (again.returncode, again.stdout, again.stderr) == (0, CLEAN, "")
    assert witnessed(net) == before


def test_a_node_with_a_running_agent_is_left_alone(net: Topology, directory: Path) -> None:
    with running_agent(net, directory) as agent:
        left = witnessed(net)
        done = ipvs_proxy(net, "cleanup")
        assert (done.returncode, done.stdout) == (1, "")
        assert "an agent is running on this node" in done.stderr
        assert witnessed(net) == left
        agent.kill()
    assert ipvs_proxy(net, "cleanup").returncode == 0, "killed, and so not running"


@pytest.mark.parametrize("mode", MODES)
def test_what_kube_proxy_left_goes_and_nothing_of_others(net: Topology, mode: str) -> None:
    before = witnessed(net)
    MODES[mode](net)
    left = witnessed(net)
    assert left != before
    if mode != "ipvs":  # whose names are ours
        done = ipvs_proxy(net, "cleanup")
        assert (done.returncode, done.stdout, done.stderr) == (0, CLEAN, "")
        assert witnessed(net) == left
    done = ipvs_proxy(net, "cleanup", "--kube-proxy")
    assert (done.returncode, done.stderr) == (0, "")
    assert witnessed(net) == before
    # As kube-proxy is told to, and with nothing left to do.
    again = ipvs_proxy(net, "--cleanup")
    assert (again.returncode, again.stdout, again.stderr) == (0, CLEAN, "")


def test_excluded_networks_keep_their_virtual_servers(net: Topology, tmp_path: Path) -> None:
    leave_ipvs_mode(net)
    node = ADDRESSES["node"]["IPv4"]
    done = ipvs_proxy(net, "--cleanup", "--ipvs-exclude-cidrs", f"{node}/32")
    assert (done.returncode, done.stderr) == (0, "")
    printed = "\n".join(witnessed(net)["ipvs"])
    assert f"{node}:30123" in printed
    assert "10.96.0.30:80" not in printed


def test_what_cannot_be_removed_is_named_and_the_rest_goes(net: Topology) -> None:
    before = witnessed(net)
    leave_ipvs_mode(net)
    mine = (
        "-A CNI-HOSTPORT -p tcp -j KUBE-MARK-MASQ",
        "-A CNI-HOSTPORT -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT",
    )
    net.run("node", "iptables-restore", "--noflush", text="\n".join(["*nat", *mine, "COMMIT", ""]))
    for _ in range(2):
        done = ipvs_proxy(net, "cleanup")
        assert done.returncode == 1
        chain, used = done.stderr.splitlines()
        assert chain.startswith(
            "ipvs-proxy: error: cannot remove the IPv4 nf_tables nat chain KUBE-MARK-MASQ, left empty"
        )
        assert mine[0] in chain
        assert used.startswith("ipvs-proxy: error: cannot remove the set KUBE-CLUSTER-IP: the set is in use")
        left = witnessed(net)
        assert {part for part in left if left[part] != before[part]} == {"sets", "nf_tables IPv4"}
    undo = "\n".join(["*nat", *("-D" + rule[2:] for rule in mine), "COMMIT", ""])
    net.run("node", "iptables-restore", "--noflush", text=undo)
    done = ipvs_proxy(net, "cleanup")
    assert (done.returncode, done.stderr) == (0, "")
    assert witnessed(net) == before
