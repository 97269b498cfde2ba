"""A changed configuration file reaches the kernel without a restart."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from lab import manifests
from lab.agent import eventually, running_agent
from lab.manifests import PORTS, TARGET_PORTS, endpoint
from lab.topology import ADDRESSES, FAMILIES, Topology, exchange, servers, topology

VIPS = {"IPv4": "10.96.0.60", "IPv6": "fd00:10:96::60"}
PODS = ("pod1", "pod2")
VERBOSITY = "KubeProxyConfiguration.logging.verbosity"
HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16,fd00:10:244::/56\n"


def configz(net: Topology) -> Any:
    with net.inside("node"), urllib.request.urlopen("http://127.0.0.1:10249/configz") as response:
        return json.load(response)["kubeproxy.config.k8s.io"]


def schedulers(net: Topology) -> set[str]:
    return {
        line.split(" -s ")[1].split()[0] for line in net.run("node", "ipvsadm", "-Sn").splitlines() if " -s " in line
    }


def test_changed_file_reaches_the_kernel_and_a_broken_one_does_not(tmp_path: Path) -> None:
    objects, config = tmp_path / "objects", tmp_path / "config.conf"
    objects.mkdir()
    manifests.write(objects, "node", manifests.node())
    manifests.write(objects, "service", manifests.service("web", *VIPS.values()))
    endpoints = [endpoint(ADDRESSES[pod][family]) for pod in PODS for family in FAMILIES]
    manifests.write(objects, "slices", *manifests.slices("web", endpoints))
    config.write_text(HEAD)
    with (
        topology() as net,
        servers(net, PODS, TARGET_PORTS),
        running_agent(net, objects, "--config", str(config)) as agent,
        net.connect("client", VIPS["IPv4"], PORTS["TCP"]) as client,
    ):
        before = exchange(client)[0]
        assert schedulers(net) == {"rr"}
        config.write_text(
            HEAD + "ipvs: {scheduler: lc, strictARP: true, tcpTimeout: 20m}\niptables: {masqueradeAll: true}\n"
        )
        agent.wait_for("configuration_applied")
        eventually(lambda: schedulers(net) == {"lc"})
        eventually(lambda: net.run("node", "sysctl", "-n", "net.ipv4.conf.all.arp_ignore").strip() == "1")
        eventually(lambda: net.run("node", "ipvsadm", "-L", "--timeout").split()[4] == "1200")
        # With masqueradeAll the rule asks no more where a packet comes from.
        eventually(lambda: "! -s 10.244.0.0/16" not in net.run("node", "iptables-save", "-t", "nat"))
        assert configz(net)["ipvs"]["scheduler"] == "lc"
        config.write_text(HEAD + "ipvs: {scheduler: magic}\n")
        agent.wait_for("configuration_not_applied")
        config.write_text(HEAD + "ipvs: {syncPeriod: soon}\n")
        assert "syncPeriod" in agent.wait_for("configuration_refused")["faults"][0]
        config.write_text(HEAD + "ipvs: {scheduler: wrr}\niptables: {masqueradeBit: 15}\n")
        assert agent.wait_for("restart_needed")["changed"] == ["KubeProxyConfiguration.iptables.masqueradeBit"]
        eventually(lambda: schedulers(net) == {"wrr"})
        # Debug events from now on: the end of a drain that cuts nothing is one.
        config.write_text(HEAD + "ipvs: {scheduler: wrr}\nlogging: {verbosity: 4}\n")
        eventually(lambda: agent.named("configuration_applied")[-1]["changed"] == [VERBOSITY])
        manifests.write(objects, "slices", *manifests.slices("web", endpoints[:-1]))
        assert agent.wait_for("drained")["level"] == "debug"
        assert exchange(client)[0] == before, "the connection from before all changes"
        agent.stop()
