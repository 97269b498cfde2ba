"""Ends drains: a real server that is not wanted any more goes when it is idle, or at its deadline.

A drain is not state of ours: a real server with weight 0 that nobody wants is draining, whoever set it so, and a
restart carries on with what the kernel shows. Only the time that the deadline counts from is in memory; after a restart
it counts anew. While its endpoint still serves (it terminates, with connections of its own) a real server has no
deadline: the pod itself ends it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Protocol

import structlog

from ipvs_proxy.agent.programmer import Programmer
from ipvs_proxy.plan.tables import RealServerKey, VirtualServer, VirtualServerKey

log = structlog.get_logger(__name__)

#: How often the connections of draining real servers are counted, in seconds.
INTERVAL = 1.0


class Outcome(StrEnum):
    """How a drain ended."""

    IDLE = "idle"
    DEADLINE = "deadline"
    RETURNED = "returned"
    GONE = "gone"


class Connections(Protocol):
    """The connections of one real server, as the kernel counts them."""

    @property
    def active(self) -> int:
        """Connections that are established."""

    @property
    def inactive(self) -> int:
        """Connections in any other state, such as TIME_WAIT."""


class Drains:
    """The drains under way, as they follow from what is desired and what the kernel holds. The clock is passed in."""

    def __init__(self, *, deadline: float, finished: Callable[[Outcome], None]) -> None:
        """Take the deadline in seconds (0: none) and what is told how each drain ended."""
        self.deadline = deadline
        self._finished = finished
        #: Since when the deadline of each counts (monotonic seconds); ``None`` while the endpoint serves.
        self._drains: dict[VirtualServerKey, dict[RealServerKey, float | None]] = {}
        self._ending: dict[tuple[VirtualServerKey, RealServerKey], Outcome] = {}

    def __len__(self) -> int:
        return sum(len(servers) for servers in self._drains.values())

    def virtual_servers(self) -> list[VirtualServerKey]:
        """Give the virtual servers that have a drain."""
        return list(self._drains)

    def observe(
        self, key: VirtualServerKey, desired: VirtualServer | None, actual: VirtualServer | None, now: float
    ) -> None:
        """Look at a virtual server after a write: drains begin, and others end."""
        before = self._drains.pop(key, {})
        after: dict[RealServerKey, float | None] = {}
        if actual is not None and desired is not None:
            for server, settings in actual.real_servers.items():
                if settings.weight == 0 and server not in desired.real_servers:
                    since = before.get(server)
                    after[server] = None if server in desired.lingering else now if since is None else since
        if after:
            self._drains[key] = after
        for server in before.keys() - after.keys():
            outcome = self._ending.pop((key, server), Outcome.GONE)
            if actual is not None and server in actual.real_servers:
                outcome = Outcome.RETURNED
            log.info("drained", virtual_server=str(key), real_server=str(server), outcome=outcome.value)
            self._finished(outcome)

    def due(
        self, key: VirtualServerKey, connections: Mapping[RealServerKey, Connections], now: float
    ) -> list[tuple[VirtualServerKey, RealServerKey]]:
        """Give the real servers of a virtual server whose drain ends now, by how many connections each has."""
        ends = []
        for server, since in self._drains.get(key, {}).items():
            counted = connections.get(server)
            if counted is None:
                continue
            if counted.active + counted.inactive == 0:
                self._ending[key, server] = Outcome.IDLE
            elif self.deadline and since is not None and now - since >= self.deadline:
                self._ending[key, server] = Outcome.DEADLINE
            else:
                continue
            ends.append((key, server))
        return ends


def watch_writes(programmer: Programmer, drains: Drains, clock: Callable[[], float] = time.monotonic) -> None:
    """Have every write of the programmer observed."""

    def observe(keys: set[VirtualServerKey]) -> None:
        desired, actual, now = programmer.desired.virtual_servers, programmer.actual.virtual_servers, clock()
        for key in keys:
            drains.observe(key, desired.get(key), actual.get(key), now)

    programmer.on_write(observe)


async def end_drains_for_ever(
    programmer: Programmer,
    drains: Drains,
    connections: Callable[[VirtualServerKey], Mapping[RealServerKey, Connections]],
) -> None:
    """Count the connections of draining real servers every second, and remove those that are done."""
    while True:
        await asyncio.sleep(INTERVAL)
        for key in drains.virtual_servers():
            try:
                due = drains.due(key, await programmer.work(connections, key), time.monotonic())
            except (OSError, ValueError) as error:
                log.warning("drain_not_readable", virtual_server=str(key), error=str(error))
                continue
            await programmer.remove_real_servers(due)
