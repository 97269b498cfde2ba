"""Ends drains: a real server that is not wanted any more goes when it is idle, at its deadline, or with its node.

A drain is not state of ours: a real server with weight 0 that nobody wants is draining, whoever set it so, and a
restart carries on with what the kernel shows. Only the time that the deadline counts from is in memory; after a restart
it starts again. While its endpoint still serves (it terminates, with connections of its own) a real server has no
deadline: the pod itself ends it.

A real server is idle when none of its connections can carry data any more: one that both sides have closed stays in the
kernel for two minutes (TIME_WAIT), and nothing has to wait for it (see ``kernel.ipvs.connections``).

A virtual server whose Service was deleted drains as a whole: when its last real server is gone it goes too, with its
address. Connections to an endpoint whose node is dead will never end by themselves; they are ended by removing the real
server, as the kernel then answers the next packet (``expire_nodest_conn``).
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import structlog

from ipvs_proxy.agent.sync.kernel_writer import KernelWriter
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import ACTIVE, RealServerKey, VirtualServer, VirtualServerKey
from ipvs_proxy.plan.tables import Protocol as Transport
from ipvs_proxy.snapshots import snapshot
from ipvs_proxy.state.documents import DrainState

log = structlog.get_logger(__name__)

#: How often the connections of draining real servers are counted, in seconds.
INTERVAL = 1.0
#: Looking through all connections of the node may take this share of the time.
LOOKING_SHARE = 0.05
#: Seconds for which connections to an endpoint that does not serve are left alone before its node is asked about.
SUSPICION = 10.0


class Ending(StrEnum):
    """How a drain ended."""

    IDLE = "idle"
    DEADLINE = "deadline"
    NODE_DEAD = "node-dead"
    RETURNED = "returned"
    GONE = "gone"


#: The ends of drains that cut connections, which somebody may ask about.
_CUTS = frozenset((Ending.DEADLINE, Ending.NODE_DEAD))


class Connections(Protocol):
    """The connections of one real server, as the kernel counts them."""

    @property
    def active(self) -> int:
        """Connections that are established."""

    @property
    def inactive(self) -> int:
        """Connections in any other state, such as CLOSE_WAIT or TIME_WAIT."""


#: A real server of a virtual server.
Target = tuple[VirtualServerKey, RealServerKey]


@dataclass(slots=True)
class _Drain:
    """One drain: since when its deadline counts (monotonic seconds; ``None`` while the endpoint serves), its node.

    ``begun`` is when it began, ``connections`` how many were counted last.
    """

    begun: float
    since: float | None
    node: str
    ending: Ending = Ending.GONE
    connections: int | None = None


class Drains:
    """The drains under way, as they follow from what is desired and what the kernel holds.

    Args:
        deadline: seconds after which a drain ends in any case; 0 for never.
        finished: is told how each drain ended.
        node_of: returns the name of the node of an endpoint's address, empty if it is not known, or our own.
        clock: returns seconds that never go back.

    """

    def __init__(
        self,
        *,
        deadline: float,
        finished: Callable[[Ending], None],
        node_of: Callable[[bytes], str] = lambda _: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.begun = asyncio.Event()
        self.deadline = deadline
        self._finished = finished
        self._node_of = node_of
        self._clock = clock
        #: The inner dictionaries are replaced, never changed: other threads go through them.
        self._drains: dict[VirtualServerKey, dict[RealServerKey, _Drain]] = {}
        #: Deadlines of Services that have their own, also while they drain after their deletion.
        self._deadlines: dict[VirtualServerKey, float] = {}

    def __len__(self) -> int:
        return sum(len(servers) for servers in snapshot(self._drains).values())

    def virtual_servers(self) -> list[VirtualServerKey]:
        """Return the virtual servers that have a drain."""
        return list(self._drains)

    def states(self, keys: Iterable[VirtualServerKey], now: float, limit: int) -> list[DrainState]:
        """Describe the drains of some virtual servers, the oldest first. Safe in any thread."""
        found = [
            (drain.begun, key, server, drain) for key in keys for server, drain in self._drains.get(key, {}).items()
        ]
        return [
            DrainState(str(key), str(server), now - begun, self._seconds_left(key, drain, now), drain.connections)
            for begun, key, server, drain in heapq.nsmallest(limit, found)
        ]

    def observe_write(
        self,
        touched: TableKeys,
        desired: Mapping[VirtualServerKey, VirtualServer],
        actual: Mapping[VirtualServerKey, VirtualServer],
    ) -> None:
        """Look at the virtual servers of a write: drains begin and end there."""
        now = self._clock()
        for key in touched.virtual_servers:
            self.observe(key, desired.get(key), actual.get(key), now, touched.only.get(key))

    def observe(
        self,
        key: VirtualServerKey,
        desired: VirtualServer | None,
        actual: VirtualServer | None,
        now: float,
        only: Collection[RealServerKey] | None = None,
    ) -> None:
        """Look at a virtual server after a write, ``only`` at these real servers if others cannot have changed."""
        self._note_deadline(key, desired, actual)
        before = self._drains.pop(key, {})
        after: dict[RealServerKey, _Drain] = {}
        present = {} if actual is None else actual.real_servers
        # Most are ACTIVE, the very object: looking at the others only matters to Services with 50,000.
        looked_at = present if only is None else before.keys() | (present.keys() & only)
        for server in [server for server in looked_at if present.get(server, ACTIVE) is not ACTIVE]:
            if present[server].weight or (desired is not None and server in desired.real_servers):
                continue
            drain = before.get(server)
            if drain is None:
                drain = _Drain(now, now, self._node_of(server.address))
                self.begun.set()
            serves = desired is not None and server in desired.lingering
            drain.since = None if serves else now if drain.since is None else drain.since
            after[server] = drain
        if after:
            self._drains[key] = after
        for server in before.keys() - after.keys():
            ending = before[server].ending
            if actual is not None and server in actual.real_servers:
                ending = Ending.RETURNED
            tell = log.info if ending in _CUTS else log.debug
            tell("drained", virtual_server=str(key), real_server=str(server), outcome=ending.value)
            self._finished(ending)

    def due(
        self,
        key: VirtualServerKey,
        connections: Mapping[RealServerKey, Connections],
        now: float,
        dead: Collection[str] = (),
        over: Collection[Target] = (),
    ) -> list[Target]:
        """Return the real servers of a virtual server whose drain ends now, by how many connections each has.

        ``dead`` are the names of nodes that are known to be dead, ``over`` real servers whose connections have all been
        closed by both sides.
        """
        ends = []
        deadline = self._deadline(key)
        for server, drain in self._drains.get(key, {}).items():
            counted = connections.get(server)
            if counted is None:
                continue
            drain.connections = counted.active + counted.inactive
            if drain.connections == 0 or (not counted.active and (key, server) in over):
                drain.ending = Ending.IDLE
            elif drain.since is not None and now - drain.since >= deadline:
                drain.ending = Ending.DEADLINE
            elif drain.since is not None and drain.node in dead:
                drain.ending = Ending.NODE_DEAD
            else:
                continue
            ends.append((key, server))
        return ends

    def doubtful(self, key: VirtualServerKey, connections: Mapping[RealServerKey, Connections]) -> list[Target]:
        """Return the draining real servers of which only a look at their connections can say whether they are idle."""
        if key.protocol == Transport.UDP:
            return []
        return [
            (key, server)
            for server in self._drains.get(key, {})
            if server in connections and not connections[server].active and connections[server].inactive
        ]

    def suspects(self, now: float) -> set[str]:
        """Return the nodes of endpoints that have not served for a while and still have connections."""
        return {
            drain.node
            for servers in self._drains.values()
            for drain in servers.values()
            if drain.node and drain.since is not None and now - drain.since >= SUSPICION
        }

    def _deadline(self, key: VirtualServerKey) -> float:
        return self._deadlines.get(key, self.deadline or math.inf)

    def _seconds_left(self, key: VirtualServerKey, drain: _Drain, now: float) -> float | None:
        deadline = self._deadline(key)
        if drain.since is None or math.isinf(deadline):
            return None
        return max(0.0, drain.since + deadline - now)

    def _note_deadline(
        self, key: VirtualServerKey, desired: VirtualServer | None, actual: VirtualServer | None
    ) -> None:
        if desired is not None and desired.drain_timeout is not None:
            self._deadlines[key] = desired.drain_timeout
        elif desired is not None or actual is None:
            self._deadlines.pop(key, None)


class Looks:
    """Looks for open connections among all of the node, not too often: a look takes time in proportion to them."""

    def __init__(
        self, open_among: Callable[[Collection[Target]], set[Target]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open_among = open_among
        self._clock = clock
        self._not_before = -math.inf

    async def over(self, doubtful: Collection[Target]) -> Collection[Target]:
        """Return those of some real servers without an open connection; none if it is not time to look."""
        begun = self._clock()
        if not doubtful or begun < self._not_before:
            return ()
        try:
            still_open = await asyncio.to_thread(self._open_among, doubtful)
        except OSError as error:
            log.warning("connections_not_readable", error=str(error))
            return ()
        ended = self._clock()
        self._not_before = ended + (ended - begun) / LOOKING_SHARE
        return set(doubtful) - still_open


async def end_drains_for_ever(
    writer: KernelWriter,
    drains: Drains,
    connections: Callable[[VirtualServerKey], Mapping[RealServerKey, Connections]],
    dead_nodes: Callable[[set[str]], Awaitable[Collection[str]]],
    looks: Looks,
) -> None:
    """Count the connections of draining real servers every second, and at once when a drain begins; end what is due.

    ``dead_nodes`` returns which of some nodes are dead.
    """
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(INTERVAL):
                await drains.begun.wait()
        drains.begun.clear()
        suspects = drains.suspects(time.monotonic())
        dead = await dead_nodes(suspects) if suspects else ()
        doubtful: list[Target] = []
        counts: dict[VirtualServerKey, Mapping[RealServerKey, Connections]] = {}
        for key in drains.virtual_servers():
            try:
                counted = await writer.call(connections, key)
            except (OSError, ValueError) as error:
                log.warning("drain_not_readable", virtual_server=str(key), error=str(error))
                continue
            await writer.remove_real_servers(drains.due(key, counted, time.monotonic(), dead))
            if found := drains.doubtful(key, counted):
                doubtful += found
                counts[key] = counted
        over = await looks.over(doubtful)
        for key, counted in counts.items():
            await writer.remove_real_servers(drains.due(key, counted, time.monotonic(), dead, over))
