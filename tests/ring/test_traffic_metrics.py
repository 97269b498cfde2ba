"""What is exposed of a Service's traffic is what ipvsadm counts."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

from lab import manifests
from lab.agent import eventually, running_agent
from lab.manifests import PORTS, TARGET_PORTS, endpoint
from lab.topology import ADDRESSES, FAMILIES, Topology, servers, topology

VIPS = {"IPv4": "10.96.0.90", "IPv6": "fd00:10:96::90"}
PODS = ("pod1", "pod2")


def scrape(net: Topology) -> dict[str, int]:
    """Return the series of the Service: connections, and packets and bytes by direction."""
    with net.inside("node"), urllib.request.urlopen("http://127.0.0.1:10249/metrics") as response:
        text = response.read().decode()
    found = {}
    for name, labels, value in re.findall(r"^ipvs_proxy_service_(\w+)_total\{(.*)\} (\d+)$", text, re.MULTILINE):
        assert 'namespace="ring",service="web",port="80",kind="ClusterIP"' in labels
        direction = re.search(r'direction="(\w+)"', labels)
        found[name + (f" {direction[1]}" if direction else "")] = int(value)
    return found


def scrape_endpoints(net: Topology) -> dict[str, int]:
    """Return the connections of each endpoint."""
    with net.inside("node"), urllib.request.urlopen("http://127.0.0.1:10249/metrics") as response:
        text = response.read().decode()
    pattern = r'^ipvs_proxy_endpoint_connections_total\{.*endpoint="([^"]+)"\} (\d+)$'
    return {endpoint: int(value) for endpoint, value in re.findall(pattern, text, re.MULTILINE)}


def counted(net: Topology) -> dict[str, int]:
    """Return the same as ipvsadm prints it, both families together."""
    sums = [0] * 5
    for line in net.run("node", "ipvsadm", "-Ln", "--stats", "--exact").splitlines():
        if line.startswith("TCP"):
            sums = [one + int(other) for one, other in zip(sums, line.split()[2:7], strict=True)]
    return dict(zip(("connections", "packets in", "packets out", "bytes in", "bytes out"), sums, strict=True))


def counted_endpoints(net: Topology) -> dict[str, int]:
    """Return the same as ipvsadm prints it."""
    lines = net.run("node", "ipvsadm", "-Ln", "--stats", "--exact").splitlines()
    return {line.split()[1]: int(line.split()[2]) for line in lines if line.split()[0] == "->" and "Remote" not in line}


def test_exposed_traffic_of_a_service_is_what_ipvsadm_counts(tmp_path: Path) -> None:
    manifests.write(tmp_path, "node", manifests.node())
    manifests.write(tmp_path, "service", manifests.service("web", *VIPS.values()))
    endpoints = [endpoint(ADDRESSES[pod][family]) for pod in PODS for family in FAMILIES]
    manifests.write(tmp_path, "slices", *manifests.slices("web", endpoints))
    with (
        topology() as net,
        servers(net, PODS, TARGET_PORTS),
        running_agent(net, tmp_path, "--service-metrics=endpoints") as agent,
    ):
        assert set(scrape(net).values()) == {0}
        for family in FAMILIES:
            for _ in range(3):
                net.ask("client", VIPS[family], PORTS["TCP"])

        def agree() -> bool:
            exposed, witness = scrape(net), counted(net)
            return (
                exposed == witness and exposed["connections"] == 6 and scrape_endpoints(net) == counted_endpoints(net)
            )

        # The kernel brings its counters up to date every two seconds: until then both show less.
        eventually(agree)
        assert all(value > 6 for name, value in scrape(net).items() if name != "connections")
        assert sum(scrape_endpoints(net).values()) == 6
        agent.stop()
