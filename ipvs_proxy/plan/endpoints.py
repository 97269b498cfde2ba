"""The endpoints of a Service: its EndpointSlices merged into endpoints per (port name, protocol), free of duplicates.

All that a choice among them looks at, conditions, node and hints, is their ``State``; which of them get connections is
decided in ``choices``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from ipvs_proxy.kube.objects import Endpoint as SliceEndpoint
from ipvs_proxy.kube.objects import EndpointHints, EndpointSlice
from ipvs_proxy.plan.addresses import is_of, is_special, ordinary_address, parse_address
from ipvs_proxy.plan.budget import MAX_ENDPOINT_PORTS
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.tables import Family, Protocol, RealServerKey, Record
from ipvs_proxy.plan.weights import EQUAL, Weights, explain_weight, slice_weight

PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}
_ADDRESS_TYPES = {"IPv4": Family.IPV4, "IPv6": Family.IPV6}


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What a choice looks at, with the conditions' defaults applied. Equal states are one object (``state_of``).

    ``nodes`` and ``zones`` are the names in its hints. ``weight`` is before any scaling (see ``weights``), and
    ``weight_from`` says who gave it.
    """

    ready: bool
    serving: bool
    terminating: bool
    local: bool
    nodes: frozenset[str] = frozenset()
    zones: frozenset[str] = frozenset()
    weight: int = 1
    weight_from: str = ""

    @property
    def fallback(self) -> bool:
        """Whether it may be used when no endpoint is ready."""
        return self.serving and self.terminating

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """What decides between several states of one endpoint: the highest rank counts, then the last one."""
        return self.ready, not self.terminating, self.serving


#: The rank that no other state outranks.
_FIRST_RANK = (True, True, True)


#: Returns the one object for each state. The bound is far above what is alive at a time; beyond it, a state is merely
#: made and decided about once more.
state_of = lru_cache(maxsize=8_192)(State)

#: The endpoints of one port: each address and port with its state.
Endpoints = dict[RealServerKey, State]


class PortKey(NamedTuple):
    """What a port of a Service and those of its EndpointSlices are matched by."""

    name: str
    protocol: Protocol


class Omission(NamedTuple):
    """Something of a Service or an EndpointSlice that the plan leaves out although it is there: where, and why."""

    where: str
    reason: Reason


class Gathered(Record, frozen=True):
    """The endpoints of one Service, or of one slice of it, in one family; and what was left out."""

    endpoints: dict[PortKey, Endpoints]
    omissions: list[Omission]


def gather(slices: Collection[EndpointSlice], family: Family, node_name: str, weights: Weights = EQUAL) -> Gathered:
    """Merge the slices of one Service, whose rules about weights are ``weights``."""
    omissions: list[Omission] = []
    read = [read_slice(piece, family, node_name, weights) for piece in of_family(slices, family, omissions)]
    for found in read:
        omissions += found.omissions
    return Gathered(merge(read), omissions)


def of_family(slices: Collection[EndpointSlice], family: Family, omissions: list[Omission]) -> list[EndpointSlice]:
    """Return the slices of a family in the order of their names.

    Omissions are slices of an unknown address type, and those beyond what one Service may have, counted by endpoints
    and ports.
    """
    found: list[EndpointSlice] = []
    room = MAX_ENDPOINT_PORTS
    for piece in sorted(slices, key=_name_of) if len(slices) > 1 else slices:
        if piece.address_type not in _ADDRESS_TYPES:
            where = f"{_where(piece)} addressType {piece.address_type}"
            omissions.append(Omission(where, Reason.UNSUPPORTED_ADDRESS_TYPE))
        elif _ADDRESS_TYPES[piece.address_type] is family:
            wanted = len(piece.endpoints or ()) * len(piece.ports or ())
            if wanted > room:
                omissions.append(Omission(_where(piece), Reason.TOO_MUCH))
                continue
            room -= wanted
            found.append(piece)
    return found


def merge(slices: Sequence[Gathered]) -> dict[PortKey, Endpoints]:
    """Return the endpoints of all slices together; with more than one slice, in new dictionaries.

    Of two entries for one address and port the one that is ready wins, then the one that is not terminating: the
    address of a pod that is going away may already be another pod's. Otherwise the later slice, in order of slice
    names, wins, so that the result does not depend on the order of events.
    """
    if len(slices) == 1:
        return slices[0].endpoints
    merged: dict[PortKey, Endpoints] = {}
    for gathered in slices:
        for port, found in gathered.endpoints.items():
            _merge(merged.setdefault(port, {}), found)
    return merged


def _merge(earlier: Endpoints, later: Endpoints) -> None:
    """Put later endpoints into earlier ones."""
    staying: Endpoints = {}
    # Mostly none is outranked. Their few states show that in a fifth of the time of a look at each endpoint.
    if any(state.rank != _FIRST_RANK for state in set(later.values())):
        twins = [(key, earlier[key]) for key in later.keys() & earlier.keys()]
        staying = {key: state for key, state in twins if state.rank > later[key].rank}
    earlier.update(later)
    earlier.update(staying)


def read_slice(piece: EndpointSlice, family: Family, node_name: str, weights: Weights = EQUAL) -> Gathered:
    """Read one EndpointSlice.

    A nil ``ready`` or ``serving`` is true and a nil ``terminating`` false (discovery.k8s.io/v1 EndpointConditions, as
    kube-proxy reads them). Only the first address of an endpoint counts.
    """
    omissions: list[Omission] = []
    reader = _Reader(node_name, weights, _weight_of(piece, omissions))
    found = _read_endpoints(piece, family, reader, omissions)
    endpoints: dict[PortKey, Endpoints] = {}
    for index, port in enumerate(piece.ports or ()):
        if port.name is None:
            omissions.append(Omission(f"{_where(piece)} port {index}", Reason.NO_PORT_NAME))
        elif not port.port:
            omissions.append(Omission(f"{_where(piece)} port {port.name!r}", Reason.NO_PORT_NUMBER))
        elif port.protocol not in PROTOCOLS:
            omissions.append(Omission(f"{_where(piece)} port {port.name!r} {port.protocol}", Reason.UNKNOWN_PROTOCOL))
        elif found:
            key, numbered = PortKey(port.name, PROTOCOLS[port.protocol]), _with_port(found, port.port)
            if key in endpoints:
                _merge(endpoints[key], numbered)
            else:
                endpoints[key] = numbered
    return Gathered(endpoints, omissions)


def _read_endpoints(
    piece: EndpointSlice, family: Family, reader: _Reader, omissions: list[Omission]
) -> list[tuple[bytes, State]]:
    """Read the address and the state of each endpoint of a slice that has a usable address."""
    found: list[tuple[bytes, State]] = []
    last: SliceEndpoint | None = None
    by_place = bool(reader.weights.nodes or reader.weights.zones)
    for index, endpoint in enumerate(piece.endpoints or ()):
        addresses = endpoint.addresses
        address = ordinary_address(addresses[0], family) if addresses else None
        if address is None:
            looked_at = _address_of(endpoint, family)
            if isinstance(looked_at, Reason):
                omissions.append(Omission(f"{_where(piece)} endpoint {index}", looked_at))
                continue
            address = looked_at
        # Neighbours mostly share the very objects that a state is made of (see ``kube.decode``).
        if (
            last is None
            or endpoint.conditions is not last.conditions
            or endpoint.hints is not last.hints
            or (endpoint.node_name == reader.node_name) is not (last.node_name == reader.node_name)
            or (by_place and (endpoint.node_name != last.node_name or endpoint.zone != last.zone))
        ):
            state = reader.state_of(endpoint)
            last = endpoint
        found.append((address, state))
    return found


def _with_port(found: list[tuple[bytes, State]], port: int) -> Endpoints:
    # As ``RealServerKey(address, port)``, in half the time: a table has 100,000 of them.
    make = tuple.__new__
    endpoints = {make(RealServerKey, (address, port)): state for address, state in found}
    if len(endpoints) < len(found):
        # An address is listed twice.
        endpoints.clear()
        for address, state in found:
            key = RealServerKey(address, port)
            if key not in endpoints or state.rank >= endpoints[key].rank:
                endpoints[key] = state
    return endpoints


_NO_HINTS: Final = (frozenset[str](), frozenset[str]())


class _Reader(Record, frozen=True):
    """What the state of a slice's endpoints depends on: this node, the Service's rules, and the slice's weight."""

    node_name: str
    weights: Weights
    of_slice: int | None

    def state_of(self, endpoint: SliceEndpoint) -> State:
        """Return the state of an endpoint."""
        conditions, hints, node = endpoint.conditions, endpoint.hints, endpoint.node_name
        local = bool(self.node_name) and node == self.node_name
        nodes, zones = _NO_HINTS if hints is None else _names_in(hints)
        weight, weight_from = 1, ""
        if self.of_slice is not None or self.weights is not EQUAL:
            rule, by_rule = self.weights.rule_for(node, endpoint.zone, local=local)
            weight = by_rule if self.of_slice is None else by_rule * self.of_slice
            weight_from = explain_weight(rule, by_rule, self.of_slice)
        return state_of(
            conditions.ready is not False,
            conditions.serving is not False,
            bool(conditions.terminating),
            local,
            nodes,
            zones,
            weight,
            weight_from,
        )


def _name_of(piece: EndpointSlice) -> str:
    return piece.metadata.name


def _where(piece: EndpointSlice) -> str:
    return f"endpointslice {piece.metadata.namespace}/{piece.metadata.name}"


def _weight_of(piece: EndpointSlice, omissions: list[Omission]) -> int | None:
    if piece.metadata.annotations is None:
        return None
    try:
        return slice_weight(piece)
    except ValueError as error:
        omissions.append(Omission(f"{_where(piece)} {error}", Reason.INVALID_ENDPOINT_WEIGHT))
        return None


def _names_in(hints: EndpointHints) -> tuple[frozenset[str], frozenset[str]]:
    return (
        frozenset([hint.name for hint in hints.for_nodes or ()]),
        frozenset([hint.name for hint in hints.for_zones or ()]),
    )


def _address_of(endpoint: SliceEndpoint, family: Family) -> bytes | Reason:
    if not endpoint.addresses:
        return Reason.NO_ADDRESS
    address = parse_address(endpoint.addresses[0])
    if address is None or not is_of(address, family):
        return Reason.INVALID_ADDRESS
    return Reason.SPECIAL_ADDRESS if is_special(address) else address
