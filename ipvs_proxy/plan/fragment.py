"""What one Service asks of the kernel, and what that depends on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from ipvs_proxy.kube.objects import ServicePort
from ipvs_proxy.plan.annotations import ServiceOptions
from ipvs_proxy.plan.choices import Choices
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.tables import Family, Record, Role, SetEntry, VirtualServer, VirtualServerKey

#: When a Service of unknown age counts as created: after all others.
YOUNGEST = datetime.max.replace(tzinfo=UTC)


class ServiceName(NamedTuple):
    """Namespace and name of a Service."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


#: TCP ports of API servers, by packed address.
ApiServers = Mapping[bytes, frozenset[int]]


class Context(NamedTuple):
    """What a plan depends on besides the objects: facts of this node and settings of the agent.

    All addresses are packed. ``node_port_addresses`` are those that node ports are served on, ``host_addresses`` those
    of all links but our own, ``node_ips`` the Node's own, by which source ranges allow the node itself,
    ``node_addresses`` all that its status has, ``api_servers`` where this agent reaches the API server. ``compatible``:
    one list of endpoints for all clients, as in kube-proxy's IPVS mode. ``external_ips``: whether ``externalIPs`` are
    served (kube-proxy's feature gate ``AllowServiceExternalIPs``). ``service_proxy_name``: whose Services are served;
    if it is empty, those that have no such label. ``spells_marks``: the packet filter needs the bits of marks, each in
    its role. ``missing_schedulers`` are those that the kernel was asked for and does not have.
    """

    node_name: str
    scheduler: str = "rr"
    zone: str = ""
    families: tuple[Family, ...] = (Family.IPV4, Family.IPV6)
    node_port_addresses: tuple[bytes, ...] = ()
    host_addresses: frozenset[bytes] = frozenset()
    node_ips: tuple[bytes, ...] = ()
    node_addresses: frozenset[bytes] = frozenset()
    api_servers: ApiServers = MappingProxyType({})
    compatible: bool = False
    external_ips: bool = True
    service_proxy_name: str = ""
    spells_marks: bool = True
    missing_schedulers: frozenset[str] = frozenset()


class HealthCheck(NamedTuple):
    """The health check of a Service's local endpoints: its port, and how many addresses are ready."""

    port: int
    local_endpoints: int


class Scheduling(Record, frozen=True):
    """How one port's virtual servers share out connections.

    ``flags`` are ``IP_VS_SVC_F_*``, ``timeout`` is the persistence timeout in seconds, and ``source`` says who chose
    the scheduler: ``Reason.AGENT_SETTING``, ``ANNOTATION`` or ``WEIGHTS``.
    """

    scheduler: str
    flags: int
    timeout: int
    source: Reason


class Fragment(Record, frozen=True):
    """What one Service asks of the kernel, everything with the reason it is there.

    ``created`` orders Services that claim the same virtual server, and ``options`` is what annotations ask for.
    ``entries`` are keyed by (role, entry). ``choices`` has the decision about every endpoint of every virtual server,
    ``schedulings`` that about its scheduler; ``no_local`` tells for which policy (``internal``, ``external``) ``Local``
    finds no endpoint for new connections here although there are some.
    """

    name: ServiceName
    created: datetime = YOUNGEST
    options: ServiceOptions = ServiceOptions()
    virtual_servers: dict[VirtualServerKey, tuple[VirtualServer, Reason]] = msgspec.field(default_factory=dict)
    addresses: dict[bytes, Reason] = msgspec.field(default_factory=dict)
    entries: dict[tuple[Role, SetEntry], Reason] = msgspec.field(default_factory=dict)
    choices: dict[VirtualServerKey, Choices] = msgspec.field(default_factory=dict)
    schedulings: dict[VirtualServerKey, Scheduling] = msgspec.field(default_factory=dict)
    omissions: list[Omission] = msgspec.field(default_factory=list)
    no_local: set[tuple[str, Family]] = msgspec.field(default_factory=set)
    health_checks: dict[Family, HealthCheck] = msgspec.field(default_factory=dict)

    def where(self, port: ServicePort) -> str:
        """Return what an omission calls a port."""
        return f"service {self.name} port {port.name or port.port}"
