"""What the agent shows of itself: gathers the tables and what the kernel says, and has ``state`` write it down.

The event loop does only what needs its tables to stand still: planning the one Service that is looked at. Everything
else, the reading of the kernel and the writing of documents, is done in the thread of readers with a socket of its own,
and on snapshots of the tables (see ``snapshots``). Only a look at all of the kernel, which somebody has to ask for, has
another thread: scrapes do not wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address

from ipvs_proxy import __version__
from ipvs_proxy.agent.observe.health import HealthTracker
from ipvs_proxy.agent.observe.history import History
from ipvs_proxy.agent.sync.controller import Controller
from ipvs_proxy.agent.sync.drains import Drains
from ipvs_proxy.agent.sync.kernel_writer import KernelWriter
from ipvs_proxy.agent.web.reader_thread import read
from ipvs_proxy.kernel.dataplane import Dataplane
from ipvs_proxy.kernel.filter.backend import NameOfRole
from ipvs_proxy.kernel.filter.foreign.read import read_all_rules
from ipvs_proxy.kernel.ipvs.records import Balanced, Observation
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.kube.objects import EndpointSlice, Service
from ipvs_proxy.kube.texts import quote
from ipvs_proxy.plan import ownership
from ipvs_proxy.plan.difference import difference
from ipvs_proxy.plan.fragment import Fragment, ServiceName
from ipvs_proxy.plan.masquerading import Masquerading
from ipvs_proxy.plan.mirror import KernelTables, is_same
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Family, VirtualServerKey, family_of, text_of
from ipvs_proxy.settings.model import Settings
from ipvs_proxy.snapshots import snapshot
from ipvs_proxy.state.changes import change_of, name_of
from ipvs_proxy.state.documents import ChangeState, Differences, NodeState, RouteState, ServiceState
from ipvs_proxy.state.route import trace
from ipvs_proxy.state.services import service_state, summarize

#: Services of which rates are read at a time; a list of more has none.
RATED = 256
#: Services that are listed unless somebody asks for more, and at most: ``offset`` leads to the rest.
LIMIT = 100
LARGEST = 1_000
#: Foreign virtual servers, drains and refused objects that are named at most.
_NAMED = 100


class View:
    """Makes the documents of ``/state``."""

    def __init__(
        self,
        controller: Controller,
        writer: KernelWriter,
        *,
        settings: Callable[[], Settings],
        families: Sequence[Family],
        rules: Callable[[], Mapping[Family, Masquerading]],
        host_addresses: Callable[[], Collection[bytes]],
        health: HealthTracker,
        drains: Drains,
        history: History,
        open_tables: Callable[[], Dataplane],
        name_of_role: NameOfRole,
        open_ipvs: Callable[[], Ipvs] = Ipvs,
        read_rules: Callable[[Family], Mapping[str, str]] = read_all_rules,
    ) -> None:
        """Take the parts of the agent, and what opens the kernel's tables beside the writer's."""
        self.started = datetime.now(UTC)
        self.settings = settings
        self._controller = controller
        self._writer = writer
        self._families = families
        self._rules = rules
        self._host_addresses = host_addresses
        self._health = health
        self._drains = drains
        self._history = history
        self._open_tables = open_tables
        self._name_of_role = name_of_role
        self._open_ipvs = open_ipvs
        self._read_rules = read_rules
        self._names: list[ServiceName] = []
        self._one_look = asyncio.Lock()

    async def node(self, *, search: str = "", offset: int = 0, limit: int = LIMIT) -> NodeState:
        """Describe the agent and the Services whose ``namespace/name`` or address contains ``search``, by name.

        There are ``LARGEST`` of them at most.

        Raises:
            OSError: if the kernel cannot be read.
            MalformedMessage: if its answer is garbage.

        """
        return await read(self._node, search, offset, min(limit, LARGEST))

    async def service(self, name: ServiceName) -> ServiceState | None:
        """Describe one Service; ``None`` if there is none of this name.

        Raises:
            OSError: if the kernel cannot be read.
            MalformedMessage: if its answer is garbage.

        """
        service = self._controller.cache.services.get(name)
        if service is None:
            return None
        fragment = await self._controller.planner.explain(service)
        slices = list(self._controller.cache.slices(name))
        return await read(self._service, service, fragment, slices)

    async def route(self, client: bytes, key: VirtualServerKey) -> RouteState:
        """Describe what a new connection from a client to a virtual server meets, others' rules included.

        Raises:
            Unusable: if the rules cannot be read.

        """
        # The rules of others may be many: scrapes do not wait for it.
        return await asyncio.to_thread(self._route, client, key)

    async def differences(self) -> Differences:
        """Read all of the kernel's tables, and return what differs in them from what is desired.

        Raises:
            OSError: if the kernel cannot be read.
            MalformedMessage: if its answer is garbage.

        """
        # However many ask: the threads are also there for the kernel's changes.
        async with self._one_look:
            found, suspects, rules = await asyncio.to_thread(self._read)
        # The few that look different are compared here, on the event loop, where the tables stand still.
        desired = self._writer.desired
        operations = difference(desired, found, found.note_draining(desired, suspects))
        return Differences(
            len(self._controller.cache.services),
            [*rules, *(change_of(operation, self._name_of_role) for operation in operations)],
        )

    def _read(self) -> tuple[KernelTables, TableKeys, list[ChangeState]]:
        """Read the kernel; return what it has, our keys that differ from what is desired, and the rules' drift."""
        tables = self._open_tables()
        try:
            found = KernelTables(tables.read_virtual_servers(), tables.read_addresses(), tables.read_entries())
            rules = [ChangeState("set", "rules", finding) for finding in tables.packet_filter.drift()]
        finally:
            tables.close()
        desired = self._writer.desired
        wanted = snapshot(desired.virtual_servers)
        is_ours = self._ownership(found)
        differing = {
            key
            for key in wanted.keys() | found.virtual_servers.keys()
            if not is_same(wanted.get(key), found.virtual_servers.get(key)) and (key in wanted or is_ours(key))
        }
        entries = {(name, entry) for name, members in found.entries.items() for entry in members}
        suspects = TableKeys(
            differing, snapshot(desired.addresses).keys() ^ found.addresses, snapshot(desired.entries).keys() ^ entries
        )
        return found, suspects, rules

    def _ownership(self, found: KernelTables) -> Callable[[VirtualServerKey], bool]:
        """Return a function that says whether the next audit will call a virtual server ours: it reads all tables."""
        exclude, is_named = self.settings().exclude_cidrs, ownership.ledger(found)
        return lambda key: is_named(key) and not any(ip_address(key.address) in network for network in exclude)

    def _route(self, client: bytes, key: VirtualServerKey) -> RouteState:
        found = trace(
            client,
            key,
            tables=self._writer.actual,
            rules=self._rules().get(family_of(client), Masquerading()),
            host_addresses=self._host_addresses(),
            others=self._read_rules(family_of(client)),
            name_of_role=self._name_of_role,
        )
        owners = self._writer.desired.owners
        return RouteState(
            client=text_of(client),
            target=str(key),
            service=str(owners.get(key, "")),
            origin=found.origin.value,
            verdict=found.verdict.value,
            steps=list(found.steps),
            virtual_server=str(found.virtual_server),
            real_servers=list(map(str, found.real_servers)),
            masqueraded=found.masqueraded,
        )

    def _node(self, search: str, offset: int, limit: int) -> NodeState:
        desired, actual = self._writer.desired, self._writer.actual
        services = snapshot(self._controller.cache.services)
        matching = [name for name in self._in_order(services) if _matches(search, name, services[name])]
        shown = matching[offset : offset + limit]
        balanced = self._balanced(shown) if len(shown) <= RATED else {}
        settings, servers = self.settings(), snapshot(actual.virtual_servers)
        return NodeState(
            version=__version__,
            node=settings.node_name,
            scheduler=settings.scheduler,
            strict_arp=settings.strict_arp,
            service_proxy_name=settings.service_proxy_name,
            families=[family.label for family in self._families],
            started=self.started,
            now=datetime.now(UTC),
            programmed=self._controller.started.is_set(),
            healthy=self._health.healthy(),
            api_failures=[
                f"{kind} for {seconds:.0f} s: {error}" for kind, (seconds, error) in self._health.api_failures().items()
            ],
            virtual_servers=len(servers),
            real_servers=sum(len(server.real_servers) for server in servers.values()),
            draining=len(self._drains),
            addresses=len(actual.addresses),
            conflicts=len(desired.conflicts()),
            waiting=len(self._writer.retries),
            foreign_virtual_servers=sorted(map(str, snapshot(self._writer.foreign)))[:_NAMED],
            service_count=len(services),
            matching=len(matching),
            offset=offset,
            services=[
                summarize(
                    name,
                    services[name],
                    desired=desired,
                    actual=actual,
                    omissions=self._controller.problems.omissions_of(name),
                    balanced=balanced,
                    warming=len(self._controller.planner.warmups.seconds_left(name)),
                )
                for name in shown
            ],
            changes=list(self._history.changes.copy()),
            repairs=list(self._history.repairs.copy()),
            drains=self._drains.states(self._drains.virtual_servers(), time.monotonic(), _NAMED),
            refused=[name_of(key, self._name_of_role) for key in self._writer.retries.waiting(_NAMED)],
        )

    def _in_order(self, services: Mapping[ServiceName, Service]) -> list[ServiceName]:
        """Return the names in order: what is almost in order from the last time is sorted in a moment.

        Sorting 10,000 names from scratch would keep Python from the event loop for ten milliseconds without a break.
        """
        known = [name for name in self._names if name in services]
        if len(known) < len(services):
            seen = set(known)
            known += [name for name in services if name not in seen]
            known.sort()
        self._names = known
        return known

    def _balanced(self, names: Iterable[ServiceName]) -> dict[VirtualServerKey, Balanced]:
        keys = [key for name in names for key in self._writer.desired.virtual_servers_of(name)]
        found = self._observe(keys, real_servers=False)
        return {key: observation.traffic for key, observation in found.items() if observation is not None}

    def _service(self, service: Service, fragment: Fragment, slices: Iterable[EndpointSlice]) -> ServiceState:
        return service_state(
            service,
            fragment,
            desired=self._writer.desired,
            actual=self._writer.actual,
            observed=self._observe(fragment.virtual_servers, real_servers=True),
            drains=self._drains.states(fragment.virtual_servers, time.monotonic(), _NAMED),
            warming=self._controller.planner.warmups.seconds_left(fragment.name),
            name_of_role=self._name_of_role,
            nodes={
                endpoint.addresses[0]: quote(endpoint.node_name)
                for piece in slices
                for endpoint in piece.endpoints or ()
                if endpoint.node_name and endpoint.addresses
            },
        )

    def _observe(
        self, keys: Iterable[VirtualServerKey], *, real_servers: bool
    ) -> dict[VirtualServerKey, Observation | None]:
        ipvs = self._open_ipvs()
        try:
            return {key: ipvs.observe(key, real_servers=real_servers) for key in keys}
        finally:
            ipvs.close()


def _matches(search: str, name: ServiceName, service: Service) -> bool:
    if not search or search in str(name):
        return True
    spec, ingress = service.spec, service.status.load_balancer.ingress or ()
    addresses = [*(spec.cluster_ips or [spec.cluster_ip]), *(spec.external_ips or ()), *(entry.ip for entry in ingress)]
    return search in addresses
