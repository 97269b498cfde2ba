"""The agent's parts in one process, fed with the bytes of a watch: what a change costs, and where.

The path is the agent's from the bytes of an event to the kernel's answer: reflector, decoder, store, controller, plan,
difference, kernel writer, codec, socket. Left out are the HTTP connection and, as they do not depend on Services, the
packet rules.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Self, cast

import structlog

from bench.api_server import streams
from bench.cluster import NODE
from ipvs_proxy.agent import tuning
from ipvs_proxy.agent.observe.health import HealthTracker
from ipvs_proxy.agent.observe.history import History
from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.agent.observe.reports import Reports
from ipvs_proxy.agent.observe.service_traffic import ServiceTraffic
from ipvs_proxy.agent.sync import startup
from ipvs_proxy.agent.sync.controller import Controller
from ipvs_proxy.agent.sync.departed import DepartedEndpoints
from ipvs_proxy.agent.sync.drains import Drains, Looks, end_drains_for_ever
from ipvs_proxy.agent.sync.kernel_access import WritableTables
from ipvs_proxy.agent.sync.kernel_writer import KernelWriter
from ipvs_proxy.agent.sync.node_facts import NodeFacts
from ipvs_proxy.agent.sync.stale_flows import StaleFlows
from ipvs_proxy.kernel.dataplane import Dataplane, Failure
from ipvs_proxy.kernel.filter.backend import PacketFilter
from ipvs_proxy.kernel.filter.ipset.names import definitions, name_of
from ipvs_proxy.kernel.filter.ipset.table import Sets
from ipvs_proxy.kernel.filter.ipset_iptables import IpsetIptables
from ipvs_proxy.kernel.filter.iptables.programs import Iptables
from ipvs_proxy.kernel.filter.nftables_filter import open_nftables
from ipvs_proxy.kernel.ipvs.records import Activity, Balanced, Connections, Counters, Observation
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.kernel.links.addresses import Addresses
from ipvs_proxy.kube.reflector import Response, reflect
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, SERVICES, own_node
from ipvs_proxy.netlink.socket import NetlinkSocket
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Context
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.masquerading import Masquerading
from ipvs_proxy.plan.tables import Family, Operation, RealServerKey, Role, SetEntry, VirtualServer, VirtualServerKey
from ipvs_proxy.settings.values import ServiceMetrics
from lab.packet_filter import CHOSEN, NFTABLES

FAMILIES = (Family.IPV4, Family.IPV6)
#: Bytes of a list that come at once.
PIECE = 64 * 1024


class Idle(NamedTuple):
    """The connections of a real server that nobody is connected to."""

    active: int = 0
    inactive: int = 0


class NoKernel:
    """A kernel that accepts everything and holds nothing, which leaves the cost of Python."""

    spells_marks = True

    def ensure_tables(self) -> list[str]:
        """Find nothing missing."""
        return []

    repair_rules = write_rules = find_leftovers = remove_leftovers = ensure_tables

    def read_virtual_servers(self) -> dict[VirtualServerKey, VirtualServer]:
        """Read nothing."""
        return {}

    def read_virtual_server(self, key: VirtualServerKey) -> VirtualServer | None:
        """Read nothing."""

    def read_addresses(self) -> set[bytes]:
        """Read nothing."""
        return set()

    def announces_addresses(self) -> bool:
        """Have nothing to tell."""
        return True

    def has_scheduler(self, _: str) -> bool:
        """Have every scheduler."""
        return True

    def name_of_role(self, role: Role) -> str:
        """Name the set of a role."""
        return name_of(role)

    def read_changed_entries(self) -> dict[Role, set[SetEntry] | None]:
        """Read nothing."""
        return {}

    def read_left_entries(self) -> dict[Role, set[SetEntry]]:
        """Read nothing."""
        return {}

    def read_entries(self) -> dict[Role, set[SetEntry]]:
        """Read nothing."""
        return {}

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:  # noqa: ARG002
        """Accept everything."""
        return []

    def writes(self) -> int:
        """Have written nothing."""
        return 0


class WithoutRules(Dataplane):
    """The kernel's tables in this network namespace, without the packet rules of iptables.

    Those of nftables are in one table with its sets.
    """

    def __init__(self) -> None:
        packet_filter: PacketFilter
        if CHOSEN == NFTABLES:
            packet_filter = open_nftables({family: Masquerading() for family in FAMILIES})
        else:
            # Without rules, nobody is needed who writes them.
            packet_filter = IpsetIptables(Sets(definitions(FAMILIES)), {}, cast("Iptables", None))
        super().__init__(ipvs=Ipvs(), addresses=Addresses(), packet_filter=packet_filter)


class InMemory:
    """An IPVS table that says what somebody believes it to hold, with a little more traffic each time."""

    def __init__(self, virtual_servers: Callable[[], Mapping[VirtualServerKey, VirtualServer]]) -> None:
        self._virtual_servers = virtual_servers
        self._counters = itertools.count(1)

    def read_counters(self) -> dict[VirtualServerKey, Counters]:
        """Read what each virtual server has balanced."""
        return dict.fromkeys(list(self._virtual_servers()), self._traffic().total)

    def observe(self, key: VirtualServerKey, *, real_servers: bool = True) -> Observation | None:
        """Read one virtual server."""
        server, traffic = self._virtual_servers().get(key), self._traffic()
        if server is None:
            return None
        listed = server.real_servers.copy() if real_servers else {}
        found = {real: Activity(settings, Connections(1, 0, 0), traffic) for real, settings in listed.items()}
        return Observation(server, traffic, found)

    def close(self) -> None:
        """Nothing is open."""

    def _traffic(self) -> Balanced:
        return Balanced(Counters(*[next(self._counters)] * 5), Counters(1, 2, 3, 4, 5))


class _Body:
    """An answer that never ends: the list, then the bytes that are put into ``queue``."""

    status, headers = 200, dict[str, str]()

    def __init__(self, start: bytes) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._start = start

    async def chunks(self, *, is_bulk: Callable[[], bool] = lambda: False) -> AsyncIterator[bytes]:  # noqa: ARG002
        """Yield the list, then the events."""
        for start in range(0, len(self._start), PIECE):
            yield self._start[start : start + PIECE]
            await asyncio.sleep(0)
        self._start = b""
        while True:
            yield await self.queue.get()

    async def read(self, limit: int) -> bytes:  # noqa: ARG002
        """Refuse: the body never ends."""
        raise AssertionError("not a list")


class _Transport:
    """Answers each resource's first request with its list."""

    def __init__(self, bodies: Mapping[str, _Body]) -> None:
        self._bodies = bodies

    @asynccontextmanager
    async def get(
        self,
        path: str,
        query: Mapping[str, str],  # noqa: ARG002  the transport's signature
        *,
        inactivity: float,  # noqa: ARG002
    ) -> AsyncIterator[Response]:
        """Yield the body of the path's kind."""
        yield self._bodies["Node" if "nodes" in path else "Service" if "services" in path else "EndpointSlice"]

    async def reauthenticate(self) -> None:
        """Do nothing: there are no credentials."""


class Rig:
    """A running agent without its HTTP servers."""

    def __init__(self, items: Iterable[dict[str, Any]], kernel: WritableTables) -> None:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        tuning.prepare_for_start()
        self.bodies = {kind: _Body(body) for kind, body in streams(items).items()}
        self.kernel = kernel
        desired = DesiredTables()
        self.in_memory = InMemory(lambda: self.writer.actual.virtual_servers)
        self.traffic = ServiceTraffic(desired, lambda: self.in_memory, detail=ServiceMetrics.OFF)
        self.metrics = Metrics(FAMILIES, service_traffic=self.traffic.expose)
        health = HealthTracker(FAMILIES, sync_period=30.0)
        departed = DepartedEndpoints(NODE)
        self.drains = Drains(deadline=0, finished=lambda _: None, node_of=departed.node_of)
        flows = StaleFlows(lambda: desired.virtual_servers, cleaned=lambda *_: None)
        self.writer = KernelWriter(kernel, desired, count=self.metrics.operations, observers=(self.drains, flows))
        facts = NodeFacts(dict, node_port_cidrs=(), bind_address=None, families=FAMILIES)
        reports = Reports(self.metrics, health, wish=lambda *_: None, emit=None, history=History())
        self.synced = asyncio.Event()
        note = reports.synced

        def synced(*, seconds: float, complete: bool) -> None:
            note(seconds=seconds, complete=complete)
            self.synced.set()

        reports.synced = synced  # type: ignore[method-assign]
        self.controller = Controller(
            self.writer,
            context=Context(NODE, families=FAMILIES, spells_marks=kernel.spells_marks),
            recorder=reports,
            marks=Marks(),
            facts=facts,
            departed=departed,
            adapt_rules=lambda _: False,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run until everything is programmed, then hand over control, then stop."""
        transport = _Transport(self.bodies)
        resources = (SERVICES, ENDPOINT_SLICES, own_node(NODE))
        tasks = [asyncio.create_task(reflect(resource, transport, self.controller)) for resource in resources]
        tasks.append(asyncio.create_task(startup.run(self.controller)))
        started = asyncio.create_task(self.controller.started.wait())
        await asyncio.wait([started, *tasks], return_when=asyncio.FIRST_COMPLETED)
        assert started.done(), tasks
        await tuning.settle_after(self.controller.started)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks)
            self.writer.close()

    async def end_drains(self) -> None:
        """End drains as the agent does, as if nobody were connected; for ever."""

        def connections(key: VirtualServerKey) -> dict[RealServerKey, Idle]:
            return dict.fromkeys(self.writer.actual.virtual_servers[key].real_servers, Idle())

        async def none_dead(_: set[str]) -> Collection[str]:
            return ()

        await end_drains_for_ever(self.writer, self.drains, connections, none_dead, Looks(lambda _: set()))

    async def change(self, item: dict[str, Any], kind: str = "MODIFIED") -> float:
        """Send one event, which must change something; return the seconds from its bytes to the kernel's answer."""
        line = _line(item, kind)
        self.synced.clear()
        begun = time.perf_counter()
        self.bodies[item["kind"]].queue.put_nowait(line)
        await self.synced.wait()
        return time.perf_counter() - begun

    def send(self, item: dict[str, Any], kind: str = "MODIFIED") -> None:
        """Send one event without waiting for its effect."""
        self.bodies[item["kind"]].queue.put_nowait(_line(item, kind))


def _line(item: dict[str, Any], kind: str) -> bytes:
    return json.dumps({"type": kind, "object": item}, separators=(",", ":")).encode() + b"\n"


class KernelTime:
    """Adds up the seconds in netlink's ``sendmsg``: the kernel's own work on our messages."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._transmit = transmit = NetlinkSocket._transmit  # noqa: SLF001  measured where it happens

        def timed(netlink: NetlinkSocket, data: bytes) -> None:
            begun = time.perf_counter()
            transmit(netlink, data)
            self.seconds += time.perf_counter() - begun

        NetlinkSocket._transmit = timed  # type: ignore[assignment,method-assign]  # noqa: SLF001
        return self

    def __exit__(self, *_: object) -> None:
        NetlinkSocket._transmit = self._transmit  # type: ignore[method-assign]  # noqa: SLF001


def percentile(values: Collection[float], share: float) -> float:
    """Return the percentile of values for a share between 0 and 1."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
