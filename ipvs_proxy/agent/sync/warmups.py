"""Warms endpoints up: an endpoint of a Service with a slow start gets its weight in steps once it has become ready.

**The invariant: an endpoint has less than its full weight only while it is listed here.** Nothing of that is kept
outside the process, so whatever ends it (a restart, a Service that gives up its slow start, an endpoint that goes) ends
at the full weight, or at none.

New is what a Service gets and did not have, at a virtual server that goes on having others: when all come at once,
none is colder than another. What is there when the agent starts is not new. A plan gives the full weights, and its
fragment is changed before it reaches the desired tables; so each step is an ordinary change of the Service, and costs
one message for each virtual server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Fragment, ServiceName
from ipvs_proxy.plan.tables import RealServer, RealServerKey, VirtualServer
from ipvs_proxy.plan.warming import STEPS, step_of, warming
from ipvs_proxy.snapshots import snapshot

#: Seconds between two looks for steps that are due: a Service is planned at most that often for all its endpoints.
INTERVAL: Final = 1.0


class _Warmup(NamedTuple):
    """An endpoint that warms up: since when, for how many seconds, and the step that its last plan had it at."""

    since: float
    duration: float
    step: int = 0

    @property
    def next_step(self) -> float:
        """When it reaches its next step."""
        return self.since + self.duration * (self.step + 1) / STEPS


class Warmups:
    """The endpoints that warm up. ``clock`` returns seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.begun = asyncio.Event()
        self._clock = clock
        self._started = False
        #: The inner dictionaries are replaced, never changed: other threads go through them.
        self._warmups: dict[ServiceName, dict[RealServerKey, _Warmup]] = {}
        #: When the first of a Service's endpoints reaches its next step.
        self._next_steps: dict[ServiceName, float] = {}

    def __len__(self) -> int:
        return sum(map(len, snapshot(self._warmups).values()))

    def start(self) -> None:
        """Take endpoints that come from now on for new."""
        self._started = True

    def follow(self, name: ServiceName, fragment: Fragment | None, desired: DesiredTables) -> None:
        """Take in a Service's plan: which endpoints are new next to what is desired so far, and which steps are due."""
        warm = self._warmups.pop(name, {})
        self._next_steps.pop(name, None)
        duration = None if fragment is None else fragment.options.slow_start
        if fragment is None or duration is None or not self._started:
            return
        planned = [server for server, _ in fragment.virtual_servers.values()]
        before, after = _endpoints(desired.claims_of(name).values()), _endpoints(planned)
        old = [server for server in planned if not before.isdisjoint(server.real_servers)]
        now = self._clock()
        found = dict.fromkeys(_endpoints(old) - before, _Warmup(now, duration))
        # Endpoints that came together share one object, so that 50,000 of them cost little more than one.
        later: dict[_Warmup, _Warmup] = {}
        for key in warm.keys() & after:
            earlier = warm[key]
            if earlier not in later:
                later[earlier] = _Warmup(earlier.since, duration, step_of(now - earlier.since, duration))
            if later[earlier].step < STEPS:
                found[key] = later[earlier]
        if found:
            self._warmups[name] = found
            self._next_steps[name] = min(warmup.next_step for warmup in set(found.values()))
            self.begun.set()

    def apply(self, name: ServiceName, fragment: Fragment) -> None:
        """Give the endpoints of a plan that warm up the weight of the step that ``follow`` had them at."""
        warmups = self._warmups.get(name)
        if not warmups:
            return
        changed: dict[int, dict[RealServerKey, RealServer]] = {}
        for key, (server, reason) in fragment.virtual_servers.items():
            # Virtual servers share what they have in common.
            real_servers = changed.get(id(server.real_servers))
            if real_servers is None:
                steps = {
                    one: warming(server.real_servers[one], warmup.step)
                    for one, warmup in warmups.items()
                    if one in server.real_servers
                }
                real_servers = changed[id(server.real_servers)] = {**server.real_servers, **steps}
            fragment.virtual_servers[key] = (msgspec.structs.replace(server, real_servers=real_servers), reason)

    def due(self) -> Collection[ServiceName]:
        """Return the Services of which an endpoint has reached its next step."""
        now = self._clock()
        return [name for name, when in self._next_steps.items() if now >= when]

    def seconds_left(self, name: ServiceName) -> Mapping[RealServerKey, float]:
        """Return the endpoints of a Service that warm up, and for how long they will. Safe in any thread."""
        now = self._clock()
        return {
            key: max(0.0, warmup.since + warmup.duration - now) for key, warmup in self._warmups.get(name, {}).items()
        }


async def warm_up_for_ever(warmups: Warmups, replan: Callable[[Collection[ServiceName]], None]) -> None:
    """Have Services planned again when an endpoint has reached its next step; nothing happens while none warms up."""
    while True:
        if not warmups:
            warmups.begun.clear()
            await warmups.begun.wait()
        # Not until the next step: a shorter slow start may begin meanwhile.
        await asyncio.sleep(INTERVAL)
        if due := warmups.due():
            replan(due)


def _endpoints(servers: Iterable[VirtualServer]) -> set[RealServerKey]:
    """Return the real servers of several virtual servers, most of which have the same ones."""
    distinct = {id(server.real_servers): server.real_servers for server in servers}
    return set[RealServerKey]().union(*distinct.values())
