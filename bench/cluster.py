"""A cluster's objects as an API server sends them, for the agent in the benchmarks.

They have all that Helm and the controllers write, managedFields too, in the API's order: kind and version come first.

The first Services are the API server and the cluster's DNS, as in every cluster; the others are alike, each with
EndpointSlices of at most 1,000 endpoints. Addresses follow the numbers, so that the same table can be written by other
programs (``fill.c``, ``ipvsadm``).
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

from bench import managed
from bench.managed import Json

FIRST_VIP = IPv4Address("10.96.0.10")
FIRST_POD = IPv4Address("10.128.0.1")
PORT, TARGET_PORT = 80, 8080
SLICE_SIZE = 1_000
NODE = "node-0"
CREATED = "2026-01-01T00:00:00Z"


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


def service(index: int) -> Json:
    """Return a Service as Helm installs it, with what an API server adds."""
    namespace, name = name_of(index)
    found: Json = {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"00000000-0000-4000-8000-{index:012d}",
            "resourceVersion": str(1_000 + index),
            "creationTimestamp": CREATED,
            "labels": _labels_of(name),
            "annotations": {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": namespace},
        },
        "spec": {
            "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT}],
            "selector": {"app.kubernetes.io/name": name},
            "clusterIP": vip_of(index),
            "clusterIPs": [vip_of(index)],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    }
    found["metadata"]["managedFields"] = managed.of_service(found, time=CREATED)
    return found


def _labels_of(name: str) -> dict[str, str]:
    labels = {"app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/name": name}
    return labels | ({"k8s-app": "kube-dns"} if name == "kube-dns" else {})


def slices(index: int, pods: list[str], version: int = 1) -> list[Json]:
    """Return a Service's EndpointSlices."""
    return [
        endpoint_slice(index, number, pods[start : start + SLICE_SIZE], version)
        for number, start in enumerate(range(0, len(pods), SLICE_SIZE))
    ]


def endpoint_slice(index: int, number: int, pods: list[str], version: int = 1) -> Json:
    """Return one EndpointSlice of a Service, as kube-controller-manager makes it."""
    namespace, name = name_of(index)
    found: Json = {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": f"{name}-{number:05d}",
            "generateName": f"{name}-",
            "namespace": namespace,
            "uid": f"00000000-0000-4000-9000-{index:012d}",
            "resourceVersion": str(100_000 + index + version),
            "generation": version,
            "creationTimestamp": CREATED,
            "labels": {
                **_labels_of(name),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": name,
            },
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": CREATED},
            "ownerReferences": [managed.owner_of(service(index))],
        },
        "addressType": "IPv4",
        "endpoints": [_endpoint(namespace, name, pod) for pod in pods],
        "ports": [{"name": "http", "port": TARGET_PORT, "protocol": "TCP"}],
    }
    found["metadata"]["managedFields"] = managed.of_slice(found, time=CREATED)
    return found


def _endpoint(namespace: str, name: str, pod: str) -> Json:
    number = int(IPv4Address(pod))
    return {
        "addresses": [pod],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "targetRef": {
            "kind": "Pod",
            "namespace": namespace,
            "name": f"{name}-7d4b9c6f5d-{number % 2**20:05x}",
            "uid": f"00000000-0000-4000-a000-{number:012d}",
        },
        "nodeName": f"node-{number % 500 + 1}",
        "zone": "zone-a",
    }


def node() -> Json:
    """Return the Node that the agent runs on."""
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": NODE, "resourceVersion": "1", "labels": {"topology.kubernetes.io/zone": "zone-a"}},
        "spec": {"podCIDRs": ["10.128.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    }


def objects(services: int, endpoints: int) -> Iterator[Json]:
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
