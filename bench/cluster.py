"""A cluster's objects as an API server sends them, for the agent in the benchmarks.

The first Services are the API server and the cluster's DNS, as in every cluster; the others are alike, each with
EndpointSlices of at most 1,000 endpoints. Addresses follow the numbers, so that the same table can be written by other
programs (``fill.c``, ``ipvsadm``).
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

FIRST_VIP = IPv4Address("10.96.0.10")
FIRST_POD = IPv4Address("10.128.0.1")
PORT, TARGET_PORT = 80, 8080
SLICE_SIZE = 1_000
NODE = "node-0"


def vip_of(index: int) -> str:
    """Return the cluster IP of a Service."""
    return str(FIRST_VIP + index)


def pods_of(index: int, endpoints: int) -> list[str]:
    """Return the addresses of a Service's endpoints."""
    return [str(FIRST_POD + index * endpoints + number) for number in range(endpoints)]


def name_of(index: int) -> tuple[str, str]:
    """Return namespace and name of a Service."""
    return {0: ("default", "kubernetes"), 1: ("kube-system", "kube-dns")}.get(
        index, (f"team-{index % 50}", f"service-{index}")
    )


def service(index: int) -> dict[str, Any]:
    """Return a Service, with what an API server adds."""
    namespace, name = name_of(index)
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": namespace}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"00000000-0000-4000-8000-{index:012d}",
            "resourceVersion": str(1_000 + index),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": labels | ({"k8s-app": "kube-dns"} if name == "kube-dns" else {}),
        },
        "spec": {
            "clusterIP": vip_of(index),
            "clusterIPs": [vip_of(index)],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "http", "port": PORT, "protocol": "TCP", "targetPort": TARGET_PORT}],
            "selector": labels,
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
        "status": {"loadBalancer": {}},
    }


def slices(index: int, pods: list[str], version: int = 1) -> list[dict[str, Any]]:
    """Return a Service's EndpointSlices."""
    return [
        endpoint_slice(index, number, pods[start : start + SLICE_SIZE], version)
        for number, start in enumerate(range(0, len(pods), SLICE_SIZE))
    ]


def endpoint_slice(index: int, number: int, pods: list[str], version: int = 1) -> dict[str, Any]:
    """Return one EndpointSlice of a Service."""
    namespace, name = name_of(index)
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-{number:05d}",
            "namespace": namespace,
            "uid": f"00000000-0000-4000-9000-{index:012d}",
            "resourceVersion": str(100_000 + index + version),
            "generation": version,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "kubernetes.io/service-name": name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": TARGET_PORT, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [pod],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"node-{int(IPv4Address(pod)) % 500 + 1}",
                "zone": "zone-a",
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": f"{name}-{pod}", "uid": pod},
            }
            for pod in pods
        ],
    }


def node() -> dict[str, Any]:
    """Return the Node that the agent runs on."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE, "resourceVersion": "1", "labels": {"topology.kubernetes.io/zone": "zone-a"}},
        "spec": {"podCIDRs": ["10.128.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    }


def objects(services: int, endpoints: int) -> Iterator[dict[str, Any]]:
    """Return all objects: each Service with its slices, then the Node."""
    for index in range(services):
        yield service(index)
        yield from slices(index, pods_of(index, endpoints))
    yield node()


def restore_lines(services: int, endpoints: int) -> Iterator[str]:
    """Return the same table for ``ipvsadm -R``."""
    for index in range(services):
        vip = vip_of(index)
        yield f"-A -t {vip}:{PORT} -s rr\n"
        for pod in pods_of(index, endpoints):
            yield f"-a -t {vip}:{PORT} -r {pod}:{TARGET_PORT} -m -w 1\n"
