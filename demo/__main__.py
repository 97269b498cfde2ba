"""Shows the agent at work in a small cluster of network namespaces; ends with status 0 only if all it shows held.

There are a client outside the cluster, a node with the agent, and three pods. The agent reads the manifests in this
folder instead of following an API server. Requests go through the ClusterIP; then a pod goes away while a connection to
it is open.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from lab.agent import PROGRAM, eventually, running_agent
from lab.topology import ADDRESSES, Topology, exchange, servers, topology
from lab.witness import weights

MANIFESTS = Path(__file__).parent / "manifests"
PODS = ("pod1", "pod2", "pod3")
VIP, PORT = "10.96.0.80", 80
REQUESTS = 30


def main() -> None:
    """Run the demo."""
    with tempfile.TemporaryDirectory() as scratch, topology() as net, servers(net, PODS, {"TCP": 8080}):
        directory = Path(scratch, "manifests")
        shutil.copytree(MANIFESTS, directory)
        say("A client, a node and three pods; ipvs-proxy starts on the node with --manifests:")
        print("  " + ", ".join(file.name for file in sorted(directory.glob("*.yaml"))))
        with running_agent(net, directory, program=PROGRAM) as agent:
            started = agent.named("started")[0]
            print(f"  {started['services']} Service, {started['operations']} operations, {started['seconds']} s")
            show_balance(net, set(PODS))
            show_table(net)
            show_departure(net, directory)
            say("The agent stops. The kernel stays as it is, so the Service goes on working.")
            print(f"  stopped after {agent.stop():.2f} s")
            show_balance(net, {"pod2", "pod3"})
    say("All of this held. The same objects from an API server take the same way: see README.md.")


def show_balance(net: Topology, expected: set[str]) -> None:
    """Send requests through the ClusterIP and show which pods answered."""
    say(f"{REQUESTS} requests from the client to the ClusterIP {VIP}:{PORT} land on:")
    counts = Counter(net.ask("client", VIP, PORT)[0] for _ in range(REQUESTS))
    for pod in sorted(counts):
        print(f"  {pod}  {ADDRESSES[pod]['IPv4']:12} {'#' * counts[pod]} {counts[pod]}")
    check(set(counts) == expected, f"expected {sorted(expected)}")


def show_departure(net: Topology, directory: Path) -> None:
    """Remove a pod from the EndpointSlice while a connection to it is open."""
    connections = [net.connect("client", VIP, PORT) for _ in PODS]
    kept = next(connection for connection in connections if exchange(connection)[0] == "pod1")
    say("A connection to pod1 is open. Now pod1 leaves the EndpointSlice.")
    file = directory / "web-endpoints.yaml"
    remaining = file.read_text().replace("- addresses: [10.244.1.1]\n  nodeName: node\n", "")
    replacement = directory / "web-endpoints.new"
    replacement.write_text(remaining)
    replacement.replace(file)
    eventually(lambda: weights(net, VIP, PORT).get(ADDRESSES["pod1"]["IPv4"]) == 0)
    show_balance(net, {"pod2", "pod3"})
    check(exchange(kept)[0] == "pod1", "the open connection broke")
    say("The connection that was open still reaches pod1: it drains, with weight 0.")
    show_table(net)
    for connection in connections:
        connection.close()


def show_table(net: Topology) -> None:
    """Show the IPVS table as ipvsadm prints it."""
    say("ipvsadm -Ln on the node:")
    for line in net.run("node", "ipvsadm", "-Ln").splitlines():
        print(f"  {line.rstrip()}")


def say(text: str) -> None:
    """Print the heading of a step."""
    print(f"\n{text}", flush=True)


def check(held: bool, problem: str) -> None:
    """Exit with a message if something shown did not hold."""
    if not held:
        sys.exit(f"demo: this did not hold: {problem}")


if __name__ == "__main__":
    main()
