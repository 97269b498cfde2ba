"""Short ways to make the Kubernetes objects that tests need; omitted fields have the API's defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from msgspec import convert, structs

from ipvs_proxy.kube.objects import (
    ClientIPConfig,
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    ForNode,
    ForZone,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    SessionAffinityConfig,
    SliceAnnotations,
    SliceLabels,
    SliceMeta,
)
from ipvs_proxy.plan.addresses import parse_address
from ipvs_proxy.plan.tables import Protocol, RealServerKey, VirtualServerKey

EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
HTTP = ServicePort(port=80, name="http")


def packed(text: str) -> bytes:
    """Return the bytes of an address, which must be valid."""
    address = parse_address(text)
    assert address is not None
    return address


def virtual(address: str, port: int = 80, protocol: Protocol = Protocol.TCP) -> VirtualServerKey:
    """Return the key of a virtual server."""
    return VirtualServerKey(packed(address), protocol, port)


def real(address: str, port: int = 8080) -> RealServerKey:
    """Return the key of a real server."""
    return RealServerKey(packed(address), port)


def service(
    name: str = "web",
    *,
    cluster_ip: str = "10.96.0.10",
    cluster_ips: Sequence[str] | None = None,
    families: Sequence[str] | None = None,
    ports: Iterable[ServicePort] = (HTTP,),
    affinity: str = "None",
    timeout: int | None = None,
    age: int = 0,
    created: datetime | None = EPOCH,
    labels: dict[str, str] | None = None,
    kind: str = "ClusterIP",
    internal: str | None = None,
    namespace: str = "default",
) -> Service:
    """Make a Service, ``age`` seconds older than others; several ``cluster_ips`` make it dual-stack."""
    config = None if timeout is None else SessionAffinityConfig(ClientIPConfig(timeout))
    return Service(
        ObjectMeta(
            name,
            namespace,
            creation_timestamp=None if created is None else created - timedelta(seconds=age),
            labels=labels,
        ),
        ServiceSpec(
            type=kind,
            cluster_ip=cluster_ip,
            cluster_ips=None if cluster_ips is None else list(cluster_ips),
            ip_families=None if families is None else tuple(families),
            ports=tuple(ports),
            session_affinity=affinity,
            session_affinity_config=config,
            internal_traffic_policy=internal,
        ),
    )


def marked(name: str, number: int) -> Service:
    """A Service whose port has a mark."""
    port = ServicePort(port=80, name="http", node_port=30_000 + number)
    made = service(name, cluster_ip=f"10.96.0.{20 + number}", kind="NodePort", ports=[port])
    spec = structs.replace(made.spec, external_traffic_policy="Local", external_ips=[f"203.0.113.{number}"])
    return structs.replace(made, spec=spec)


def dual_stack(name: str = "web", *, ipv4: str = "10.96.0.10", ipv6: str = "fd00:96::10", **more: object) -> Service:
    """Make a Service with a cluster IP of each family."""
    return service(name, cluster_ip=ipv4, cluster_ips=[ipv4, ipv6], families=["IPv4", "IPv6"], **more)  # type: ignore[arg-type]


def endpoint(
    *addresses: str,
    ready: bool | None = None,
    serving: bool | None = None,
    terminating: bool | None = None,
    node: str | None = None,
    zones: Iterable[str] | None = None,
    nodes: Iterable[str] | None = None,
) -> Endpoint:
    """Make an endpoint of an EndpointSlice."""
    hints = None
    if zones is not None or nodes is not None:
        hints = EndpointHints(
            for_zones=None if zones is None else tuple(map(ForZone, zones)),
            for_nodes=None if nodes is None else tuple(map(ForNode, nodes)),
        )
    return Endpoint(addresses, EndpointConditions(ready, serving, terminating), node, hints)


def endpoint_slice(
    *endpoints: Endpoint,
    name: str = "web-1",
    of: str = "web",
    ports: Iterable[EndpointPort] = (EndpointPort("http", 8080),),
    address_type: str = "IPv4",
    namespace: str = "default",
) -> EndpointSlice:
    """Make an EndpointSlice of the Service ``of``."""
    return EndpointSlice(
        SliceMeta(name, namespace, labels=SliceLabels(of)), address_type, tuple(endpoints), tuple(ports)
    )


def annotated_slice(piece: EndpointSlice, annotations: Mapping[str, str]) -> EndpointSlice:
    """Return an EndpointSlice with other annotations."""
    read = convert(annotations, SliceAnnotations) if annotations else None
    return structs.replace(piece, metadata=structs.replace(piece.metadata, annotations=read))
