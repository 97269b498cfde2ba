"""The Kubernetes objects that the agent reads, reduced to the fields it uses.

These frozen structs flow from ``kube/`` into ``plan/``. All other fields are skipped while decoding, which keeps memory
and CPU use low. Field names are the API's in snake case, and each field means what the Kubernetes API reference says
(core/v1 Service and Node, discovery.k8s.io/v1 EndpointSlice). An absent field is ``None`` only where "absent" means
something other than the zero value. What many objects have alike is in tuples and structs, which they can share (see
``sharing``).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

import msgspec

PortNumber = Annotated[int, msgspec.Meta(ge=0, le=65535)]

#: Label of an EndpointSlice that names its Service.
SERVICE_NAME: Final = "kubernetes.io/service-name"
#: Label of an EndpointSlice of a headless Service.
HEADLESS: Final = "service.kubernetes.io/headless"
#: Annotations of an EndpointSlice with the weight of its endpoints: the first that is there counts.
SLICE_WEIGHTS: Final = ("ipvs-proxy.io/weight", "service.cilium.io/weight")
#: Annotation of the EndpointSlice controller: when the change happened that led to this version (RFC 3339).
TRIGGER_TIME: Final = "endpoints.kubernetes.io/last-change-trigger-time"


class Struct(msgspec.Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Base of all objects: frozen, not tracked by the garbage collector (they hold no cycles), camelCase in JSON."""


class ObjectMeta(Struct, frozen=True):
    """``metadata`` of a Service or a Node; what nobody reads of its labels and annotations is missing (``sharing``)."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class ClientIPConfig(Struct, frozen=True):
    """``sessionAffinityConfig.clientIP``. The timeout is in seconds."""

    timeout_seconds: int | None = None


class SessionAffinityConfig(Struct, frozen=True):
    """``spec.sessionAffinityConfig``."""

    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class ServicePort(Struct, frozen=True):
    """One element of a Service's ``spec.ports``."""

    port: PortNumber
    name: str = ""
    protocol: str = "TCP"
    node_port: PortNumber = 0


class ServiceSpec(Struct, frozen=True):
    """A Service's ``spec``."""

    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    ip_families: tuple[str, ...] | None = None
    ports: tuple[ServicePort, ...] | None = None
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")
    load_balancer_source_ranges: list[str] | None = None
    health_check_node_port: PortNumber = 0


class LoadBalancerIngress(Struct, frozen=True):
    """One element of ``status.loadBalancer.ingress``."""

    ip: str = ""
    ip_mode: str | None = None


class LoadBalancerStatus(Struct, frozen=True):
    """``status.loadBalancer``."""

    ingress: list[LoadBalancerIngress] | None = None


class ServiceStatus(Struct, frozen=True):
    """A Service's ``status``."""

    load_balancer: LoadBalancerStatus = LoadBalancerStatus()


class Service(Struct, frozen=True):
    """core/v1 Service."""

    metadata: ObjectMeta
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


class EndpointConditions(Struct, frozen=True):
    """Conditions of one endpoint. ``None`` means "unknown"; how to treat that is up to the plan."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ForZone(Struct, frozen=True):
    """One element of ``hints.forZones``."""

    name: str


class ForNode(Struct, frozen=True):
    """One element of ``hints.forNodes``."""

    name: str


class EndpointHints(Struct, frozen=True):
    """``hints`` of one endpoint."""

    for_zones: tuple[ForZone, ...] | None = None
    for_nodes: tuple[ForNode, ...] | None = None


class Endpoint(Struct, frozen=True):
    """One element of an EndpointSlice's ``endpoints``."""

    addresses: tuple[str, ...]
    conditions: EndpointConditions = EndpointConditions()
    node_name: str | None = None
    hints: EndpointHints | None = None
    zone: str | None = None


class EndpointPort(Struct, frozen=True):
    """One element of an EndpointSlice's ``ports``. A nil name is not the same as an empty one."""

    name: str | None = None
    port: PortNumber | None = None
    protocol: str = "TCP"


class SliceLabels(Struct, frozen=True):
    """The labels of an EndpointSlice that the agent reads."""

    service_name: str | None = msgspec.field(default=None, name=SERVICE_NAME)
    headless: str | None = msgspec.field(default=None, name=HEADLESS)


class SliceAnnotations(Struct, frozen=True):
    """The annotations of an EndpointSlice that the agent reads."""

    weight: str | None = msgspec.field(default=None, name=SLICE_WEIGHTS[0])
    cilium_weight: str | None = msgspec.field(default=None, name=SLICE_WEIGHTS[1])
    trigger_time: str | None = msgspec.field(default=None, name=TRIGGER_TIME)


class SliceMeta(Struct, frozen=True):
    """``metadata`` of an EndpointSlice: 600 bytes less than an ``ObjectMeta`` with what controllers write."""

    name: str
    namespace: str = ""
    resource_version: str = ""
    labels: SliceLabels | None = None
    annotations: SliceAnnotations | None = None


class EndpointSlice(Struct, frozen=True):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: SliceMeta
    address_type: str
    endpoints: tuple[Endpoint, ...] | None = None
    ports: tuple[EndpointPort, ...] | None = None


class NodeAddress(Struct, frozen=True):
    """One element of a Node's ``status.addresses``."""

    type: str
    address: str


class Taint(Struct, frozen=True):
    """One element of a Node's ``spec.taints``."""

    key: str


class NodeSpec(Struct, frozen=True):
    """A Node's ``spec``."""

    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")
    taints: list[Taint] | None = None


class NodeStatus(Struct, frozen=True):
    """A Node's ``status``."""

    addresses: list[NodeAddress] | None = None


class Node(Struct, frozen=True):
    """core/v1 Node."""

    metadata: ObjectMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


KubernetesObject = Service | EndpointSlice | Node
