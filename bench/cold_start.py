"""How long an empty kernel takes to hold a cluster's table: the agent from its cold start, next to ``ipvsadm -R``.

Both fill the same table, in the same run, each in a network namespace of its own (a kernel keeps deleted real servers
on a list that slows later adds down). The agent's work is larger than its neighbour's: it also reads and plans the
objects and writes addresses, sets and rules. Absolute times belong to the machine; the ratio is what to read.

Usage: python -m bench.cold_start [SERVICES [ENDPOINTS]]
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

FIRST_VIP = IPv4Address("10.96.0.10")
FIRST_POD = IPv4Address("10.128.0.1")
#: The agent is given up after so many seconds.
PATIENCE = 900


def main() -> None:
    """Measure and print one table."""
    services, endpoints = (int(word) for word in (sys.argv[1:] + ["1000", "10"][len(sys.argv) - 1 :])[:2])
    with tempfile.TemporaryDirectory() as directory:
        manifests = Path(directory)
        (manifests / "cluster.json").write_text(json.dumps(cluster(services, endpoints)))
        with namespace("bench-agent") as name:
            process_seconds, started = time_agent(name, manifests)
            count = count_real_servers(name)
    with namespace("bench-ipvsadm") as name:
        restore_seconds = time_ipvsadm(name, services, endpoints)
        assert count == count_real_servers(name) == services * endpoints, "the two tables differ"
    machine = f"Linux {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs"
    print(f"{services} Services x {endpoints} endpoints, {machine}")
    print(f"{'':44} {'seconds':>9} {'of ipvsadm -R':>14}")
    rows = (
        ("ipvsadm -R (IPVS only)", restore_seconds),
        ("agent, objects known -> all programmed", started["seconds"]),
        ("agent, process start -> all programmed", process_seconds),
    )
    for label, seconds in rows:
        print(f"{label:44} {seconds:9.2f} {seconds / restore_seconds:14.2f}")
    print(f"the agent wrote {started['kernel_writes']} messages for {started['operations']} operations")


def cluster(services: int, endpoints: int) -> dict[str, Any]:
    """Give a List of Services, each with one slice, as ``kubectl get -o json`` prints it."""
    items: list[dict[str, Any]] = []
    for index in range(services):
        name, vip = f"service-{index}", str(FIRST_VIP + index)
        items.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": "bench"},
                "spec": {"clusterIP": vip, "ports": [{"port": 80, "protocol": "TCP"}]},
            }
        )
        items.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": name, "namespace": "bench", "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
                "endpoints": [
                    {"addresses": [str(FIRST_POD + index * endpoints + number)]} for number in range(endpoints)
                ],
            }
        )
    return {"apiVersion": "v1", "kind": "List", "items": items}


def time_agent(name: str, manifests: Path) -> tuple[float, dict[str, Any]]:
    """Start the agent; give the seconds until it has programmed everything, and its own account of that."""
    command = [
        *("ip", "netns", "exec", name, sys.executable, "-m", "ipvs_proxy", "--manifests", str(manifests)),
        *("--hostname-override", "bench", "--cluster-cidr", "10.128.0.0/9", "--logging-format", "json"),
        *("--healthz-bind-address", "127.0.0.1:10256", "--metrics-bind-address", "127.0.0.1:10249"),
    ]
    begun = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        printed = []
        try:
            for line in process.stderr:
                printed.append(line)
                if line.startswith("{") and (event := json.loads(line))["event"] == "started":
                    return time.monotonic() - begun, event
                if time.monotonic() - begun > PATIENCE:
                    break
        finally:
            process.terminate()
    sys.exit("the agent did not start:\n" + "".join(printed))


def time_ipvsadm(name: str, services: int, endpoints: int) -> float:
    """Give the seconds that ``ipvsadm -R`` needs for the same table."""
    lines = []
    for index in range(services):
        vip = FIRST_VIP + index
        lines.append(f"-A -t {vip}:80 -s rr\n")
        lines += [
            f"-a -t {vip}:80 -r {FIRST_POD + index * endpoints + number}:8080 -m -w 1\n" for number in range(endpoints)
        ]
    begun = time.monotonic()
    subprocess.run(["ip", "netns", "exec", name, "ipvsadm", "-R"], input="".join(lines), text=True, check=True)
    return time.monotonic() - begun


def count_real_servers(name: str) -> int:
    """Count them by what ipvsadm says."""
    command = ["ip", "netns", "exec", name, "ipvsadm", "-Sn"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("\n-a ")


@contextmanager
def namespace(name: str) -> Iterator[str]:
    """Make a network namespace with ``lo`` up, and take it away again."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


if __name__ == "__main__":
    main()
