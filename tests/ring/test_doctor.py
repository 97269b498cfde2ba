"""What doctor finds, and does not find, depends on what the cluster uses and on the kernel's version."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from ipvs_proxy.node import sysctl as kernel_settings
from lab import manifests
from lab.agent import command, running_agent
from lab.manifests import TARGET_PORTS, endpoint
from lab.topology import ADDRESSES, servers, topology
from tests.ring.troubles import sysctl

VIP, VIP6 = "10.96.0.50", "fd00:10:96::50"
FORWARDING = "net.ipv6.conf.all.forwarding is 0"


def write(directory: Path, name: str, address: str) -> None:
    found = ADDRESSES["pod1"]["IPv6" if ":" in address else "IPv4"]
    manifests.write(directory, name, manifests.service(name, address), *manifests.slices(name, [endpoint(found)]))


def test_ipv6_is_asked_to_be_forwarded_only_once_a_service_uses_it(tmp_path: Path) -> None:
    manifests.write(tmp_path, "node", manifests.node())
    write(tmp_path, "web", VIP)
    with topology() as net, sysctl(net, ipv6__conf__all__forwarding="0"), running_agent(net, tmp_path) as agent:
        assert FORWARDING not in command(net, "doctor", "-o", "json")
        assert agent.named("sysctl_warning") == []
        write(tmp_path, "six", VIP6)
        assert FORWARDING in agent.wait_for("sysctl_warning")["text"]
        write(tmp_path, "more", "fd00:10:96::51")
        agent.wait_for("programmed", 2)
        assert len(agent.named("sysctl_warning")) == 1
        assert FORWARDING in command(net, "doctor", "-o", "json", status=2)


def test_connections_of_ipvs_are_what_its_table_has_to_hold(tmp_path: Path) -> None:
    """The kernel tracks many others: they are not in that table, whose size is the kernel's business from 7.1 on."""
    manifests.write(tmp_path, "node", manifests.node())
    write(tmp_path, "web", VIP)
    with topology() as net, servers(net, ("pod1",), TARGET_PORTS), running_agent(net, tmp_path):
        for _ in range(3):
            assert net.ask("client", VIP, 80)[0] == "pod1"
        with net.connect("client", VIP, 80):
            with net.inside("client"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                for port in range(20_000, 25_000):
                    client.sendto(b"", (ADDRESSES["pod1"]["IPv4"], port))
            found = {one["topic"]: one for one in json.loads(command(net, "doctor", "-o", "json"))}
    grows = kernel_settings.kernel_version() >= (7, 1)
    entries = int(found["conntrack"]["text"].split()[0].replace(",", ""))
    assert entries > 4_500, "so many would crowd 256 buckets"
    assert found["IPVS"]["level"] == "ok"
    buckets, connections = (int(word.replace(",", "")) for word in found["IPVS"]["text"].split() if word[0].isdigit())
    assert connections == 4
    assert buckets == (256 if grows else 4096)
