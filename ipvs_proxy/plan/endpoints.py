"""Which endpoints of a service port get connections, and why each one does or does not.

Two steps. ``gather`` merges the EndpointSlices of a Service into endpoints per (port name, protocol), free of
duplicates. ``choose`` applies the rules that all kube-proxy modes share: readiness, the fallback to serving-terminating
endpoints (KEP-1669), node and zone hints (KEP-2433, KEP-4444), and ``internalTrafficPolicy``. Every endpoint comes out
with a reason, in or out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ipvs_proxy.kube.objects import Endpoint as SliceEndpoint
from ipvs_proxy.kube.objects import EndpointHints, EndpointSlice
from ipvs_proxy.plan.addresses import is_of, is_special, parse_address
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.tables import Family, Protocol, RealServerKey

PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}
_ADDRESS_TYPES = {"IPv4": Family.IPV4, "IPv6": Family.IPV6}


class Endpoint(NamedTuple):
    """One address and port behind a service port, with the conditions' defaults applied."""

    key: RealServerKey
    ready: bool
    serving: bool
    terminating: bool
    local: bool
    hints: EndpointHints | None

    @property
    def fallback(self) -> bool:
        """Whether it may be used when no endpoint is ready."""
        return self.serving and self.terminating


class PortKey(NamedTuple):
    """What joins a Service's port to ports of EndpointSlices."""

    name: str
    protocol: Protocol


class Omission(NamedTuple):
    """Something of a Service or an EndpointSlice that the plan leaves out although it is there: where, and why."""

    where: str
    reason: Reason


class Gathered(NamedTuple):
    """The endpoints of one Service in one family, sorted by address and port, and what was left out."""

    endpoints: dict[PortKey, list[Endpoint]]
    omissions: list[Omission]


class Choice(NamedTuple):
    """The decision about one endpoint."""

    endpoint: Endpoint
    used: bool
    reason: Reason


def gather(slices: Iterable[EndpointSlice], family: Family, node_name: str) -> Gathered:
    """Merge the slices of one Service.

    A nil ``ready`` or ``serving`` is true and a nil ``terminating`` false (discovery.k8s.io/v1 EndpointConditions, as
    kube-proxy reads them). Only the first address of an endpoint counts. Of two entries for one address and port the
    one that is not terminating wins: the address of a pod that is going away may already be another pod's. Otherwise
    the later slice, in order of slice names, wins, so that the result does not depend on the order of events.
    """
    merged: dict[PortKey, dict[RealServerKey, Endpoint]] = {}
    omissions: list[Omission] = []
    for piece in sorted(slices, key=lambda piece: piece.metadata.name):
        where = f"endpointslice {piece.metadata.namespace}/{piece.metadata.name}"
        if piece.address_type not in _ADDRESS_TYPES:
            omissions.append(Omission(f"{where} addressType {piece.address_type}", Reason.UNSUPPORTED_ADDRESS_TYPE))
        elif _ADDRESS_TYPES[piece.address_type] is family:
            _merge(piece, family, node_name, where, merged, omissions)
    endpoints = {
        port: sorted(found.values(), key=lambda endpoint: endpoint.key) for port, found in merged.items() if found
    }
    return Gathered(endpoints, omissions)


def _merge(
    piece: EndpointSlice,
    family: Family,
    node_name: str,
    where: str,
    merged: dict[PortKey, dict[RealServerKey, Endpoint]],
    omissions: list[Omission],
) -> None:
    addresses = [_address_of(endpoint, family) for endpoint in piece.endpoints or ()]
    for index, address in enumerate(addresses):
        if isinstance(address, Reason):
            omissions.append(Omission(f"{where} endpoint {index}", address))
    for index, port in enumerate(piece.ports or ()):
        if port.name is None:
            omissions.append(Omission(f"{where} port {index}", Reason.NO_PORT_NAME))
            continue
        if not port.port:
            omissions.append(Omission(f"{where} port {port.name!r}", Reason.NO_PORT_NUMBER))
            continue
        protocol = PROTOCOLS.get(port.protocol)
        if protocol is None:
            omissions.append(Omission(f"{where} port {port.name!r} {port.protocol}", Reason.UNKNOWN_PROTOCOL))
            continue
        found = merged.setdefault(PortKey(port.name, protocol), {})
        for address, endpoint in zip(addresses, piece.endpoints or (), strict=True):
            if isinstance(address, Reason):
                continue
            key = RealServerKey(address, port.port)
            terminating = bool(endpoint.conditions.terminating)
            if key in found and terminating:
                continue
            found[key] = Endpoint(
                key=key,
                ready=endpoint.conditions.ready is not False,
                serving=endpoint.conditions.serving is not False,
                terminating=terminating,
                local=bool(node_name) and endpoint.node_name == node_name,
                hints=endpoint.hints,
            )


def _address_of(endpoint: SliceEndpoint, family: Family) -> bytes | Reason:
    if not endpoint.addresses:
        return Reason.NO_ADDRESS
    address = parse_address(endpoint.addresses[0])
    if address is None or not is_of(address, family):
        return Reason.INVALID_ADDRESS
    return Reason.SPECIAL_ADDRESS if is_special(address) else address


def choose_cluster(endpoints: Sequence[Endpoint], *, node_name: str, zone: str) -> list[Choice]:
    """Choose among all endpoints of a service port: the rule for traffic policy ``Cluster``.

    Hints are judged on ready endpoints only and apply only if every ready endpoint has one. With no ready endpoint
    (that the hints allow), all endpoints that are serving while terminating are used, whatever their hints.
    """
    mode = _topology(endpoints, node_name=node_name, zone=zone)
    choices = [Choice(endpoint, *_judge(endpoint, mode, node_name, zone)) for endpoint in endpoints]
    if any(choice.used for choice in choices):
        return choices
    return _fall_back(choices)


def choose_local(endpoints: Sequence[Endpoint]) -> list[Choice]:
    """Choose among this node's endpoints only: the rule for traffic policy ``Local``. Hints never apply."""
    choices = [Choice(endpoint, endpoint.local and endpoint.ready, _local_reason(endpoint)) for endpoint in endpoints]
    if any(choice.used for choice in choices):
        return choices
    return _fall_back(choices)


def _fall_back(choices: list[Choice]) -> list[Choice]:
    return [
        Choice(choice.endpoint, True, Reason.TERMINATING_FALLBACK)
        if choice.endpoint.fallback and choice.reason is not Reason.NOT_LOCAL
        else choice
        for choice in choices
    ]


def _local_reason(endpoint: Endpoint) -> Reason:
    if not endpoint.local:
        return Reason.NOT_LOCAL
    return Reason.READY if endpoint.ready else _unready_reason(endpoint)


def _unready_reason(endpoint: Endpoint) -> Reason:
    return Reason.TERMINATING if endpoint.terminating else Reason.NOT_READY


def _judge(endpoint: Endpoint, mode: Reason | None, node_name: str, zone: str) -> tuple[bool, Reason]:
    if not endpoint.ready:
        return False, _unready_reason(endpoint)
    if mode is Reason.OTHER_NODE and not _hinted_to_node(endpoint, node_name):
        return False, Reason.OTHER_NODE
    if mode is Reason.OTHER_ZONE and not _hinted_to_zone(endpoint, zone):
        return False, Reason.OTHER_ZONE
    return True, Reason.READY


def _topology(endpoints: Sequence[Endpoint], *, node_name: str, zone: str) -> Reason | None:
    """Give the reason for which endpoints will be left out by hints, ``None`` if hints do not apply."""
    ready = [endpoint.hints for endpoint in endpoints if endpoint.ready]
    if not ready:
        return None
    if all(hints is not None and hints.for_nodes for hints in ready) and any(
        endpoint.ready and _hinted_to_node(endpoint, node_name) for endpoint in endpoints
    ):
        return Reason.OTHER_NODE
    if all(hints is not None and hints.for_zones for hints in ready) and any(
        endpoint.ready and _hinted_to_zone(endpoint, zone) for endpoint in endpoints
    ):
        return Reason.OTHER_ZONE
    return None


def _hinted_to_node(endpoint: Endpoint, node_name: str) -> bool:
    nodes = endpoint.hints.for_nodes if endpoint.hints is not None else None
    return bool(node_name) and any(hint.name == node_name for hint in nodes or ())


def _hinted_to_zone(endpoint: Endpoint, zone: str) -> bool:
    zones = endpoint.hints.for_zones if endpoint.hints is not None else None
    return bool(zone) and any(hint.name == zone for hint in zones or ())
