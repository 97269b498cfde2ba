"""Which endpoints of a service port get connections, and why each one does or does not.

Two steps. ``gather`` merges the EndpointSlices of a Service into endpoints per (port name, protocol), free of
duplicates. ``choose_cluster`` and ``choose_local`` apply the rules that all kube-proxy modes share: readiness, the
fallback to serving-terminating endpoints (KEP-1669), node and zone hints (KEP-2433, KEP-4444), and the traffic
policies. Every endpoint comes out with a reason, in or out.

A choice looks at nothing but the endpoints' conditions, node and hints: their ``State``. Most endpoints of a Service
share a handful of states, so a choice decides about states, and 50,000 endpoints cost a look-up each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from ipvs_proxy.kube.objects import Endpoint as SliceEndpoint
from ipvs_proxy.kube.objects import EndpointHints, EndpointSlice
from ipvs_proxy.plan.addresses import is_of, is_special, ordinary_address, parse_address
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.tables import ACTIVE, Family, Protocol, RealServer, RealServerKey

PROTOCOLS = {"TCP": Protocol.TCP, "UDP": Protocol.UDP, "SCTP": Protocol.SCTP}
_ADDRESS_TYPES = {"IPv4": Family.IPV4, "IPv6": Family.IPV6}


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What a choice looks at, with the conditions' defaults applied. Equal states are one object (``state_of``).

    ``nodes`` and ``zones`` are the names in its hints.
    """

    ready: bool
    serving: bool
    terminating: bool
    local: bool
    nodes: frozenset[str] = frozenset()
    zones: frozenset[str] = frozenset()

    @property
    def fallback(self) -> bool:
        """Whether it may be used when no endpoint is ready."""
        return self.serving and self.terminating


#: The one object for each state. The bound is far above what is alive at a time; a state that is made anew is only
#: decided about once more.
state_of = lru_cache(maxsize=65_536)(State)

#: The endpoints of one port: each address and port with its state.
Endpoints = dict[RealServerKey, State]


class PortKey(NamedTuple):
    """What joins a Service's port to ports of EndpointSlices."""

    name: str
    protocol: Protocol


class Omission(NamedTuple):
    """Something of a Service or an EndpointSlice that the plan leaves out although it is there: where, and why."""

    where: str
    reason: Reason


class Gathered(NamedTuple):
    """The endpoints of one Service, or of one slice of it, in one family; and what was left out."""

    endpoints: dict[PortKey, Endpoints]
    omissions: list[Omission]


class Readings:
    """What the slices of a large Service hold, so that a change costs the reading of the slice that changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[Family, str], tuple[EndpointSlice, Gathered]] = {}

    def read(self, piece: EndpointSlice, family: Family, node_name: str) -> Gathered:
        """Read a slice, or give what was read of this very object before."""
        key = (family, piece.metadata.name)
        known = self._known.get(key)
        if known is None or known[0] is not piece:
            known = self._known[key] = (piece, read_slice(piece, family, node_name))
        return known[1]

    def keep(self, names: set[str]) -> None:
        """Forget all slices but these."""
        for key in [key for key in self._known if key[1] not in names]:
            del self._known[key]


class Verdict(NamedTuple):
    """The decision about a state."""

    used: bool
    reason: Reason


class Choice(NamedTuple):
    """The decision about one endpoint."""

    key: RealServerKey
    state: State
    used: bool
    reason: Reason


class Choices:
    """The decisions about the endpoints of one port, by their states; iterating gives them one by one, by address."""

    def __init__(self, endpoints: Endpoints, verdicts: dict[State, Verdict]) -> None:
        self._endpoints = endpoints
        self._verdicts = verdicts

    def __iter__(self) -> Iterator[Choice]:
        for key, state in sorted(self._endpoints.items(), key=lambda item: item[0]):
            yield Choice(key, state, *self._verdicts[state])

    @property
    def any_used(self) -> bool:
        """Whether any endpoint gets connections."""
        return any(verdict.used for verdict in self._verdicts.values())

    @cached_property
    def real_servers(self) -> dict[RealServerKey, RealServer]:
        """The endpoints that get connections; the same object for every virtual server that has them."""
        chosen = {state for state, verdict in self._verdicts.items() if verdict.used}
        if len(chosen) == len(self._verdicts):
            return dict.fromkeys(self._endpoints, ACTIVE)
        return dict.fromkeys(self._of(chosen), ACTIVE)

    @cached_property
    def lingering(self) -> frozenset[RealServerKey]:
        """The endpoints that get no new connections and go on with those that they have."""
        return frozenset(
            self._of({state for state, verdict in self._verdicts.items() if not verdict.used and state.fallback})
        )

    def local(self) -> list[RealServerKey]:
        """Give the endpoints on this node, used or not."""
        return self._of({state for state in self._verdicts if state.local})

    def _of(self, states: set[State]) -> list[RealServerKey]:
        return [key for key, state in self._endpoints.items() if state in states] if states else []


def gather(
    slices: Iterable[EndpointSlice], family: Family, node_name: str, readings: Readings | None = None
) -> Gathered:
    """Merge the slices of one Service.

    Of two entries for one address and port the one that is not terminating wins: the address of a pod that is going
    away may already be another pod's. Otherwise the later slice, in order of slice names, wins, so that the result does
    not depend on the order of events. ``readings`` remembers what was read.
    """
    merged: dict[PortKey, Endpoints] = {}
    omissions: list[Omission] = []
    for piece in sorted(slices, key=lambda piece: piece.metadata.name):
        if piece.address_type not in _ADDRESS_TYPES:
            where = f"endpointslice {piece.metadata.namespace}/{piece.metadata.name} addressType {piece.address_type}"
            omissions.append(Omission(where, Reason.UNSUPPORTED_ADDRESS_TYPE))
            continue
        if _ADDRESS_TYPES[piece.address_type] is not family:
            continue
        read = (read_slice if readings is None else readings.read)(piece, family, node_name)
        omissions += read.omissions
        for port, found in read.endpoints.items():
            if port in merged:
                _merge(merged[port], found)
            else:
                # What is remembered must not change, what was read just now may.
                merged[port] = found if readings is None else found.copy()
    return Gathered(merged, omissions)


def _merge(earlier: Endpoints, later: Endpoints) -> None:
    """Put later endpoints into earlier ones."""
    staying: Endpoints = {}
    # Mostly none terminates, which their few states tell in a fifth of the time that a look at each endpoint takes.
    if any(state.terminating for state in set(later.values())):
        staying = {key: earlier[key] for key, state in later.items() if state.terminating and key in earlier}
    earlier.update(later)
    earlier.update(staying)


def read_slice(piece: EndpointSlice, family: Family, node_name: str) -> Gathered:
    """Read one EndpointSlice.

    A nil ``ready`` or ``serving`` is true and a nil ``terminating`` false (discovery.k8s.io/v1 EndpointConditions, as
    kube-proxy reads them). Only the first address of an endpoint counts.
    """
    where = f"endpointslice {piece.metadata.namespace}/{piece.metadata.name}"
    omissions: list[Omission] = []
    found = _read_endpoints(piece, family, node_name, where, omissions)
    endpoints: dict[PortKey, Endpoints] = {}
    for index, port in enumerate(piece.ports or ()):
        if port.name is None:
            omissions.append(Omission(f"{where} port {index}", Reason.NO_PORT_NAME))
        elif not port.port:
            omissions.append(Omission(f"{where} port {port.name!r}", Reason.NO_PORT_NUMBER))
        elif port.protocol not in PROTOCOLS:
            omissions.append(Omission(f"{where} port {port.name!r} {port.protocol}", Reason.UNKNOWN_PROTOCOL))
        elif found:
            key, numbered = PortKey(port.name, PROTOCOLS[port.protocol]), _with_port(found, port.port)
            if key in endpoints:
                _merge(endpoints[key], numbered)
            else:
                endpoints[key] = numbered
    return Gathered(endpoints, omissions)


def _read_endpoints(
    piece: EndpointSlice, family: Family, node_name: str, where: str, omissions: list[Omission]
) -> list[tuple[bytes, State]]:
    """Read the address and the state of each endpoint of a slice that has a usable address."""
    found: list[tuple[bytes, State]] = []
    last: SliceEndpoint | None = None
    for index, endpoint in enumerate(piece.endpoints or ()):
        addresses = endpoint.addresses
        address = ordinary_address(addresses[0], family) if addresses else None
        if address is None:
            looked_at = _address_of(endpoint, family)
            if isinstance(looked_at, Reason):
                omissions.append(Omission(f"{where} endpoint {index}", looked_at))
                continue
            address = looked_at
        # Neighbours mostly share all that a state is made of, the very objects (``kube.decode``).
        if (
            last is None
            or endpoint.conditions is not last.conditions
            or endpoint.hints is not last.hints
            or (endpoint.node_name == node_name) is not (last.node_name == node_name)
        ):
            state = _state_of(endpoint, node_name)
            last = endpoint
        found.append((address, state))
    return found


def _with_port(found: list[tuple[bytes, State]], port: int) -> Endpoints:
    endpoints = {RealServerKey(address, port): state for address, state in found}
    if len(endpoints) < len(found):
        # An address stands there twice: the last one that is not terminating counts, or else the first.
        endpoints.clear()
        for address, state in found:
            key = RealServerKey(address, port)
            if key not in endpoints or not state.terminating:
                endpoints[key] = state
    return endpoints


def _state_of(endpoint: SliceEndpoint, node_name: str) -> State:
    conditions, hints = endpoint.conditions, endpoint.hints
    return state_of(
        conditions.ready is not False,
        conditions.serving is not False,
        bool(conditions.terminating),
        bool(node_name) and endpoint.node_name == node_name,
        *(() if hints is None else _names_in(hints)),
    )


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


def choose_cluster(endpoints: Endpoints, *, node_name: str, zone: str) -> Choices:
    """Choose among all endpoints of a service port: the rule for traffic policy ``Cluster``.

    Hints are judged on ready endpoints only and apply only if every ready endpoint has one. With no ready endpoint
    (that the hints allow), all endpoints that are serving while terminating are used, whatever their hints.
    """
    states = set(endpoints.values())
    mode = _topology(states, node_name=node_name, zone=zone)
    return Choices(endpoints, _fall_back({state: _judge(state, mode, node_name, zone) for state in states}))


def choose_local(endpoints: Endpoints) -> Choices:
    """Choose among this node's endpoints only: the rule for traffic policy ``Local``. Hints never apply."""
    verdicts = {state: Verdict(state.local and state.ready, _local_reason(state)) for state in set(endpoints.values())}
    return Choices(endpoints, _fall_back(verdicts))


def _fall_back(verdicts: dict[State, Verdict]) -> dict[State, Verdict]:
    if any(verdict.used for verdict in verdicts.values()):
        return verdicts
    return {
        state: Verdict(True, Reason.TERMINATING_FALLBACK)
        if state.fallback and verdict.reason is not Reason.NOT_LOCAL
        else verdict
        for state, verdict in verdicts.items()
    }


def _local_reason(state: State) -> Reason:
    if not state.local:
        return Reason.NOT_LOCAL
    return Reason.READY if state.ready else _unready_reason(state)


def _unready_reason(state: State) -> Reason:
    return Reason.TERMINATING if state.terminating else Reason.NOT_READY


def _judge(state: State, mode: Reason | None, node_name: str, zone: str) -> Verdict:
    if not state.ready:
        return Verdict(False, _unready_reason(state))
    if mode is Reason.OTHER_NODE and node_name not in state.nodes:
        return Verdict(False, Reason.OTHER_NODE)
    if mode is Reason.OTHER_ZONE and zone not in state.zones:
        return Verdict(False, Reason.OTHER_ZONE)
    return Verdict(True, Reason.READY)


def _topology(states: Iterable[State], *, node_name: str, zone: str) -> Reason | None:
    """Give the reason for which endpoints will be left out by hints, ``None`` if hints do not apply."""
    ready = [state for state in states if state.ready]
    if node_name and all(state.nodes for state in ready) and any(node_name in state.nodes for state in ready):
        return Reason.OTHER_NODE
    if zone and all(state.zones for state in ready) and any(zone in state.zones for state in ready):
        return Reason.OTHER_ZONE
    return None
