"""Services whose addresses are on a further link, as they are on a node with very many; with real packets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import Agent, eventually, running_agent
from lab.manifests import PORTS, TARGET_PORTS
from lab.topology import Topology, servers, topology
from lab.witness import addresses, assert_as_planned
from tests.ring.kube_proxy import ipvs_proxy
from tests.ring.web_service import PODS, VIPS, set_endpoints

VIP4, VIP6 = VIPS["IPv4"], VIPS["IPv6"]
NO_AUDIT = ("--ipvs-sync-period", "1h")
GONE = "10.96.9.9"


@pytest.fixture
def net() -> Iterator[Topology]:
    """A node whose former agent has left an address of a Service that there is, and one of a Service that is gone."""
    with topology() as net, servers(net, PODS, TARGET_PORTS):
        net.run("node", "ip", "link", "add", "kube-ipvs0", "type", "dummy")
        net.run("node", "ip", "link", "add", "kube-ipvs1", "type", "dummy")
        for address in (VIP4, GONE):
            net.run("node", "ip", "address", "add", f"{address}/32", "dev", "kube-ipvs1")
        yield net


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    manifests.write(tmp_path, "node", manifests.node())
    manifests.write(tmp_path, "service", manifests.service("web", *VIPS.values()))
    set_endpoints(tmp_path, *PODS)
    return tmp_path


def on(net: Topology, link: str) -> str:
    return net.run("node", "ip", "-o", "address", "show", "dev", link)


def links(net: Topology) -> list[str]:
    return [
        line.split()[1].rstrip(":")
        for line in net.run("node", "ip", "-o", "link", "show", "type", "dummy").splitlines()
    ]


def answers(net: Topology) -> bool:
    asked = [net.ask(who, vip, PORTS["TCP"])[0] for who in ("client", "node") for vip in VIPS.values()]
    return set(asked) <= set(PODS)


def repaired(agent: Agent, table: str) -> int:
    return len([event for event in agent.named("drift_repaired") if event["table"] == table])


def test_an_address_on_a_further_link_is_taken_over_and_serves(net: Topology, directory: Path) -> None:
    with running_agent(net, directory, *NO_AUDIT) as agent:
        assert_as_planned(net, directory)
        assert (VIP4 in on(net, "kube-ipvs0"), VIP4 in on(net, "kube-ipvs1")) == (False, True)
        assert (VIP6 in on(net, "kube-ipvs0"), VIP6 in on(net, "kube-ipvs1")) == (True, False)
        assert answers(net)
        agent.stop()
    with running_agent(net, directory, *NO_AUDIT) as successor:
        assert successor.named("started")[0]["kernel_writes"] == 0
        assert answers(net)


@pytest.mark.parametrize("damage", ["link delete kube-ipvs1", f"address delete {VIP4}/32 dev kube-ipvs1"])
def test_what_somebody_takes_away_from_a_further_link_is_back_at_once(
    net: Topology, directory: Path, damage: str
) -> None:
    with running_agent(net, directory, *NO_AUDIT) as agent:
        assert addresses(net) == set(VIPS.values())
        net.run("node", "ip", *damage.split())
        eventually(lambda: repaired(agent, "addresses") == 1, patience=20.0)
        eventually(lambda: addresses(net) == set(VIPS.values()), patience=20.0)
        assert repaired(agent, "ipvs") == 0
        assert answers(net)


def test_a_further_link_goes_with_its_last_address(net: Topology, directory: Path) -> None:
    with running_agent(net, directory, "--ipvs-sync-period", "300ms") as agent:
        assert "kube-ipvs1" in links(net)
        (directory / "service.json").unlink()
        eventually(lambda: not addresses(net))
        eventually(lambda: "kube-ipvs1" not in links(net))
        assert "kube-ipvs0" in links(net)
        manifests.write(directory, "service", manifests.service("web", *VIPS.values()))
        eventually(lambda: assert_as_planned(net, directory) is None)
        assert answers(net)
        assert not agent.named("drift_repaired"), "a link of ours that we delete is no drift"


def test_cleanup_removes_all_links_and_says_so(net: Topology, directory: Path) -> None:
    before = [name for name in links(net) if not name.startswith("kube-ipvs")]
    with running_agent(net, directory, *NO_AUDIT) as agent:
        agent.stop()
    for arguments, word in ((("--dry-run",), "would remove"), ((), "removed")):
        done = ipvs_proxy(net, "cleanup", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{word} 2 links from kube-ipvs0 to kube-ipvs1 with 2 addresses" in done.stdout.splitlines()
    assert links(net) == before
