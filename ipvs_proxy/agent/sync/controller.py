"""From changed objects to changed tables: the loop that makes the cost of a change that of the change.

The reflectors (or the manifests) call ``changed``; the Services concerned become dirty; the loop plans them anew and
hands the keys of their fragments to the programmer. Nothing that depends on an object is written until it is known:
rules wait for the Node, and virtual servers, addresses and members until Services and EndpointSlices are known, too;
planning begins as soon as all Services have come, while EndpointSlices still do and the kernel is read. The API server
and the cluster's DNS go first and by themselves, as everything else waits for them; the others follow in batches.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from ipvs_proxy.agent.observe.thinning import Thinning
from ipvs_proxy.agent.sync.kernel_writer import Programmer
from ipvs_proxy.agent.sync.node_facts import NodeFacts
from ipvs_proxy.agent.sync.object_cache import Cache
from ipvs_proxy.agent.sync.priority import API_SERVER, find_first, goes_first
from ipvs_proxy.agent.sync.problems import Findings
from ipvs_proxy.agent.sync.recorder import Recorder
from ipvs_proxy.kube.objects import EndpointSlice, Node, Service
from ipvs_proxy.kube.peers import Peer
from ipvs_proxy.kube.store import Change
from ipvs_proxy.kube.texts import quote
from ipvs_proxy.plan.addresses import parse_address
from ipvs_proxy.plan.budget import takes_long
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.fragment import Context, Fragment, HealthCheck, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.reach import concerned
from ipvs_proxy.plan.roles import INTERNAL
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Family

log = structlog.get_logger(__name__)

KINDS = frozenset(("Service", "EndpointSlice", "Node"))
#: What was read of the kernel so many seconds before all objects were known is read again.
TAKE_OVER_AGAIN = 30.0
#: Services planned and programmed at one go; planning so many takes the event loop some 10 ms.
BATCH = 128
#: Seconds between two looks at whether there is something to plan before all objects are known.
AHEAD_INTERVAL = 0.02
#: Seconds of planning between two looks at what else the event loop has to do meanwhile.
AHEAD_TURN = 0.01
#: So many Services are planned between two looks at the clock; a look is a system call in some virtual machines.
CLOCK_INTERVAL = 16


@dataclass(slots=True)
class _Batch:
    """Services that are planned and will be programmed at one go: what that touched, and which health checks they want.

    Of 10,000 Services that are planned ahead, each with a ``TableKeys`` of its own, 9 MB were nothing but empty sets.
    """

    names: list[ServiceName] = field(default_factory=list)
    touched: TableKeys = field(default_factory=TableKeys)
    health_checks: dict[ServiceName, Mapping[Family, HealthCheck]] = field(default_factory=dict)


class Controller:
    """Keeps the dirty set and turns it into calls of the programmer."""

    def __init__(
        self,
        programmer: Programmer,
        *,
        context: Context,
        recorder: Recorder,
        marks: Marks,
        facts: NodeFacts,
        adapt_rules: Callable[[Node | None], bool],
        min_sync_period: float = 0.0,
    ) -> None:
        self.cache = Cache()
        self._marks = marks
        self._facts = facts
        self._adapt_rules = adapt_rules
        self._rules_outdated = False
        self._departed: list[EndpointSlice] = []
        self._nodes: dict[bytes, str] = {}
        self.started = asyncio.Event()
        self._programmer = programmer
        self._context = context
        self._recorder = recorder
        self._min_sync_period = min_sync_period
        self._unknown = set(KINDS)
        self._all_known = asyncio.Event()
        self._node_known = asyncio.Event()
        self._services_known = asyncio.Event()
        self._framed = asyncio.Event()
        self._taken_over = 0.0
        self._dirty: set[ServiceName] = set()
        self._planned: dict[ServiceName, _Batch] = {}
        self._batch = _Batch()
        self._wake = asyncio.Event()
        self._plans = asyncio.Lock()
        self._thinning = Thinning()
        self._triggers: dict[ServiceName, list[datetime]] = {}
        self._findings = Findings(recorder, programmer.desired, self.cache.services)
        self._born = datetime.now(UTC)
        self._known_since = 0.0

    def changed(self, changes: Sequence[Change]) -> None:
        """Take in changes of objects; the Services concerned become dirty."""
        for change in changes:
            effect = self.cache.change(change.old, change.new)
            if isinstance(change.old, EndpointSlice):
                self._departed.append(change.old)
            self._dirty |= effect.services
            if effect.node is not None:
                self._take_node(effect.node)
            if API_SERVER in effect.services and self._facts.update_api_slices(list(self.cache.slices(API_SERVER))):
                self._take_facts()
            if effect.triggered is not None and effect.triggered > self._born:
                for name in effect.services:
                    self._triggers.setdefault(name, []).append(effect.triggered)
        for kind, number in Counter([change.kind for change in changes]).items():
            self._recorder.changed(kind, number, pending=len(self._dirty))
        self._wake_up()

    def synced(self, kind: str) -> None:
        """Note that the objects of a kind are known now."""
        self._unknown.discard(kind)
        if kind == "Node":
            self._node_known.set()
        if kind == "Service":
            self._services_known.set()
        if not self._unknown:
            self._all_known.set()

    def skipped(self, kind: str, key: str, error: str) -> None:
        """Note that an object could not be decoded; its last good version stays in use."""
        self._recorder.skipped(kind, key, error)
        more = self._thinning.admit((kind, key))
        if more is not None:
            log.warning("object_skipped", kind=kind, object=quote(key), error=quote(error), **more)

    async def explain(self, service: Service) -> Fragment:
        """Plan a Service once more, for somebody who wants to know the reasons; nothing changes."""
        # Marks may only be given out when those in use are known.
        marks = self._marks if self._framed.is_set() else Marks()
        return await self._plan_one(ServiceName(service.metadata.namespace, service.metadata.name), service, marks)

    def omissions_of(self, name: ServiceName) -> Sequence[Omission]:
        """Return what the plan leaves out of a Service."""
        return self._findings.omissions_of(name)

    def node_of(self, address: bytes) -> str:
        """Return the other node of an endpoint that has just left, or been left out; empty if it is not known."""
        for piece in self._departed:
            for endpoint in piece.endpoints or ():
                if endpoint.node_name and endpoint.node_name != self._context.node_name and endpoint.addresses:
                    packed = parse_address(endpoint.addresses[0])
                    if packed is not None:
                        self._nodes[packed] = endpoint.node_name
        self._departed.clear()
        return self._nodes.get(address, "")

    def take_peers(self, peers: Collection[Peer]) -> None:
        """Take in where the connections to the API server lead; the Services that this concerns become dirty."""
        if self._facts.update_peers(peers):
            self._take_facts()
            self._wake_up()

    async def refresh_facts(self) -> None:
        """Read this node's addresses anew; the Services that depend on what changed become dirty.

        Raises:
            OSError: if they cannot be read.
            MalformedMessage: if the kernel's answer is garbage.

        """
        if await self._facts.refresh():
            self._take_facts()
            self._wake_up()

    async def reconfigure(
        self, *, scheduler: str, compatible: bool, min_sync_period: float, external_ips: bool = True
    ) -> None:
        """Go on with other settings: every Service is planned anew, and what does not differ is not written.

        Raises as ``refresh_facts`` does.
        """
        self._min_sync_period = min_sync_period
        self._context = self._context._replace(scheduler=scheduler, compatible=compatible, external_ips=external_ips)
        self._rules_outdated |= self._adapt_rules(self.cache.node)
        self._dirty |= self.cache.services.keys()
        self._wake_up()
        await self.refresh_facts()

    def _take_node(self, node: Node) -> None:
        self._recorder.node_changed(node)
        if self._facts.update(node):
            self._take_facts()
        self._rules_outdated |= self._adapt_rules(node)

    def _take_facts(self) -> None:
        before, self._context = self._context, self._context._replace(**self._facts.facts._asdict())
        if self._context != before:
            is_concerned = concerned(before, self._context)
            self._dirty |= {name for name, service in self.cache.services.items() if is_concerned(service)}

    def _wake_up(self) -> None:
        if self._dirty or self._rules_outdated:
            self._recorder.queued()
            self._wake.set()

    async def run(self) -> None:
        """Take the kernel over while the objects come, program all of them, then follow the changes for ever."""
        await asyncio.gather(self._take_over(), self._plan_meanwhile(), self._know_all())
        if time.monotonic() - self._taken_over > TAKE_OVER_AGAIN:
            await self._take_over()
        if self.cache.node is None:
            log.warning("node_not_found", node=self._context.node_name)
        await self._start()
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._sync()
            await asyncio.sleep(self._min_sync_period)

    async def _know_all(self) -> None:
        await self._all_known.wait()
        self._known_since = time.monotonic()

    async def _plan_meanwhile(self) -> None:
        """Plan what is there until all objects are known; nothing but the marks in use depends on the kernel."""
        await self._framed.wait()
        await self._services_known.wait()
        while not self._all_known.is_set():
            await self._plan_ahead()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_known.wait(), AHEAD_INTERVAL)

    async def _plan_ahead(self) -> None:
        """Plan Services that have EndpointSlices already; should more come, they are planned again."""
        until = time.monotonic() + AHEAD_TURN
        for index, name in enumerate(sorted(name for name in self._dirty if self.cache.has_slices(name))):
            if not index % CLOCK_INTERVAL and time.monotonic() > until:
                await asyncio.sleep(0)
                # What everybody waits for goes first once all is known.
                if self._all_known.is_set():
                    return
                until = time.monotonic() + AHEAD_TURN
            self._dirty.discard(name)
            await self._plan(name)

    async def _plan(self, name: ServiceName) -> None:
        """Plan a Service; what that touched is kept until it is programmed."""
        batch = self._planned.get(name)
        if batch is None:
            if goes_first(name, self.cache.services):
                batch = _Batch()
            elif len(self._batch.names) < BATCH:
                batch = self._batch
            else:
                batch = self._batch = _Batch()
            batch.names.append(name)
            self._planned[name] = batch
        await self._compute(name, batch)

    def _restore_marks(self) -> None:
        for family in Family:
            self._marks.restore(self._programmer.actual.entries.get(INTERNAL[family], ()))

    async def _take_over(self) -> None:
        """Read what is in the kernel and make its frame right. Of the objects, the rules need only the own Node."""
        await self._node_known.wait()
        delay = 1.0
        while True:
            try:
                await self.refresh_facts()
                await self._programmer.take_over_frame()
                self._restore_marks()
                self._framed.set()
                await self._programmer.take_over_virtual_servers()
                break
            except (OSError, ValueError) as error:
                log.error("kernel_not_readable", error=str(error), retry_in_seconds=delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 30.0)
        self._rules_outdated = False
        self._taken_over = time.monotonic()

    async def _start(self) -> None:
        begun = time.monotonic()
        self._dirty |= self.cache.services.keys() - self._planned.keys()
        operations = await self._sync()
        self._marks.forget_restored()
        operations += len(await self._programmer.program_everything())
        await self._programmer.take_over_rules()
        self.started.set()
        self._recorder.started(self.cache.node, self._context.node_name)
        log.info(
            "started",
            services=len(self.cache.services),
            virtual_servers=len(self._programmer.desired.virtual_servers),
            operations=operations,
            kernel_writes=self._programmer.kernel_writes(),
            seconds=round(time.monotonic() - begun, 3),
        )

    async def _sync(self) -> int:
        """Plan and program the dirty Services, in batches; return the number of operations that succeeded."""
        begun = time.monotonic()
        if self._rules_outdated:
            await self._write_rules()
        dirty, self._dirty = self._dirty, set()
        names = dirty | self._planned.keys()
        first = find_first(names, self.cache.services)
        done = await self._sync_batch(first, dirty) if first else 0
        if first and not self.started.is_set():
            waited = time.monotonic() - self._known_since
            log.info("first_programmed", services=list(map(str, first)), milliseconds=round(waited * 1000, 1))
        rest = sorted(names.difference(first))
        for start in range(0, len(rest), BATCH):
            done += await self._sync_batch(rest[start : start + BATCH], dirty)
        if not self._dirty:
            self._departed.clear()
            self._nodes.clear()
        seconds = time.monotonic() - begun
        self._recorder.synced(seconds=seconds, complete=not self._programmer.retries)
        if self.started.is_set() and done:
            log.info(
                "programmed",
                services=len(names),
                first=str((first or rest)[0]),
                operations=done,
                milliseconds=round(seconds * 1000, 1),
            )
            self._recorder.wrote([*first, *rest], operations=done, seconds=seconds)
        return done

    async def _write_rules(self) -> None:
        """Have the packet rules follow the own Node; should that fail, the next audit does it."""
        self._rules_outdated = False
        try:
            findings = await self._programmer.repair_rules()
        except (OSError, ValueError) as error:
            log.error("rules_not_written", error=str(error))
        else:
            log.info("rules_adapted", changes=len(findings))

    async def _sync_batch(self, names: list[ServiceName], dirty: set[ServiceName]) -> int:
        for name in names:
            if name in dirty:
                await self._plan(name)
        planned = self._take_planned(names)
        operations = await self._programmer.program(planned.touched)
        for name, wanted in planned.health_checks.items():
            self._recorder.health_checks(name, wanted)
        self._recorder.no_local_endpoints(self._findings.count_no_local())
        now = datetime.now(UTC)
        for name in names:
            for moment in self._triggers.pop(name, ()):
                self._recorder.programmed(seconds_since_trigger=(now - moment).total_seconds())
        return len(operations)

    def _take_planned(self, names: Iterable[ServiceName]) -> _Batch:
        """Take out what is planned for Services, and for those that were planned in one batch with them."""
        taken = _Batch()
        for name in names:
            batch = self._planned.get(name)
            if batch is not None:
                for planned in batch.names:
                    del self._planned[planned]
                taken.touched.add(batch.touched)
                taken.health_checks |= batch.health_checks
                if batch is self._batch:
                    self._batch = _Batch()
        return taken

    async def _compute(self, name: ServiceName, batch: _Batch) -> None:
        service = self.cache.services.get(name)
        try:
            if service is None:
                fragment = None
                self._marks.keep(name, ())
            else:
                fragment = await self._plan_one(name, service, self._marks)
        except Exception:
            # Planning is meant never to fail. Should it do so, this Service stays as it is and no other is harmed.
            log.exception("plan_failed", service=str(name))
            return
        async with self._programmer.comparing:
            touched = self._programmer.desired.replace(name, fragment)
        self._findings.take(name, fragment, touched)
        batch.touched.add(touched)
        batch.health_checks[name] = {} if fragment is None else fragment.health_checks

    async def _plan_one(self, name: ServiceName, service: Service, marks: Marks) -> Fragment:
        """Plan a Service, in a thread if that takes longer than others may wait.

        One at a time: a plan changes what is remembered of the Service, and gives out marks.
        """
        async with self._plans:
            slices = list(self.cache.slices(name))
            arguments = service, slices, self._context, marks, self.cache.slice_cache(name)
            if takes_long(service, slices):
                return await asyncio.to_thread(plan_service, *arguments)
            return plan_service(*arguments)
