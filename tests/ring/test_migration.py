"""The way of docs/migration.md on a node: from kube-proxy to ipvs-proxy and back, with the document's own commands."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import eventually, running_agent
from lab.manifests import TARGET_PORTS
from lab.topology import Topology, exchange, servers, topology
from tests.ring.kube_proxy import (
    VIP,
    ipvs_proxy,
    leave_iptables_mode,
    leave_ipvs_mode,
    leave_nftables_mode,
    leave_others,
    witnessed,
)
from tests.ring.web_service import PODS, continuous_requests, set_endpoints

DOCUMENT = Path(__file__).parents[2] / "docs" / "migration.md"
#: What the document has run on a node, in its order.
COMMANDS = [shlex.split(text) for text in re.findall(r"^on_node node-1 (.+)$", DOCUMENT.read_text(), re.MULTILINE)]
#: The last two are for a node that kube-proxy stays on: ``test_beside_changes`` runs them.
CHECK, CLEANUP_KUBE_PROXY, CLEANUP_DRY_RUN, CLEANUP, _, _ = COMMANDS

CONFIG_MAP = json.dumps(
    {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
        "data": {
            "config.conf": (
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n"
                "clusterCIDR: 10.244.0.0/16,fd00:10:244::/48\nwinkernel: {networkName: x}\n"
            ),
            "kubeconfig.conf": "apiVersion: v1\nkind: Config\n",
        },
    }
)


@pytest.fixture
def net() -> Iterator[Topology]:
    with topology() as net, servers(net, PODS, TARGET_PORTS):
        leave_others(net)
        yield net


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    manifests.write(tmp_path, "node", manifests.node())
    service = manifests.service("web", VIP, "fd00:10:96::30", protocols=("TCP", "UDP", "SCTP"))
    manifests.write(tmp_path, "service", service)
    set_endpoints(tmp_path, *PODS)
    return tmp_path


def check(net: Topology, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the document's check with kube-proxy's ConfigMap mounted as a volume, which is a file for each key."""
    for name, text in json.loads(CONFIG_MAP)["data"].items():
        (directory / name).write_text(text)
    return ipvs_proxy(net, *(word.replace("/config/", f"{directory}/") for word in CHECK))


def test_the_commands_of_the_document_are_those_of_this_test() -> None:
    assert COMMANDS == [
        ["migrate", "check", "--config", "/config/config.conf"],
        ["cleanup", "--kube-proxy"],
        ["cleanup", "--dry-run"],
        ["cleanup"],
        ["migrate", "check", "--config", "/config/config.conf", "--service-proxy-name", "ipvs"],
        ["cleanup"],
    ]


def test_from_ipvs_mode_and_back(net: Topology, directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    mounted = tmp_path_factory.mktemp("config")
    without_proxy = witnessed(net)
    leave_ipvs_mode(net)
    kube_proxys = witnessed(net)
    connection = net.connect("client", VIP, 80)
    assert exchange(connection)[0] == "pod1"

    checked = check(net, mounted)
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
    report = " ".join(checked.stdout.split())
    for part in (
        "IPVS mode: virtual servers 2, addresses on kube-ipvs0 1, sets 34",
        "config.conf can be used as it is",
        "192.0.2.77:99/TCP",
        "winkernel.networkName",
        "Ready: nothing stands in the way.",
    ):
        assert part in report
    assert witnessed(net) == kube_proxys, "a check writes nothing"

    with continuous_requests(net) as failures:
        with running_agent(net, directory) as agent:
            assert exchange(connection)[0] == "pod1", "the connection from before"
            for pod in PODS:
                eventually(lambda pod=pod: net.ask("client", VIP, 80)[0] == pod)
            again = ipvs_proxy(net, "migrate", "check", "--config", "-", text=f"{CONFIG_MAP}\n...\nmore")
            assert again.returncode == 0, again.stdout
            assert "an agent is at work on this node" in " ".join(again.stdout.split())
            agent.stop()
        assert exchange(connection)[0] == "pod1"
    assert failures == []
    connection.close()

    ours = witnessed(net)
    foretold = ipvs_proxy(net, *CLEANUP_DRY_RUN)
    assert (foretold.returncode, foretold.stderr) == (0, "")
    assert witnessed(net) == ours
    cleaned = ipvs_proxy(net, *CLEANUP)
    assert (cleaned.returncode, cleaned.stderr) == (0, "")
    assert witnessed(net) == without_proxy
    leave_ipvs_mode(net)
    assert witnessed(net) == kube_proxys
    assert net.ask("client", VIP, 80)[0] == "pod1"


def test_rules_in_the_variant_that_is_not_used_are_in_the_way_until_they_are_removed(
    net: Topology, tmp_path: Path
) -> None:
    before = witnessed(net)
    leave_iptables_mode(net, "legacy")
    checked = check(net, tmp_path)
    assert checked.returncode == 2, checked.stdout
    assert "kube-proxy has rules in legacy" in checked.stdout
    assert "Not ready: 1 thing stands in the way." in checked.stdout
    cleaned = ipvs_proxy(net, *CLEANUP_KUBE_PROXY)
    assert (cleaned.returncode, cleaned.stderr) == (0, "")
    assert witnessed(net) == before
    assert check(net, tmp_path).returncode == 0


def test_other_modes_of_kube_proxy_are_recognised(net: Topology) -> None:
    leave_iptables_mode(net)
    leave_nftables_mode(net)
    left = witnessed(net)
    checked = ipvs_proxy(net, "migrate", "check", "-o", "json")
    assert checked.returncode == 0, checked.stdout
    report = json.loads(checked.stdout)
    assert report["ready"]
    changes = {finding["topic"] for finding in report["findings"] if finding["standing"] == "change"}
    assert {"iptables mode", "nftables mode"} <= changes
    assert witnessed(net) == left


def test_somebody_else_on_the_health_port_is_in_the_way(net: Topology, tmp_path: Path) -> None:
    with servers(net, ("node",), {"TCP": 10256}):
        checked = check(net, tmp_path)
    assert checked.returncode == 2, checked.stdout
    assert "10256 is taken by" in checked.stdout
