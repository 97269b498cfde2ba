"""Services as large as the API server accepts them, with their EndpointSlices."""

from __future__ import annotations

from typing import Any

from ipvs_proxy.kube.decode import convert_object
from ipvs_proxy.kube.objects import Endpoint, EndpointPort, EndpointSlice, Service, SliceLabels, SliceMeta
from ipvs_proxy.kube.resources import SERVICES


def wanted(annotations: dict[str, str] | None = None, ingress: list[str] | None = None, **spec: Any) -> Service:
    mapping = {
        "metadata": {"name": "web", "namespace": "shop", "annotations": annotations or {}},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.1",
            "clusterIPs": ["10.96.0.1", "fd00:96::1"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": "http", "port": 80}],
            **spec,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": address} for address in ingress or []]}},
    }
    service = convert_object(mapping, SERVICES)
    assert isinstance(service, Service), service
    return service


def ports(count: int) -> list[dict[str, Any]]:
    return [
        {"name": "http" if not number else f"p{number}", "port": 1 + number, "nodePort": 30_000 + number}
        for number in range(count)
    ]


#: The number of endpoints of each slice that are on this node.
LOCAL = 100


def slices(count: int, endpoints: int, port_count: int = 1) -> list[EndpointSlice]:
    names = ["http", *(f"p{number}" for number in range(1, port_count))]
    return [
        EndpointSlice(
            SliceMeta(f"web-{index:03}", "shop", labels=SliceLabels("web")),
            "IPv4",
            tuple(
                Endpoint((f"10.{index}.{number >> 8}.{number & 255}",), node_name="node" if number < LOCAL else "other")
                for number in range(endpoints)
            ),
            tuple(EndpointPort(name, 8080 + number) for number, name in enumerate(names)),
        )
        for index in range(count)
    ]


ADDRESSES = [f"203.0.{number // 250}.{number % 250 + 1}" for number in range(100)]
MANY_ADDRESSES = [f"20.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(100_000)]
RANGES = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(5000)]
LARGE: dict[str, tuple[Service, list[EndpointSlice]]] = {
    "1,000 ports at 100 external IPs": (wanted(ports=ports(1000), externalIPs=ADDRESSES), slices(1, 2)),
    "the same with the policy Local": (
        wanted(ports=ports(1000), externalIPs=ADDRESSES, externalTrafficPolicy="Local"),
        slices(1, 2),
    ),
    "30,000 ports": (wanted(ports=ports(30_000)), slices(1, 2)),
    "5,000 source ranges": (wanted(ingress=["203.0.113.1"], loadBalancerSourceRanges=RANGES), slices(1, 2)),
    "5,000 source ranges at 100 ports": (
        wanted(ports=ports(100), ingress=["203.0.113.1"], loadBalancerSourceRanges=RANGES),
        slices(1, 2),
    ),
    "5,000 source ranges that are none": (wanted(loadBalancerSourceRanges=["x" * 300] * 4999), slices(1, 2)),
    "100 slices of 1,000": (wanted(), slices(100, 1000)),
    "100 slices of 1,000 at 100 external IPs": (wanted(externalIPs=ADDRESSES), slices(100, 1000)),
    "100 slices of 1,000 with 20 ports": (wanted(ports=ports(20)), slices(100, 1000, 20)),
    "16 slices of 1,000 with 100 ports": (wanted(ports=ports(100)), slices(16, 1000, 100)),
    "one slice of 30,000": (wanted(), slices(1, 30_000)),
    "one slice of 60,000 ports": (wanted(), slices(1, 1, 60_000)),
    "100 ports at 100 external IPs": (wanted(ports=ports(100), externalIPs=ADDRESSES), slices(1, 2)),
    "100,000 external IPs": (wanted(externalIPs=MANY_ADDRESSES), slices(1, 2)),
    "100,000 external IPs that are none": (wanted(externalIPs=["x"] * 100_000), slices(1, 2)),
    "60,000 load balancer addresses": (wanted(ingress=MANY_ADDRESSES[:60_000]), slices(1, 2)),
    "80,000 source ranges": (
        wanted(
            ingress=["203.0.113.1"], loadBalancerSourceRanges=[f"{address}/32" for address in MANY_ADDRESSES[:80_000]]
        ),
        slices(1, 2),
    ),
    "5,000 ports of one name with health checks": (
        wanted(
            ports=[{"name": "http", "port": 1 + number} for number in range(5000)],
            externalTrafficPolicy="Local",
            healthCheckNodePort=31_000,
        ),
        slices(16, 1000),
    ),
}
