"""Follows changes: from changed objects to changed tables, at a cost that is that of the change.

The reflectors (or the manifests) call ``changed``; the Services concerned become dirty; the loop plans them again, and
the kernel writer compares what their plans touched. The invariant: a Service whose objects or surroundings changed is
dirty, or planned and waiting to be written, until the kernel writer has had it; so whatever happens while something is
awaited, no change is lost. Services that did not change are never looked at.

What has to happen before there are changes to follow is in ``startup``.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime

import structlog

from ipvs_proxy.agent.observe.thinning import Thinning
from ipvs_proxy.agent.sync import planner
from ipvs_proxy.agent.sync.departed import DepartedEndpoints
from ipvs_proxy.agent.sync.kernel_writer import KernelWriter
from ipvs_proxy.agent.sync.node_facts import NodeFacts
from ipvs_proxy.agent.sync.object_cache import ObjectCache
from ipvs_proxy.agent.sync.planner import Planner
from ipvs_proxy.agent.sync.priority import API_SERVER, find_first
from ipvs_proxy.agent.sync.problems import Problems
from ipvs_proxy.agent.sync.recorder import Recorder
from ipvs_proxy.kube.objects import EndpointSlice, Node
from ipvs_proxy.kube.peers import Peer
from ipvs_proxy.kube.store import Change
from ipvs_proxy.kube.texts import quote
from ipvs_proxy.plan.fragment import Context, ServiceName
from ipvs_proxy.plan.marks import Marks

log = structlog.get_logger(__name__)

KINDS = frozenset(("Service", "EndpointSlice", "Node"))


class KnownKinds:
    """Of which kinds all objects have come: events for the Node, for the Services and for all kinds.

    ``since`` is when the last kind was known, in seconds of the monotonic clock.
    """

    def __init__(self) -> None:
        self.node = asyncio.Event()
        self.services = asyncio.Event()
        self.all = asyncio.Event()
        self.since = 0.0
        self._unknown = set(KINDS)

    def note(self, kind: str) -> None:
        """Note that the objects of a kind are known now."""
        self._unknown.discard(kind)
        if kind == "Node":
            self.node.set()
        if kind == "Service":
            self.services.set()
        if not self._unknown and not self.all.is_set():
            self.since = time.monotonic()
            self.all.set()


class Controller:
    """Keeps account of what has to be planned again, and has it planned and written.

    ``adapt_rules`` has the packet rules follow the own Node, and returns whether they have to be written again.
    """

    def __init__(
        self,
        writer: KernelWriter,
        *,
        context: Context,
        recorder: Recorder,
        marks: Marks,
        facts: NodeFacts,
        departed: DepartedEndpoints,
        adapt_rules: Callable[[Node | None], bool],
        min_sync_period: float = 0.0,
    ) -> None:
        self.cache = ObjectCache()
        self.problems = Problems(recorder, writer.desired, self.cache.services)
        self.planner = Planner(self.cache, writer, context=context, marks=marks, problems=self.problems)
        self.writer = writer
        self.known = KnownKinds()
        #: Set once everything is written for the first time.
        self.started = asyncio.Event()
        #: The Services that have to be planned again.
        self.dirty: set[ServiceName] = set()
        self._recorder = recorder
        self._facts = facts
        self._departed = departed
        self._adapt_rules = adapt_rules
        self._min_sync_period = min_sync_period
        self._rules_outdated = False
        self._wake = asyncio.Event()
        self._thinning = Thinning()
        self._triggers: dict[ServiceName, list[datetime]] = {}
        self._born = datetime.now(UTC)

    def changed(self, changes: Sequence[Change]) -> None:
        """Take in changes of objects; the Services concerned become dirty."""
        for change in changes:
            effect = self.cache.change(change.old, change.new)
            if isinstance(change.old, EndpointSlice):
                self._departed.note(change.old)
            self.dirty.update(effect.services)
            if effect.node is not None:
                self._take_node(effect.node)
            if API_SERVER in effect.services and self._facts.update_api_slices(list(self.cache.slices(API_SERVER))):
                self._take_facts()
            if effect.triggered is not None and effect.triggered > self._born:
                for name in effect.services:
                    self._triggers.setdefault(name, []).append(effect.triggered)
        for kind, number in Counter([change.kind for change in changes]).items():
            self._recorder.changed(kind, number, pending=len(self.dirty))
        self._wake_up()

    def synced(self, kind: str) -> None:
        """Note that the objects of a kind are known now."""
        self.known.note(kind)

    def skipped(self, kind: str, key: str, error: str) -> None:
        """Note that an object could not be decoded; its last good version stays in use."""
        self._recorder.skipped(kind, key, error)
        more = self._thinning.admit((kind, key))
        if more is not None:
            log.warning("object_skipped", kind=kind, object=quote(key), error=quote(error), **more)

    def take_peers(self, peers: Collection[Peer]) -> None:
        """Take in where the connections to the API server lead; the Services that this concerns become dirty."""
        if self._facts.update_peers(peers):
            self._take_facts()
            self._wake_up()

    async def refresh_facts(self) -> None:
        """Read this node's addresses again; the Services that depend on what changed become dirty.

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
        """Go on with other settings: every Service is planned again, and what does not differ is not written.

        Raises as ``refresh_facts`` does.
        """
        self._min_sync_period = min_sync_period
        self.planner.context = self.planner.context._replace(
            scheduler=scheduler, compatible=compatible, external_ips=external_ips
        )
        self._rules_outdated |= self._adapt_rules(self.cache.node)
        self.dirty |= self.cache.services.keys()
        self._wake_up()
        await self.refresh_facts()

    def replan(self, names: Collection[ServiceName]) -> None:
        """Have some Services planned again."""
        self.dirty |= self.cache.services.keys() & names
        self._wake_up()

    async def look_for_schedulers(self) -> None:
        """Have all Services planned again if the kernel has a scheduler now that it lacked."""
        if await self.planner.schedulers.find_missing():
            missing = self.planner.schedulers.missing
            self.planner.context = self.planner.context._replace(missing_schedulers=missing)
            self.replan(self.cache.services.keys())

    def note_rules_written(self) -> None:
        """Note that the packet rules are as the own Node wants them."""
        self._rules_outdated = False

    def note_started(self) -> None:
        """Note that everything is written for the first time."""
        self.planner.warmups.start()
        self.started.set()
        self._recorder.started(self.cache.node, self.planner.context.node_name)

    async def follow_for_ever(self) -> None:
        """Plan and write what becomes dirty."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.write_dirty()
            await asyncio.sleep(self._min_sync_period)

    async def write_dirty(self) -> int:
        """Plan and write the dirty Services, in batches; return the number of operations that succeeded."""
        begun = time.monotonic()
        if self._rules_outdated:
            await self._write_rules()
        dirty, self.dirty = self.dirty, set()
        names = dirty | self.planner.planned
        first = find_first(names, self.cache.services)
        done = await self._write_batch(first, dirty) if first else 0
        if first and not self.started.is_set():
            waited = time.monotonic() - self.known.since
            log.info("first_programmed", services=list(map(str, first)), milliseconds=round(waited * 1000, 1))
        rest = sorted(names.difference(first))
        for start in range(0, len(rest), planner.BATCH):
            done += await self._write_batch(rest[start : start + planner.BATCH], dirty)
        if not self.dirty:
            self._departed.clear()
        self._report([*first, *rest], operations=done, seconds=time.monotonic() - begun)
        return done

    def _report(self, services: list[ServiceName], *, operations: int, seconds: float) -> None:
        self._recorder.synced(seconds=seconds, complete=not self.writer.retries.is_held_up())
        if self.started.is_set() and operations:
            log.info(
                "programmed",
                services=len(services),
                first=str(services[0]),
                operations=operations,
                milliseconds=round(seconds * 1000, 1),
            )
            self._recorder.wrote(services, operations=operations, seconds=seconds)

    async def _write_rules(self) -> None:
        """Have the packet rules follow the own Node; should that fail, the next audit does it."""
        self._rules_outdated = False
        try:
            changes = await self.writer.repair_rules()
        except (OSError, ValueError) as error:
            log.error("rules_not_written", error=str(error))
        else:
            log.info("rules_adapted", changes=len(changes))

    async def _write_batch(self, names: list[ServiceName], dirty: set[ServiceName]) -> int:
        for name in names:
            if name in dirty:
                await self.planner.plan(name)
        planned = self.planner.take_planned(names)
        operations = await self.writer.write(planned.touched)
        for name, wanted in planned.health_checks.items():
            self._recorder.health_checks(name, wanted)
        self._recorder.no_local_endpoints(self.problems.count_no_local())
        now = datetime.now(UTC)
        for name in names:
            for moment in self._triggers.pop(name, ()):
                self._recorder.programmed(seconds_since_trigger=(now - moment).total_seconds())
        return len(operations)

    def _take_node(self, node: Node) -> None:
        self._recorder.node_changed(node)
        if self._facts.update(node):
            self._take_facts()
        self._rules_outdated |= self._adapt_rules(node)

    def _take_facts(self) -> None:
        self.dirty |= self.planner.change_context(self.planner.context._replace(**self._facts.facts._asdict()))

    def _wake_up(self) -> None:
        if self.dirty or self._rules_outdated:
            self._recorder.queued()
            self._wake.set()
