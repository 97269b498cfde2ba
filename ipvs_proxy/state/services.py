"""Builds documents from tables: what one Service asks for, next to what the kernel has.

Pure: the caller passes the tables and what it has just read from the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from ipvs_proxy.kernel.filter.backend import NameOfRole
from ipvs_proxy.kernel.ipvs.records import Activity, Balanced, Counters, Observation
from ipvs_proxy.kube.objects import Service
from ipvs_proxy.kube.texts import quote
from ipvs_proxy.plan import virtual_endpoints
from ipvs_proxy.plan.annotations import option_texts
from ipvs_proxy.plan.choices import Choice
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.fragment import Fragment, ServiceName
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.node_addresses import SERVICE_LINK
from ipvs_proxy.plan.reasons import SERVED_OTHERWISE
from ipvs_proxy.plan.tables import (
    Protocol,
    RealServerKey,
    SetEntry,
    VirtualServer,
    VirtualServerKey,
    text_of,
)
from ipvs_proxy.state.documents import (
    DifferenceKind,
    DrainState,
    EndpointState,
    MemberState,
    OmissionState,
    ServiceState,
    ServiceSummary,
    Traffic,
    VirtualServerState,
)
from ipvs_proxy.state.words import flags_of, real_server_words, virtual_server_words

#: At most this many differences are named in a list of Services. The state of a single Service has all of them.
_NAMED = 5


def traffic_of(counters: Counters) -> Traffic:
    """Return counters as a document."""
    return Traffic(*counters)


def sum_of(balanced: Iterable[Balanced]) -> tuple[Traffic, Traffic]:
    """Return the combined traffic of several virtual servers: totals, and rates per second."""
    found = list(balanced)
    total = Traffic(*(sum(numbers) for numbers in zip(*(one.total for one in found), strict=True)))
    per_second = Traffic(*(sum(numbers) for numbers in zip(*(one.per_second for one in found), strict=True)))
    return total, per_second


def service_state(
    service: Service,
    fragment: Fragment,
    *,
    desired: DesiredTables,
    actual: KernelTables,
    observed: Mapping[VirtualServerKey, Observation | None],
    nodes: Mapping[str, str],
    drains: list[DrainState],
    warming: Mapping[RealServerKey, float],
    name_of_role: NameOfRole,
) -> ServiceState:
    """Return everything about one Service.

    Args:
        service: the Service.
        fragment: its plan, freshly computed.
        desired: the desired tables of all Services.
        actual: the kernel's tables as the agent last knew them.
        observed: what the kernel has for each of its virtual servers.
        nodes: the node of each endpoint address, by the address as text.
        drains: drains of its virtual servers that are in progress.
        warming: its endpoints that warm up, and for how many seconds they will.
        name_of_role: returns the kernel's name for the set of a role.

    """
    servers = [
        _virtual_server_state(
            fragment, key, desired=desired, observation=observed.get(key), nodes=nodes, warming=warming
        )
        for key in fragment.virtual_servers
    ]
    members = _members(fragment, desired, actual, name_of_role)
    own = (server for server, _ in fragment.virtual_servers.values())
    virtual = [key for _, key in virtual_endpoints.at_virtual_ips(own, desired.addresses)]
    return ServiceState(
        namespace=service.metadata.namespace,
        name=service.metadata.name,
        type=quote(service.spec.type),
        in_sync=not any(server.differences for server in servers) and all(member.in_kernel for member in members),
        virtual_servers=servers,
        members=members,
        omissions=omissions_of([*fragment.omissions, *virtual_endpoints.omissions(fragment.name, virtual)]),
        drains=drains,
        annotations={name: quote(text) for name, text in option_texts(fragment.options).items()},
    )


def omissions_of(omissions: Iterable[Omission]) -> list[OmissionState]:
    """Return omissions as documents."""
    return [OmissionState(where, reason.value, SERVED_OTHERWISE.get(reason, "")) for where, reason in omissions]


def summarize(
    name: ServiceName,
    service: Service,
    *,
    desired: DesiredTables,
    actual: KernelTables,
    omissions: Iterable[Omission],
    balanced: Mapping[VirtualServerKey, Balanced],
    warming: int = 0,
) -> ServiceSummary:
    """Return the most important facts about one Service. ``actual`` is what the agent last knew of the kernel.

    ``warming`` is how many of its endpoints warm up.
    """
    keys = desired.virtual_servers_of(name)
    found = _compared(name, keys, desired, actual)
    total, per_second = sum_of(balanced[key] for key in keys if key in balanced and desired.owners.get(key) == name)
    spec = service.spec
    return ServiceSummary(
        namespace=name.namespace,
        name=name.name,
        type=quote(spec.type),
        addresses=list(dict.fromkeys(text_of(key.address) for key in keys if not key.mark))
        or [quote(address) for address in spec.cluster_ips or [spec.cluster_ip] if address],
        ports=list(dict.fromkeys(f"{port.port}/{quote(port.protocol)}" for port in spec.ports or ())),
        virtual_servers=len(keys),
        schedulers=list(found.schedulers),
        endpoints=len(found.wanted - found.paused),
        warming=warming,
        paused=len(found.paused),
        draining=len(found.draining - found.wanted),
        in_sync=not found.differences,
        differences=[text for _, text in found.differences[:_NAMED]],
        difference_kinds=list(dict.fromkeys(kind for kind, _ in found.differences)),
        omissions=omissions_of(omissions),
        total=total,
        per_second=per_second,
    )


class _Compared(NamedTuple):
    """What a Service's own virtual servers have together, and how the kernel differs from it."""

    schedulers: dict[str, None]
    wanted: set[RealServerKey]
    paused: set[RealServerKey]
    draining: set[RealServerKey]
    differences: list[tuple[DifferenceKind, str]]


def _compared(
    name: ServiceName, keys: Iterable[VirtualServerKey], desired: DesiredTables, actual: KernelTables
) -> _Compared:
    compared = _Compared({}, set(), set(), set(), [])
    for key in keys:
        server, found = desired.virtual_servers.get(key), actual.virtual_servers.get(key)
        owner = desired.owners.get(key)
        if server is None or owner != name:
            compared.differences.append((DifferenceKind.CONFLICT, f"{key} belongs to {owner}"))
            continue
        compared.schedulers[server.scheduler] = None
        compared.wanted.update(server.real_servers)
        compared.paused.update(_without_weight(server))
        if found is not None:
            compared.draining.update(_without_weight(found))
        if found is not server:
            compared.differences.extend((DifferenceKind.KERNEL, text) for text in differences_of(server, found))
    return compared


def _without_weight(server: VirtualServer) -> list[RealServerKey]:
    # A copy: those of the kernel change meanwhile.
    return [key for key, settings in server.real_servers.copy().items() if not settings.weight]


def differences_of(desired: VirtualServer, found: VirtualServer | None) -> list[str]:
    """Return how the kernel differs from a desired virtual server. A draining real server is not a difference."""
    if found is None:
        return [f"{desired.key} is missing"]
    differences = []
    if desired.settings != found.settings:
        differences.append(
            f"{desired.key} has {virtual_server_words(found)} instead of {virtual_server_words(desired)}"
        )
    there = found.real_servers.copy()
    differences += [f"{desired.key} lacks real server {key}" for key in desired.real_servers.keys() - there.keys()]
    for key, settings in there.items():
        wanted = desired.real_servers.get(key)
        if wanted is None and settings.weight:
            differences.append(f"{desired.key} has real server {key}, which is not wanted")
        elif wanted is not None and wanted != settings:
            differences.append(f"{desired.key} has real server {key} with {real_server_words(settings)}")
    return sorted(differences)


def _virtual_server_state(
    fragment: Fragment,
    key: VirtualServerKey,
    *,
    desired: DesiredTables,
    observation: Observation | None,
    nodes: Mapping[str, str],
    warming: Mapping[RealServerKey, float],
) -> VirtualServerState:
    server, reason = fragment.virtual_servers[key]
    options = fragment.options
    owner = desired.owners.get(key)
    foreign_owner = "" if owner is None or owner == fragment.name else str(owner)
    if foreign_owner:
        observation = None  # the kernel's state and counters are the other Service's
    found = None
    if observation is not None:
        there = {address: activity.settings for address, activity in observation.real_servers.items()}
        found = VirtualServer(key, *observation.virtual_server.settings, there)
    return VirtualServerState(
        name=str(key),
        address="" if key.mark else text_of(key.address),
        port=key.port,
        protocol=Protocol(key.protocol).name,
        reason=reason.value,
        in_kernel=found is not None,
        scheduler=server.scheduler,
        scheduler_from=fragment.schedulings[key].source.value,
        flags=flags_of(server),
        max_connections=options.max_connections or 0,
        min_connections=options.min_connections or 0,
        affinity_seconds=server.timeout,
        mark=key.mark,
        owner=foreign_owner,
        internal="" if server.internal is None else str(server.internal),
        differences=[f"it belongs to the older Service {owner}"] if foreign_owner else differences_of(server, found),
        endpoints=_endpoints(fragment, key, {} if observation is None else observation.real_servers, nodes, warming),
        total=Traffic() if observation is None else traffic_of(observation.traffic.total),
        per_second=Traffic() if observation is None else traffic_of(observation.traffic.per_second),
    )


def _endpoints(
    fragment: Fragment,
    key: VirtualServerKey,
    found: Mapping[RealServerKey, Activity],
    nodes: Mapping[str, str],
    warming: Mapping[RealServerKey, float],
) -> list[EndpointState]:
    choices = {choice.key: choice for choice in fragment.choices.get(key, ())}
    wanted = fragment.virtual_servers[key][0].real_servers
    return [
        msgspec.structs.replace(
            _endpoint_state(address, choices.get(address), found.get(address)),
            node=nodes.get(text_of(address.address), ""),
            wanted_weight=wanted[address].weight if address in wanted else None,
            warming_seconds=warming.get(address) if address in wanted else None,
        )
        for address in sorted(choices.keys() | found.keys())
    ]


def _endpoint_state(key: RealServerKey, choice: Choice | None, activity: Activity | None) -> EndpointState:
    state = None if choice is None else choice.state
    counted = (0, 0, 0) if activity is None else activity.connections
    return EndpointState(
        address=str(key),
        wanted=None if choice is None else choice.used,
        reason="" if choice is None else choice.reason.value,
        ready=state is not None and state.ready,
        serving=state is not None and state.serving,
        terminating=state is not None and state.terminating,
        local=state is not None and state.local,
        weight=None if activity is None else activity.settings.weight,
        weight_from="" if state is None else quote(state.weight_from),
        active_connections=counted[0],
        inactive_connections=counted[1],
        persistent_connections=counted[2],
        total=Traffic() if activity is None else traffic_of(activity.traffic.total),
        per_second=Traffic() if activity is None else traffic_of(activity.traffic.per_second),
    )


def _members(
    fragment: Fragment, desired: DesiredTables, actual: KernelTables, name_of_role: NameOfRole
) -> list[MemberState]:
    """Return the addresses and set members that belong to the virtual servers of a Service.

    Set members of a virtual server that another Service owns are left out.
    """
    addresses = [
        MemberState(SERVICE_LINK, text_of(address), reason.value, address in actual.addresses)
        for address, reason in fragment.addresses.items()
    ]
    return addresses + [
        MemberState(name_of_role(role), member_text(entry), reason.value, entry in actual.entries.get(role, ()))
        for (role, entry), reason in fragment.entries.items()
        if (role, entry) in desired.entries
    ]


def member_text(entry: SetEntry) -> str:
    """Return a set member as ``ipset list`` prints it, followed by its mark if it has one."""
    parts = [text_of(entry.address)] if entry.address else []
    if entry.protocol:
        parts.append(f"{Protocol(entry.protocol).name.lower()}:{entry.port}")
    elif entry.port:
        parts.append(str(entry.port))
    if entry.source:
        length = "" if entry.prefix_length is None else f"/{entry.prefix_length}"
        parts.append(f"{text_of(entry.source)}{length}")
    return ",".join(parts) + (f" mark {entry.mark:#x}" if entry.mark else "")
