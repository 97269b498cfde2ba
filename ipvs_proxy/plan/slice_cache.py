"""What is remembered of a large Service between two plans, so that a changed slice costs what that slice holds.

**The invariant: what has been handed out never changes, and a remembered difference is applied only to the very
dictionary that it was taken from.** A change makes new dictionaries as copies, and whether a difference fits is told by
the identity of the other side. Planning twice, or forgetting to apply a plan, therefore leads to a whole comparison and
never to a wrong result; without a cache every plan is the same, only slower.

Services with thousands of endpoints change all the time, by a few endpoints in one slice at once. What their other
slices hold is not read, merged, chosen or compared again. A copy takes a fiftieth of the time of making a dictionary
anew (0.01 ms for 1,000 endpoints).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ipvs_proxy.kube.objects import EndpointSlice
from ipvs_proxy.plan.endpoints import Endpoints, Gathered, Omission, PortKey, State, merge, of_family, read_slice
from ipvs_proxy.plan.tables import Family, RealServer, RealServerKey
from ipvs_proxy.plan.weights import EQUAL, Weights

Selected = dict[RealServerKey, RealServer]


class _Selection(NamedTuple):
    """The endpoints in some states: ``selected`` of ``endpoints``; ``differing`` from ``base``, if that is known."""

    endpoints: Endpoints
    settings: Mapping[State, RealServer]
    selected: Selected
    base: Selected | None
    differing: frozenset[RealServerKey]


class PortCache:
    """The endpoints of one port, how many are in each state, and what was selected among them."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self.states = Counter(endpoints.values())
        self._base: Endpoints | None = None
        self._changed: frozenset[RealServerKey] = frozenset()
        self._selections: dict[str, _Selection] = {}

    def change(self, states: Mapping[RealServerKey, State | None]) -> None:
        """Set the states of some endpoints; ``None`` removes one."""
        changed = {key: state for key, state in states.items() if self.endpoints.get(key) is not state}
        if not changed:
            return
        self._base, self.endpoints = self.endpoints, self.endpoints.copy()
        self._changed = frozenset(changed)
        for key, state in changed.items():
            before = self.endpoints.pop(key, None) if state is None else self.endpoints.get(key)
            if before is not None:
                self.states[before] -= 1
                if not self.states[before]:
                    del self.states[before]
            if state is not None:
                self.endpoints[key] = state
                self.states[state] += 1

    def select(self, purpose: str, settings: Mapping[State, RealServer]) -> Selected:
        """Return the endpoints in these states, starting from what was last selected for the same purpose."""
        before = self._selections.get(purpose)
        base: Selected | None = None
        if before is not None and before.settings == settings:
            if before.endpoints is self.endpoints:
                return before.selected
            if before.endpoints is self._base:
                base = before.selected
        if base is None:
            selected = select(self.endpoints, settings)
        else:
            selected = base.copy()
            for key in self._changed:
                state = self.endpoints.get(key)
                if state is not None and state in settings:
                    selected[key] = settings[state]
                else:
                    selected.pop(key, None)
        self._selections[purpose] = _Selection(self.endpoints, settings, selected, base, self._changed)
        return selected

    def differing(self, purpose: str, selected: Selected, other: Selected) -> frozenset[RealServerKey] | None:
        """Return all keys in which ``selected`` may differ from ``other``, or ``None`` if that is unknown."""
        if selected is other:
            return frozenset()
        selection = self._selections.get(purpose)
        if selection is None or selection.selected is not selected or selection.base is not other:
            return None
        return selection.differing


def select(endpoints: Endpoints, settings: Mapping[State, RealServer]) -> Selected:
    """Return the endpoints in these states, with the settings of their state."""
    if not settings:
        return {}
    values = list(settings.values())
    if any(value is not values[0] for value in values):
        return {key: settings[state] for key, state in endpoints.items() if state in settings}
    # Nearly all Services have one kind of real server. This takes a third of the time.
    return dict.fromkeys([key for key, state in endpoints.items() if state in settings], values[0])


class SliceCache:
    """What is remembered of one Service, for each family."""

    def __init__(self) -> None:
        self._weights = EQUAL
        self._read: dict[Family, dict[str, tuple[EndpointSlice, Gathered]]] = {}
        self._ports: dict[Family, dict[PortKey, PortCache]] = {}

    def port(self, family: Family, port: PortKey) -> PortCache | None:
        """Return what is remembered of a port that has endpoints."""
        return self._ports.get(family, {}).get(port)

    def gather(
        self, slices: Collection[EndpointSlice], family: Family, node_name: str, weights: Weights = EQUAL
    ) -> Gathered:
        """Merge the slices as ``endpoints.gather`` does."""
        if weights != self._weights:
            self._weights = weights
            self._read.clear()
            self._ports.clear()
        omissions: list[Omission] = []
        before, after = self._read.get(family, {}), {}
        for piece in of_family(slices, family, omissions):
            known = before.get(piece.metadata.name)
            if known is None or known[0] is not piece:
                known = (piece, read_slice(piece, family, node_name, weights))
            after[piece.metadata.name] = known
            omissions += known[1].omissions
        self._read[family] = after
        changed = [name for name in before.keys() | after.keys() if before.get(name) is not after.get(name)]
        readings = [gathered for _, gathered in after.values()]
        if len(changed) * 2 > len(after):
            self._ports[family] = {port: PortCache(found) for port, found in merge(readings).items()}
        else:
            self._change(family, readings, [(_found(before.get(name)), _found(after.get(name))) for name in changed])
        ports = self._ports.get(family, {})
        return Gathered({port: found.endpoints for port, found in ports.items()}, omissions)

    def _change(
        self,
        family: Family,
        readings: list[Gathered],
        changes: list[tuple[dict[PortKey, Endpoints], dict[PortKey, Endpoints]]],
    ) -> None:
        """Take in changed slices: what each held before, and holds now."""
        candidates: dict[PortKey, set[RealServerKey]] = {}
        for before, after in changes:
            for port in before.keys() | after.keys():
                differing = before.get(port, {}).items() ^ after.get(port, {}).items()
                candidates.setdefault(port, set()).update(key for key, _ in differing)
        ports = self._ports.setdefault(family, {})
        for port, keys in candidates.items():
            parts = [gathered.endpoints[port] for gathered in readings if port in gathered.endpoints]
            found = ports.setdefault(port, PortCache({}))
            found.change({key: _winner(parts, key) for key in keys})
            if not found.endpoints:
                del ports[port]


def _found(read: tuple[EndpointSlice, Gathered] | None) -> dict[PortKey, Endpoints]:
    return {} if read is None else read[1].endpoints


def _winner(parts: Iterable[Endpoints], key: RealServerKey) -> State | None:
    """Return the state of an endpoint that several slices may have, by the rule of ``endpoints.merge``."""
    winner: State | None = None
    for part in parts:
        state = part.get(key)
        if state is not None and (winner is None or state.rank >= winner.rank):
            winner = state
    return winner
