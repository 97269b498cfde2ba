"""An endpoint whose address the kernel refuses is its Service's trouble: every tenant can write one."""

from __future__ import annotations

import time
from pathlib import Path

from lab import manifests
from lab.agent import command, eventually, running_agent
from lab.manifests import TARGET_PORTS, endpoint
from lab.topology import ADDRESSES, Topology, servers, topology

WEB, WRONG = "10.96.0.50", "10.96.0.51"
#: As a container runtime makes it; IPVS refuses a real server at its broadcast address.
BRIDGE, BROADCAST = "172.17.0.1/16", "172.17.255.255"
#: Seconds. After two of them the agent is not healthy if something holds it up.
PERIOD = 3


def write(directory: Path, name: str, address: str, *endpoints: str) -> None:
    found = [endpoint(one) for one in endpoints]
    manifests.write(directory, name, manifests.service(name, address), *manifests.slices(name, found))


def status(net: Topology, path: str) -> int:
    with net.connect("node", "127.0.0.1", 10256) as client:
        client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        return int(client.recv(65536).split()[1])


def test_node_stays_healthy_and_the_refusal_is_shown(tmp_path: Path) -> None:
    pod = ADDRESSES["pod1"]["IPv4"]
    manifests.write(tmp_path, "node", manifests.node())
    write(tmp_path, "web", WEB, pod)
    write(tmp_path, "wrong", WRONG, pod, BROADCAST)
    with topology() as net, servers(net, ("pod1",), TARGET_PORTS):
        net.run("node", "ip", "link", "add", "docker0", "up", "type", "dummy")
        net.run("node", "ip", "address", "add", BRIDGE, "dev", "docker0")
        with running_agent(net, tmp_path, "--ipvs-sync-period", f"{PERIOD}s") as agent:
            assert BROADCAST in str(agent.wait_for("operation_failed"))
            time.sleep(3 * PERIOD)
            eventually(lambda: {status(net, path) for path in ("/healthz", "/livez")} == {200})
            assert {net.ask("client", address, 80)[0] for address in (WEB, WRONG)} == {"pod1"}
            assert BROADCAST not in net.run("node", "ipvsadm", "-Ln")
            assert WRONG in command(net, "status"), "what the kernel refuses is shown"
