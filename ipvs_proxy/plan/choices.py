"""Which endpoints of a service port get connections, and why each one does or does not.

``choose_cluster`` and ``choose_local`` apply the rules that all kube-proxy modes share: readiness, the fallback to
serving-terminating endpoints (KEP-1669), node and zone hints (KEP-2433, KEP-4444), and the traffic policies. Every
endpoint comes out with a reason, in or out.

Most endpoints of a Service share a handful of states, so a choice decides about states, and 50,000 endpoints cost a
look-up each, or nothing where they are remembered (see ``memory``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

from ipvs_proxy.plan.endpoints import Endpoints, State
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.slice_cache import PortMemory
from ipvs_proxy.plan.tables import ACTIVE, RealServer, RealServerKey


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

    def __init__(
        self, endpoints: Endpoints, verdicts: dict[State, Verdict], policy: str, memory: PortMemory | None
    ) -> None:
        self._endpoints = endpoints
        self._verdicts = verdicts
        self._policy = policy
        self._memory = memory

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
        return self._select("used", {state for state, verdict in self._verdicts.items() if verdict.used})

    @cached_property
    def lingering(self) -> frozenset[RealServerKey]:
        """The endpoints that get no new connections and go on with those that they have."""
        states = {state for state, verdict in self._verdicts.items() if not verdict.used and state.fallback}
        return frozenset(self._select("lingering", states))

    def local(self) -> Iterable[RealServerKey]:
        """Return the endpoints on this node, used or not."""
        return self._select("local", {state for state in self._verdicts if state.local})

    def differing(self, other: dict[RealServerKey, RealServer]) -> frozenset[RealServerKey] | None:
        """Return all keys in which ``real_servers`` may differ from those of an earlier plan; ``None``: not known."""
        if self._memory is None:
            return None
        return self._memory.differing(f"{self._policy} used", self.real_servers, other)

    def _select(self, purpose: str, states: set[State]) -> dict[RealServerKey, RealServer]:
        if self._memory is not None:
            return self._memory.select(f"{self._policy} {purpose}", frozenset(states))
        if not states:
            return {}
        if len(states) == len(self._verdicts):
            return dict.fromkeys(self._endpoints, ACTIVE)
        return dict.fromkeys([key for key, state in self._endpoints.items() if state in states], ACTIVE)


def choose_cluster(endpoints: Endpoints, *, node_name: str, zone: str, memory: PortMemory | None = None) -> Choices:
    """Choose among all endpoints of a service port: the rule for traffic policy ``Cluster``.

    Hints are judged on ready endpoints only and apply only if every ready endpoint has one. With no ready endpoint
    (that the hints allow), all endpoints that are serving while terminating are used, whatever their hints.
    """
    states = _states(endpoints, memory)
    mode = _topology(states, node_name=node_name, zone=zone)
    verdicts = {state: _judge(state, mode, node_name, zone) for state in states}
    return Choices(endpoints, _fall_back(verdicts), "cluster", memory)


def choose_local(endpoints: Endpoints, *, memory: PortMemory | None = None) -> Choices:
    """Choose among this node's endpoints only: the rule for traffic policy ``Local``. Hints never apply."""
    verdicts = {
        state: Verdict(state.local and state.ready, _local_reason(state)) for state in _states(endpoints, memory)
    }
    return Choices(endpoints, _fall_back(verdicts), "local", memory)


def _states(endpoints: Endpoints, memory: PortMemory | None) -> set[State]:
    return set(endpoints.values() if memory is None else memory.states)


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
    """Return the reason for which endpoints will be left out by hints, ``None`` if hints do not apply."""
    ready = [state for state in states if state.ready]
    if node_name and all(state.nodes for state in ready) and any(node_name in state.nodes for state in ready):
        return Reason.OTHER_NODE
    if zone and all(state.zones for state in ready) and any(zone in state.zones for state in ready):
        return Reason.OTHER_ZONE
    return None
