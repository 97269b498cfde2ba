"""Services that are served beside a kube-proxy, by their label, and the node that both run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import manifests
from lab.manifests import TARGET_PORTS, endpoint
from lab.topology import ADDRESSES, FAMILIES, Topology, servers, topology
from tests.ring.neighbour import NODE_PORT, OTHER, sync

LABEL = "service.kubernetes.io/service-proxy-name"
FLAGS = ("--service-proxy-name", "ipvs")
WEB = {"IPv4": "10.96.0.40", "IPv6": "fd00:10:96::40"}
WEB_INGRESS = {"IPv4": "203.0.112.40", "IPv6": "fd00:112::40"}
WEB_NODE_PORT = 30040
PROTOCOLS = ("TCP", "UDP", "SCTP")
LOCAL = {"IPv4": "10.96.0.41", "IPv6": "fd00:10:96::41"}
LOCAL_INGRESS = {"IPv4": "203.0.112.41", "IPv6": "fd00:112::41"}
LOCAL_NODE_PORT, HEALTH_PORT = 30041, 32041
#: A Service whose port is the node port of the other one.
TRAP = {"IPv4": "10.96.0.42", "IPv6": "fd00:10:96::42"}


def labelled(service: dict[str, Any], value: str = "ipvs") -> dict[str, Any]:
    service["metadata"]["labels"] = {LABEL: value}
    return service


def slices(name: str, *pods: str, protocols: tuple[str, ...] = ("TCP",)) -> list[dict[str, Any]]:
    ends = [
        endpoint(ADDRESSES[pod][family], "peer" if pod == "pod4" else "node") for pod in pods for family in FAMILIES
    ]
    return manifests.slices(name, ends, protocols)


def write_services(directory: Path) -> None:
    """Write the Services of both: ours are labelled."""
    manifests.write(directory, "node", manifests.node())
    web = manifests.service(
        "web",
        *WEB.values(),
        protocols=PROTOCOLS,
        type="LoadBalancer",
        node_ports={"TCP": WEB_NODE_PORT},
        ingress=WEB_INGRESS.values(),
    )
    local = manifests.service(
        "local",
        *LOCAL.values(),
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        healthCheckNodePort=HEALTH_PORT,
        node_ports={"TCP": LOCAL_NODE_PORT},
        ingress=LOCAL_INGRESS.values(),
    )
    trap = manifests.service(
        "trap", *TRAP.values(), ports=[{"name": "tcp", "protocol": "TCP", "port": NODE_PORT, "nodePort": 0}]
    )
    other = manifests.service("other", *OTHER.values(), type="NodePort", node_ports={"TCP": NODE_PORT})
    manifests.write(directory, "web", labelled(web), *slices("web", "pod1", "pod4", protocols=PROTOCOLS))
    manifests.write(directory, "local", labelled(local), *slices("local", "pod1", "pod4"))
    manifests.write(directory, "trap", labelled(trap), *slices("trap", "pod1"))
    manifests.write(directory, "other", other, *slices("other", "pod2"))


@contextmanager
def node_with_kube_proxy(mode: str) -> Iterator[Topology]:
    """Make a node that kube-proxy serves, with pods and with a default route, as any node has; it leads nowhere."""
    with topology() as net, servers(net, ("pod1", "pod2", "pod3", "pod4"), TARGET_PORTS):
        net.run("node", "ip", "link", "add", "world0", "up", "type", "dummy")
        for version in ("-4", "-6"):
            net.run("node", "ip", version, "route", "add", "default", "dev", "world0")
        sync(net, mode)
        yield net
