"""Which endpoints of a service port get connections, and why each one does or does not.

**The invariant: a decision depends only on the states of the port's endpoints and on the name and zone of this node.**
Endpoints in equal states get equal decisions, every endpoint comes out with a reason, in or out, and neither the order
of events nor an earlier decision matters. Most endpoints of a Service share a handful of states, so a choice decides
about states: 50,000 endpoints cost a look-up each, or nothing where they are remembered (see ``slice_cache``). And most
Services have the same states, so that a decision is remembered, too.

``choose_cluster`` and ``choose_local`` apply the rules that all modes of kube-proxy share: readiness, the fallback to
endpoints that serve while they terminate (KEP-1669), hints of node and zone (KEP-2433, KEP-4444), and the traffic
policies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from ipvs_proxy.plan.endpoints import Endpoints, State
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.slice_cache import PortCache, select
from ipvs_proxy.plan.tables import ACTIVE, RealServer, RealServerKey


class Decision(NamedTuple):
    """The decision about a state."""

    used: bool
    reason: Reason


class Choice(NamedTuple):
    """The decision about one endpoint."""

    key: RealServerKey
    state: State
    used: bool
    reason: Reason


class Decisions:
    """The decisions about some states, and what follows from them alone.

    ``used``, ``lingering`` and ``local`` have the settings (``ACTIVE``) of the states that get connections, of those
    that go on with what they have, and of those on this node. ``any_open``: an endpoint that is used has a weight
    above 0, so that it gets new connections.
    """

    __slots__ = ("any_open", "by_state", "lingering", "local", "used")

    def __init__(self, by_state: Mapping[State, Decision]) -> None:
        used = [state for state, decision in by_state.items() if decision.used]
        self.by_state = by_state
        self.any_open = any(state.weight for state in used)
        self.used: Settings = dict.fromkeys(used, ACTIVE)
        self.lingering: Settings = {state: ACTIVE for state in by_state if state.fallback and state not in self.used}
        self.local: Settings = {state: ACTIVE for state in by_state if state.local}


#: The settings of the real servers of each state.
Settings = Mapping[State, RealServer]
#: All real servers are as usual.
USUAL: Final[Settings] = MappingProxyType({})
#: Nearly all Services have none, and each empty set that Python makes takes 216 bytes.
_NONE: Final = frozenset[RealServerKey]()
#: Decisions about more states than these are not remembered. Remembering saves 4.5 us of a plan's 21.
_FEW: Final = 8
_REMEMBERED: Final = 1024


class Choices:
    """The decisions about the endpoints of one port, by their states. Iteration yields each endpoint's, by address.

    ``settings`` has those of real servers in other states than usual (``ACTIVE``).
    """

    def __init__(
        self,
        endpoints: Endpoints,
        decisions: Decisions,
        policy: str,
        settings: Settings,
        cache: PortCache | None,
    ) -> None:
        self._endpoints = endpoints
        self._settings = settings
        self._decisions = decisions
        self._policy = policy
        self._cache = cache

    def __iter__(self) -> Iterator[Choice]:
        for key, state in sorted(self._endpoints.items(), key=lambda item: item[0]):
            yield Choice(key, state, *self._decisions.by_state[state])

    @property
    def any_open(self) -> bool:
        """Whether any endpoint gets new connections: it is used, and has a weight above 0."""
        return self._decisions.any_open

    @cached_property
    def real_servers(self) -> dict[RealServerKey, RealServer]:
        """The endpoints that get connections; the same object for every virtual server that has them."""
        settings = self._decisions.used
        if self._settings:
            settings = {state: self._settings.get(state, ACTIVE) for state in settings}
        return self._select("used", settings)

    @cached_property
    def lingering(self) -> frozenset[RealServerKey]:
        """The endpoints that get no new connections and go on with those that they have."""
        settings = self._decisions.lingering
        return frozenset(self._select("lingering", settings)) if settings else _NONE

    def local(self) -> Collection[RealServerKey]:
        """Return the endpoints on this node, used or not."""
        return self._select("local", self._decisions.local)

    def differing(self, other: dict[RealServerKey, RealServer]) -> frozenset[RealServerKey] | None:
        """Return all keys in which ``real_servers`` may differ from an earlier plan's, or ``None`` if unknown."""
        if self._cache is None:
            return None
        return self._cache.differing(f"{self._policy} used", self.real_servers, other)

    def _select(self, purpose: str, settings: Settings) -> dict[RealServerKey, RealServer]:
        if self._cache is not None:
            return self._cache.select(f"{self._policy} {purpose}", settings)
        if not settings:
            return {}
        if len(settings) == 1 == len(self._decisions.by_state):
            return dict.fromkeys(self._endpoints, *settings.values())
        return select(self._endpoints, settings)


def choose_cluster(
    endpoints: Endpoints, *, node_name: str, zone: str, settings: Settings = USUAL, cache: PortCache | None = None
) -> Choices:
    """Choose among all endpoints of a service port: the rule for traffic policy ``Cluster``.

    Hints are judged on ready endpoints only and apply only if every ready endpoint has one, and one with a weight above
    0 has ours. With no ready endpoint (that the hints allow), all endpoints that are serving while terminating are
    used, whatever their hints.
    """
    states = _states(endpoints, cache)
    decide = _decide_cluster if len(states) <= _FEW else _decide_cluster.__wrapped__
    return Choices(endpoints, decide(states, node_name, zone), "cluster", settings, cache)


def choose_local(endpoints: Endpoints, *, settings: Settings = USUAL, cache: PortCache | None = None) -> Choices:
    """Choose among this node's endpoints only: the rule for traffic policy ``Local``. Hints never apply."""
    states = _states(endpoints, cache)
    decide = _decide_local if len(states) <= _FEW else _decide_local.__wrapped__
    return Choices(endpoints, decide(states), "local", settings, cache)


def _states(endpoints: Endpoints, cache: PortCache | None) -> frozenset[State]:
    return frozenset(endpoints.values() if cache is None else cache.states)


@lru_cache(_REMEMBERED)
def _decide_cluster(states: frozenset[State], node_name: str, zone: str) -> Decisions:
    mode = _topology(states, node_name=node_name, zone=zone)
    return Decisions(_fall_back({state: _judge(state, mode, node_name, zone) for state in states}))


@lru_cache(_REMEMBERED)
def _decide_local(states: frozenset[State]) -> Decisions:
    return Decisions(
        _fall_back({state: Decision(state.local and state.ready, _local_reason(state)) for state in states})
    )


def _fall_back(decisions: dict[State, Decision]) -> dict[State, Decision]:
    if any(decision.used for decision in decisions.values()):
        return decisions
    return {
        state: Decision(True, Reason.TERMINATING_FALLBACK)
        if state.fallback and decision.reason is not Reason.NOT_LOCAL
        else decision
        for state, decision in decisions.items()
    }


def _local_reason(state: State) -> Reason:
    if not state.local:
        return Reason.NOT_LOCAL
    return Reason.READY if state.ready else _unready_reason(state)


def _unready_reason(state: State) -> Reason:
    return Reason.TERMINATING if state.terminating else Reason.NOT_READY


def _judge(state: State, mode: Reason | None, node_name: str, zone: str) -> Decision:
    if not state.ready:
        return Decision(False, _unready_reason(state))
    if mode is Reason.OTHER_NODE and node_name not in state.nodes:
        return Decision(False, Reason.OTHER_NODE)
    if mode is Reason.OTHER_ZONE and zone not in state.zones:
        return Decision(False, Reason.OTHER_ZONE)
    return Decision(True, Reason.READY)


def _topology(states: Iterable[State], *, node_name: str, zone: str) -> Reason | None:
    """Return the reason for which hints exclude endpoints, or ``None`` if hints do not apply.

    They do not if they would leave none but endpoints with weight 0.
    """
    ready = [state for state in states if state.ready]
    open_ = [state for state in ready if state.weight]
    if node_name and all(state.nodes for state in ready) and any(node_name in state.nodes for state in open_):
        return Reason.OTHER_NODE
    if zone and all(state.zones for state in ready) and any(zone in state.zones for state in open_):
        return Reason.OTHER_ZONE
    return None
