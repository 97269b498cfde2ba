"""From one Service and its EndpointSlices to the fragment of the kernel's tables that it asks for.

A fragment depends on nothing but its own Service, its slices and the facts of this node (``Context``): that is what
makes the cost of a change proportional to the change. Fragments of different Services meet only in ``desired``.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice

from ipvs_proxy.kube.objects import EndpointSlice, Service
from ipvs_proxy.kube.resources import is_for
from ipvs_proxy.kube.texts import quote
from ipvs_proxy.plan.addresses import is_of, is_special, ordinary_address, parse_address
from ipvs_proxy.plan.annotations import read_options
from ipvs_proxy.plan.budget import Budget
from ipvs_proxy.plan.endpoints import PROTOCOLS, Gathered, Omission, PortKey, gather
from ipvs_proxy.plan.family_spec import read_family_spec
from ipvs_proxy.plan.fragment import YOUNGEST, Context, Fragment, HealthCheck, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.reach import may_be_cluster_ip
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.service_ports import FamilyPlan, plan_port
from ipvs_proxy.plan.slice_cache import SliceCache
from ipvs_proxy.plan.tables import Family, Protocol, text_of
from ipvs_proxy.plan.weights import EQUAL

#: The most omissions of one Service that are reported one by one.
MAX_OMISSIONS = 50


def plan_service(
    service: Service,
    slices: Iterable[EndpointSlice],
    context: Context,
    marks: Marks,
    cache: SliceCache | None = None,
) -> Fragment:
    """Compute the fragment of a Service. Never fails: what cannot be planned is an omission with its reason.

    Nothing is remembered but in ``marks``, which holds the marks of this Service as long as it needs them, and in
    ``cache``, which a Service with many slices can have.
    """
    name = ServiceName(service.metadata.namespace, service.metadata.name)
    skipped = _skip_reason(service, context)
    if skipped is not None:
        marks.keep(name, ())
        return Fragment(name, omissions=[Omission(f"service {name}", skipped)])
    omissions: list[Omission] = []
    fragment = Fragment(name, _created(service), options=read_options(service, omissions), omissions=omissions)
    pieces, weights = list(slices), fragment.options.weights or EQUAL
    marked: set[PortKey] = set()
    budget = Budget(len(service.spec.ports or ()) * len(service.spec.ip_families or (None,)))
    for family in context.families:
        address = _served_address(service, family, context, fragment)
        if address is not None:
            gathered = (gather if cache is None else cache.gather)(pieces, family, context.node_name, weights)
            plan = FamilyPlan(family, context, fragment, marks=marks, marked=marked, cache=cache, budget=budget)
            _plan_family(service, gathered, address, plan)
    marks.keep(name, marked)
    if budget.left_out:
        where = f"service {name} ports with more virtual servers or endpoints: {budget.left_out:,}"
        omissions.append(Omission(where, Reason.TOO_MUCH))
    if omissions:
        omissions[:] = _as_told(omissions)
    return fragment


def _served_address(service: Service, family: Family, context: Context, fragment: Fragment) -> bytes | None:
    """Return the cluster IP of a family; ``None``, with an omission, if it cannot be served."""
    address = _cluster_address(service, family)
    if isinstance(address, bytes):
        if may_be_cluster_ip(address, service, context):
            return address
        where = f"service {fragment.name} clusterIP {text_of(address)}"
        fragment.omissions.append(Omission(where, Reason.API_SERVER_ADDRESS))
    elif address is not Reason.NO_CLUSTER_IP:
        # Most Services have one family only: nothing to report.
        fragment.omissions.append(Omission(f"service {fragment.name} {family.label}", address))
    return None


def _as_told(omissions: list[Omission]) -> list[Omission]:
    """Return omissions as they are reported: long texts shortened, and only the number of those beyond the first fifty.

    What is wrong in both families, such as a slice of an unknown address type, is reported once.
    """
    distinct = dict.fromkeys(omissions)
    told = [Omission(quote(where), reason) for where, reason in islice(distinct, MAX_OMISSIONS)]
    if len(distinct) > MAX_OMISSIONS:
        told.append(Omission(f"{len(distinct) - MAX_OMISSIONS:,} others", Reason.MORE))
    return told


def _created(service: Service) -> datetime:
    """Return the time of creation, always with a time zone: UTC where a manifest leaves it out."""
    created = service.metadata.creation_timestamp
    if created is None:
        return YOUNGEST
    return created if created.tzinfo is not None else created.replace(tzinfo=UTC)


def _skip_reason(service: Service, context: Context) -> Reason | None:
    if not is_for(context.service_proxy_name, service.metadata.labels or {}):
        return Reason.OTHER_PROXY
    if service.spec.type == "ExternalName":
        return Reason.EXTERNAL_NAME
    if service.spec.cluster_ip == "None":
        return Reason.HEADLESS
    if not service.spec.cluster_ip:
        return Reason.NO_CLUSTER_IP
    return None


def _cluster_address(service: Service, family: Family) -> bytes | Reason:
    """Return the cluster IP of a family: by position in ``ipFamilies``, or by its form where there is no such list."""
    spec, label = service.spec, family.label
    if not spec.ip_families:
        address = parse_address(spec.cluster_ip)
        if address is None:
            return Reason.INVALID_CLUSTER_IP
        return _usable(address) if is_of(address, family) else Reason.NO_CLUSTER_IP
    if label not in spec.ip_families:
        return Reason.NO_CLUSTER_IP
    addresses, index = spec.cluster_ips or (spec.cluster_ip,), spec.ip_families.index(label)
    if index >= len(addresses):
        return Reason.NO_CLUSTER_IP
    ordinary = ordinary_address(addresses[index], family)
    if ordinary is not None:
        return ordinary
    address = parse_address(addresses[index])
    return _usable(address) if address is not None and is_of(address, family) else Reason.INVALID_CLUSTER_IP


def _usable(address: bytes) -> bytes | Reason:
    return Reason.INVALID_CLUSTER_IP if is_special(address) else address


def _plan_family(service: Service, gathered: Gathered, address: bytes, plan: FamilyPlan) -> None:
    """Add what a Service asks for in one family."""
    fragment = plan.fragment
    fragment.omissions.extend(gathered.omissions)
    spec = read_family_spec(service, plan.family, plan.context, fragment.omissions)
    counted: set[PortKey] = set()
    ready: set[bytes] = set()
    for port in service.spec.ports or ():
        protocol = PROTOCOLS.get(port.protocol)
        if protocol is None:
            where = f"{fragment.where(port)} protocol {port.protocol}"
            fragment.omissions.append(Omission(where, Reason.UNKNOWN_PROTOCOL))
            continue
        if port.port == 0:
            fragment.omissions.append(Omission(fragment.where(port), Reason.INVALID_PORT))
            continue
        key = PortKey(port.name, protocol)
        endpoints = gathered.endpoints.get(key, {})
        if spec.health_check_port and key not in counted:
            counted.add(key)
            open_states = {state for state in set(endpoints.values()) if state.local and state.ready and state.weight}
            ready.update(found.address for found, state in endpoints.items() if state in open_states)
        plan_port(service, port, address, endpoints, spec=spec, plan=plan)
    if spec.health_check_port:
        _check_health(spec.health_check_port, len(ready), plan)


def _check_health(port: int, local_endpoints: int, plan: FamilyPlan) -> None:
    """Add the health check, unless the API server or a virtual server of the Service has its port on this node."""
    fragment, hosts = plan.fragment, plan.context.host_addresses.union(plan.context.node_port_addresses)
    where = f"service {fragment.name} healthCheckNodePort {port}"
    if any(port in ports and address in hosts for address, ports in plan.context.api_servers.items()):
        fragment.omissions.append(Omission(where, Reason.API_SERVER_ADDRESS))
        return
    if any(key[1:3] == (Protocol.TCP, port) and key.address in hosts for key in fragment.virtual_servers):
        fragment.omissions.append(Omission(where, Reason.DUPLICATE_HEALTH_CHECK_PORT))
        return
    fragment.health_checks[plan.family] = HealthCheck(port, local_endpoints)
    plan.admit_health_checks(port)
