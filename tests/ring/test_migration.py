"""The way in and back: the commands of docs/migration.md on a node, with witnesses of everything that must stay."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.test_leftovers import SAVED
from tests.ring import manifests
from tests.ring.agent import running_agent
from tests.ring.manifests import PORTS, TARGET_PORTS, endpoint
from tests.ring.topology import ADDRESSES, FAMILIES, Topology, exchange, servers, topology

DOCUMENT = Path(__file__).parents[2] / "docs/migration.md"
VIPS = {"IPv4": "10.96.0.80", "IPv6": "fd00:10:96::80"}
PODS = ("pod1", "pod2")
CONFIG = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: kube-proxy, namespace: kube-system}
data:
  config.conf: |-
    apiVersion: kubeproxy.config.k8s.io/v1alpha1
    kind: KubeProxyConfiguration
    mode: iptables
    winkernel: {enableDSR: true}
"""
#: What others have on the node, and must keep.
FOREIGN = (
    "ipvsadm -A -t 203.0.113.99:80 -s wrr",
    "ipvsadm -a -t 203.0.113.99:80 -r 192.0.2.77:80 -m -w 3",
    "ipvsadm -A -f 5 -s lc",
    "ipset create FOREIGN hash:ip",
    "ipset add FOREIGN 192.0.2.9",
    "iptables -t filter -N FOREIGN",
    "iptables -t filter -A FORWARD -m set --match-set FOREIGN src -j FOREIGN",
    "ip link add foreign0 type dummy",
    "ip address add 198.51.100.7/32 dev foreign0",
)


def commands(kind: str) -> list[str]:
    """Give the commands of the document that are for a ``node`` or for a ``cluster``."""
    blocks = re.findall(rf"```{kind}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, PODS, TARGET_PORTS):
        for command in FOREIGN:
            net.run("node", *command.split())
        yield net


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "objects").mkdir()
    manifests.write(tmp_path / "objects", "node", manifests.node())
    manifests.write(tmp_path / "objects", "service", manifests.service("web", *VIPS.values()))
    endpoints = [endpoint(ADDRESSES[pod][family]) for pod in PODS for family in FAMILIES]
    manifests.write(tmp_path / "objects", "slices", *manifests.slices("web", endpoints))
    (tmp_path / "kube-proxy.yaml").write_text(CONFIG)
    return tmp_path


def ipvs_proxy(net: Topology, command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the document on the node."""
    program, *arguments = command.split()
    assert program == "ipvs-proxy"
    with net.inside("node"):
        return subprocess.run(
            [sys.executable, "-m", "ipvs_proxy", *arguments],
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


def everything(net: Topology) -> dict[str, list[str]]:
    """Let independent tools say what is on the node: chains and rules, sets, virtual servers, links and addresses."""
    found = {
        name: [re.sub(r" \[\d+:\d+\]$", "", line) for line in net.run("node", name).splitlines()]
        for name in ("iptables-save", "ip6tables-save")
    }
    # Empty tables and built-in chains that looking at them made are no leftovers.
    found = {
        name: [line for line in lines if line.startswith("-A") or re.match(r":\S+ -$", line)]
        for name, lines in found.items()
    }
    for command in ("ipset save", "ipvsadm -Sn", "ip -o link", "ip -o address show scope global"):
        found[command] = sorted(net.run("node", *command.split()).splitlines())
    return found


def test_cleanup_leaves_the_node_as_it_was_before_the_agent(net: Topology, directory: Path) -> None:
    before = everything(net)
    dry, cleanup, whole = commands("node")[1:]
    with running_agent(net, directory / "objects") as agent:
        assert {net.ask("client", address, PORTS["TCP"])[0] for address in VIPS.values() for _ in "1234"} == set(PODS)
        agent.stop()
    during = everything(net)
    looked = ipvs_proxy(net, dry, directory)
    assert everything(net) == during
    done = ipvs_proxy(net, cleanup, directory)
    assert (looked.returncode, done.returncode) == (0, 0), looked.stderr + done.stderr
    assert done.stdout == looked.stdout.replace("would remove", "removed")
    assert done.stdout.startswith(
        "removed the link kube-ipvs0 with 2 addresses\nremoved 2 virtual servers with 4 real servers\n"
    )
    assert done.stdout.endswith("removed 40 ipsets\nkept 2 virtual servers of others\n")
    assert everything(net) == before
    again = ipvs_proxy(net, whole, directory)
    assert (again.returncode, again.stdout) == (0, "kept 2 virtual servers of others\nnothing to remove\n")


def test_what_kube_proxy_left_in_other_modes_goes_only_when_asked_for(net: Topology, directory: Path) -> None:
    _, cleanup, whole = commands("node")[1:]
    net.run("node", "iptables-restore", "--noflush", text=SAVED)
    net.run("node", "nft", "add", "table", "ip", "kube-proxy")
    before = everything(net)
    assert ipvs_proxy(net, cleanup, directory).returncode == 0
    assert [line for line in before["iptables-save"] if "KUBE-SEP" in line] == [
        line for line in everything(net)["iptables-save"] if "KUBE-SEP" in line
    ]
    done = ipvs_proxy(net, whole, directory)
    assert done.returncode == 0, done.stderr
    left = everything(net)
    assert not [line for line in left["iptables-save"] if "KUBE-SEP" in line or "KUBE-NODEPORTS" in line]
    assert ":KUBE-KUBELET-CANARY -" in left["iptables-save"]
    assert "kube-proxy" not in net.run("node", "nft", "list", "tables")
    assert left["ipvsadm -Sn"] == before["ipvsadm -Sn"]


def test_node_of_iptables_mode_is_checked_taken_over_and_given_back(net: Topology, directory: Path) -> None:
    check, *_, cleanup, _ = commands("node")
    net.run("node", "iptables-restore", "--noflush", text=SAVED)
    before = everything(net)
    checked = ipvs_proxy(net, check, directory)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "IPv4: 10 chains of iptables mode" in checked.stdout
    assert "KubeProxyConfiguration.winkernel.enableDSR" in checked.stdout
    assert "2 virtual servers of others" in checked.stdout
    assert checked.stdout.endswith("ready: start ipvs-proxy here\n")
    assert everything(net) == before
    with (
        running_agent(net, directory / "objects") as agent,
        net.connect("client", VIPS["IPv4"], PORTS["TCP"]) as client,
    ):
        assert exchange(client)[0] in PODS
        running = ipvs_proxy(net, check, directory)
        assert running.returncode == 2
        assert "Something serves health at 0.0.0.0:10256" in running.stdout
        agent.stop()
        with running_agent(net, directory / "objects") as again:
            assert again.named("started")[0]["kernel_writes"] == 0
            assert exchange(client)[0] in PODS
            again.stop()
    assert ipvs_proxy(net, cleanup, directory).returncode == 0
    left = everything(net)
    assert left["ipvsadm -Sn"] == before["ipvsadm -Sn"]
    assert left["ipset save"] == before["ipset save"]
