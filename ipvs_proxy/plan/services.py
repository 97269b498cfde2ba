"""From one Service and its EndpointSlices to the fragment of the kernel's tables that it asks for.

A fragment depends on nothing but its own Service, its slices and the facts of this node (``Context``): that is what
makes the cost of a change proportional to the change. Fragments of different Services meet only in ``desired``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from ipvs_proxy.kube.objects import EndpointSlice, Service, ServicePort
from ipvs_proxy.plan import sets
from ipvs_proxy.plan.addresses import is_of, parse_address
from ipvs_proxy.plan.endpoints import (
    PROTOCOLS,
    Choice,
    Endpoint,
    Omission,
    PortKey,
    choose_cluster,
    choose_local,
    gather,
)
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.tables import (
    ACTIVE,
    PERSISTENT,
    SCHED2,
    Family,
    RealServerKey,
    SetEntry,
    VirtualServer,
    VirtualServerKey,
)

#: Label that hands a Service to another proxy, with whatever value (Kubernetes documentation, "well-known labels").
SERVICE_PROXY_NAME = "service.kubernetes.io/service-proxy-name"
#: Label of an EndpointSlice that names its Service.
SERVICE_NAME = "kubernetes.io/service-name"
#: The API's default of ``sessionAffinityConfig.clientIP.timeoutSeconds``, and its upper bound (86400), in seconds.
DEFAULT_AFFINITY_TIMEOUT = 10_800
MAX_AFFINITY_TIMEOUT = 86_400

#: When a Service of unknown age counts as created: after all others.
_YOUNGEST = datetime.max.replace(tzinfo=UTC)


class ServiceName(NamedTuple):
    """Namespace and name of a Service."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Context(NamedTuple):
    """What a plan depends on besides the objects: facts of this node and settings of the agent."""

    node_name: str
    scheduler: str = "rr"
    zone: str = ""
    families: tuple[Family, ...] = (Family.IPV4, Family.IPV6)


@dataclass(frozen=True, slots=True)
class Fragment:
    """What one Service asks of the kernel, everything with the reason it is there.

    ``created`` orders Services that claim the same virtual server. ``entries`` are keyed by (set name, entry).
    ``choices`` has the decision about every endpoint of every virtual server; ``no_local`` tells that a policy of
    ``Local`` finds no endpoint here although there are some.
    """

    name: ServiceName
    created: datetime = _YOUNGEST
    virtual_servers: dict[VirtualServerKey, tuple[VirtualServer, Reason]] = field(default_factory=dict)
    addresses: dict[bytes, Reason] = field(default_factory=dict)
    entries: dict[tuple[str, SetEntry], Reason] = field(default_factory=dict)
    choices: dict[VirtualServerKey, list[Choice]] = field(default_factory=dict)
    omissions: list[Omission] = field(default_factory=list)
    no_local: set[Family] = field(default_factory=set)


def plan_service(service: Service, slices: Iterable[EndpointSlice], context: Context) -> Fragment:
    """Compute the fragment of a Service. Never fails: what cannot be planned is an omission with its reason."""
    name = ServiceName(service.metadata.namespace, service.metadata.name)
    skipped = _skip_reason(service)
    if skipped is not None:
        return Fragment(name, omissions=[Omission(f"service {name}", skipped)])
    fragment = Fragment(name, created=_created(service))
    pieces = list(slices)
    for family in context.families:
        address = _cluster_address(service, family)
        if isinstance(address, Reason):
            # Most Services have one family only: that is no news.
            if address is not Reason.NO_CLUSTER_IP:
                fragment.omissions.append(Omission(f"service {name} {family.label}", address))
        else:
            _plan_family(service, pieces, address, context, fragment)
    # What is wrong in both families, such as a slice of no known address type, is told once.
    fragment.omissions[:] = dict.fromkeys(fragment.omissions)
    return fragment


def _created(service: Service) -> datetime:
    """Give the time of creation, always with a time zone: a manifest may leave it out, and UTC is meant."""
    created = service.metadata.creation_timestamp
    if created is None:
        return _YOUNGEST
    return created if created.tzinfo is not None else created.replace(tzinfo=UTC)


def _skip_reason(service: Service) -> Reason | None:
    if SERVICE_PROXY_NAME in (service.metadata.labels or {}):
        return Reason.OTHER_PROXY
    if service.spec.type == "ExternalName":
        return Reason.EXTERNAL_NAME
    if service.spec.cluster_ip == "None":
        return Reason.HEADLESS
    if not service.spec.cluster_ip:
        return Reason.NO_CLUSTER_IP
    return None


def _cluster_address(service: Service, family: Family) -> bytes | Reason:
    """Find the cluster IP of a family: by position in ``ipFamilies``, or by its own form where that list is missing."""
    spec = service.spec
    if not spec.ip_families:
        address = parse_address(spec.cluster_ip)
        if address is None:
            return Reason.INVALID_CLUSTER_IP
        return address if is_of(address, family) else Reason.NO_CLUSTER_IP
    addresses = spec.cluster_ips or [spec.cluster_ip]
    if family.label not in spec.ip_families:
        return Reason.NO_CLUSTER_IP
    index = spec.ip_families.index(family.label)
    if index >= len(addresses):
        return Reason.NO_CLUSTER_IP
    address = parse_address(addresses[index])
    return address if address is not None and is_of(address, family) else Reason.INVALID_CLUSTER_IP


def _plan_family(
    service: Service, slices: list[EndpointSlice], address: bytes, context: Context, fragment: Fragment
) -> None:
    """Add what a Service asks for in one family."""
    family = Family.IPV4 if len(address) == 4 else Family.IPV6
    gathered = gather(slices, family, context.node_name)
    fragment.omissions.extend(gathered.omissions)
    local_only = service.spec.internal_traffic_policy == "Local"
    for port in service.spec.ports or ():
        where = f"service {fragment.name} port {port.name or port.port}"
        protocol = PROTOCOLS.get(port.protocol)
        if protocol is None:
            fragment.omissions.append(Omission(f"{where} protocol {port.protocol}", Reason.UNKNOWN_PROTOCOL))
            continue
        if port.port == 0:
            fragment.omissions.append(Omission(where, Reason.INVALID_PORT))
            continue
        key = VirtualServerKey(address, protocol, port.port)
        if key in fragment.virtual_servers:
            fragment.omissions.append(Omission(where, Reason.DUPLICATE_PORT))
            continue
        endpoints = gathered.endpoints.get(PortKey(port.name, protocol), [])
        choices = (
            choose_local(endpoints)
            if local_only
            else choose_cluster(endpoints, node_name=context.node_name, zone=context.zone)
        )
        fragment.choices[key] = choices
        fragment.virtual_servers[key] = (
            _virtual_server(key, service, choices, context, fragment, port),
            Reason.CLUSTER_IP,
        )
        _add_entries(key, endpoints, family, fragment)
        if (
            local_only
            and any(endpoint.ready or endpoint.fallback for endpoint in endpoints)
            and not any(choice.used for choice in choices)
        ):
            fragment.no_local.add(family)


def _virtual_server(
    key: VirtualServerKey,
    service: Service,
    choices: list[Choice],
    context: Context,
    fragment: Fragment,
    port: ServicePort,
) -> VirtualServer:
    # ``mh`` hashes the source port too, as kube-proxy asks of it.
    flags = SCHED2 if context.scheduler == "mh" else 0
    timeout = 0
    if service.spec.session_affinity == "ClientIP":
        flags |= PERSISTENT
        timeout = _affinity_timeout(service)
        if not 0 < timeout <= MAX_AFFINITY_TIMEOUT:
            fragment.omissions.append(
                Omission(
                    f"service {fragment.name} port {port.name or port.port} timeoutSeconds {timeout}",
                    Reason.INVALID_AFFINITY_TIMEOUT,
                )
            )
            timeout = DEFAULT_AFFINITY_TIMEOUT
    return VirtualServer(
        key=key,
        scheduler=context.scheduler,
        flags=flags,
        timeout=timeout,
        real_servers={choice.endpoint.key: ACTIVE for choice in choices if choice.used},
        lingering=_lingering(choices),
    )


def _lingering(choices: list[Choice]) -> frozenset[RealServerKey]:
    return frozenset(choice.endpoint.key for choice in choices if not choice.used and choice.endpoint.fallback)


def _affinity_timeout(service: Service) -> int:
    config = service.spec.session_affinity_config
    if config is None or config.client_ip is None or config.client_ip.timeout_seconds is None:
        return DEFAULT_AFFINITY_TIMEOUT
    return config.client_ip.timeout_seconds


def _add_entries(key: VirtualServerKey, endpoints: list[Endpoint], family: Family, fragment: Fragment) -> None:
    """Add the address and the set members of a cluster IP.

    For the hairpin these are all local endpoints, whatever their condition: a connection that exists must find its way.
    """
    fragment.addresses[key.address] = Reason.CLUSTER_IP
    cluster_ip = SetEntry(key.address, key.protocol, key.port)
    fragment.entries[sets.set_name(sets.CLUSTER_IP, family), cluster_ip] = Reason.CLUSTER_IP
    fragment.entries[sets.set_name(sets.IPVS_IPS, family), SetEntry(key.address)] = Reason.CLUSTER_IP
    loop_back = sets.set_name(sets.LOOP_BACK, family)
    for endpoint in endpoints:
        if endpoint.local:
            address, port = endpoint.key
            entry = SetEntry(address, key.protocol, port, address)
            fragment.entries[loop_back, entry] = Reason.LOCAL_ENDPOINT
