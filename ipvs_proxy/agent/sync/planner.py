"""Plans Services: from the objects of one to its part of the desired tables.

Planning and writing are apart. A plan changes the desired tables at once, and what it touched waits here, in batches,
until somebody takes it to be written; a Service that is planned again before that waits where it waited. So Services
can be planned while the objects of others still come, and the kernel is not written before all are known.

A plan takes some 100 us. One that takes longer than others may wait is made in a thread. Only one plan is made at a
time, as it changes what is remembered of its Service and gives out packet marks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, KeysView, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import structlog

from ipvs_proxy.agent.sync.kernel_writer import KernelWriter
from ipvs_proxy.agent.sync.object_cache import ObjectCache
from ipvs_proxy.agent.sync.priority import goes_first
from ipvs_proxy.agent.sync.problems import Problems
from ipvs_proxy.agent.sync.schedulers import Schedulers
from ipvs_proxy.agent.sync.warmups import Warmups
from ipvs_proxy.kube.objects import Service
from ipvs_proxy.plan.budget import takes_long
from ipvs_proxy.plan.fragment import Context, Fragment, HealthCheck, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.reach import concerned
from ipvs_proxy.plan.roles import INTERNAL
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Family, Role, SetEntry

log = structlog.get_logger(__name__)

#: Services that are planned and written at one go; planning that many takes the event loop some 10 ms.
BATCH = 128


@dataclass(slots=True)
class Batch:
    """Services that are planned and will be written at one go: what that touched, and the health checks they want.

    Of 10,000 Services that are planned ahead, each with a ``TableKeys`` of its own, 9 MB were nothing but empty sets.
    """

    names: list[ServiceName] = field(default_factory=list)
    touched: TableKeys = field(default_factory=TableKeys)
    health_checks: dict[ServiceName, Mapping[Family, HealthCheck]] = field(default_factory=dict)


class Planner:
    """Makes plans of the objects in ``cache``, as things are on this node (``context``), for ``writer`` to write."""

    def __init__(
        self, cache: ObjectCache, writer: KernelWriter, *, context: Context, marks: Marks, problems: Problems
    ) -> None:
        self.context = context
        self.schedulers = Schedulers(writer.has_scheduler)
        self.warmups = Warmups()
        self._cache = cache
        self._writer = writer
        self._marks = marks
        self._marks_known = False
        self._problems = problems
        self._batches: dict[ServiceName, Batch] = {}
        self._filling = Batch()
        self._planning = asyncio.Lock()

    @property
    def planned(self) -> KeysView[ServiceName]:
        """The Services whose plans wait to be written."""
        return self._batches.keys()

    async def plan(self, name: ServiceName) -> None:
        """Plan a Service; what that touched waits to be taken."""
        batch = self._batches.get(name)
        if batch is None:
            if goes_first(name, self._cache.services):
                batch = Batch()
            elif len(self._filling.names) < BATCH:
                batch = self._filling
            else:
                batch = self._filling = Batch()
            batch.names.append(name)
            self._batches[name] = batch
        await self._plan_into(batch, name)

    def take_planned(self, names: Iterable[ServiceName]) -> Batch:
        """Take out what is planned for Services, and for those that were planned in one batch with them."""
        taken = Batch()
        for name in names:
            batch = self._batches.get(name)
            if batch is not None:
                for planned in batch.names:
                    del self._batches[planned]
                taken.touched.add(batch.touched)
                taken.health_checks |= batch.health_checks
                if batch is self._filling:
                    self._filling = Batch()
        return taken

    async def explain(self, service: Service) -> Fragment:
        """Plan a Service once more, for somebody who wants to know the reasons; nothing changes."""
        # Marks may only be given out when those in use are known.
        marks = self._marks if self._marks_known else Marks()
        name = ServiceName(service.metadata.namespace, service.metadata.name)
        fragment = await self._make_plan(name, service, marks)
        self.warmups.apply(name, fragment)
        return fragment

    def change_context(self, context: Context) -> set[ServiceName]:
        """Plan as things are now from here on; return the Services whose plans that concerns."""
        before, self.context = self.context, context
        if context == before:
            return set()
        is_concerned = concerned(before, context)
        return {name for name, service in self._cache.services.items() if is_concerned(service)}

    def restore_marks(self, entries: Mapping[Role, AbstractSet[SetEntry]]) -> None:
        """Take over the packet marks that the kernel's sets have, so that no other Service gets one of them."""
        for family in Family:
            self._marks.restore(entries.get(INTERNAL[family], ()))
        self._marks_known = True

    def forget_restored_marks(self) -> None:
        """Let marks go that no Service has taken up: all have been planned."""
        self._marks.forget_restored()

    async def _plan_into(self, batch: Batch, name: ServiceName) -> None:
        service = self._cache.services.get(name)
        try:
            if service is None:
                fragment = None
                self._marks.keep(name, ())
            else:
                fragment = await self._make_plan(name, service, self._marks)
        except Exception:
            # Planning is meant never to fail. Should it do so, this Service stays as it is and no other is harmed.
            log.exception("plan_failed", service=str(name))
            return
        self.warmups.follow(name, fragment, self._writer.desired)
        if fragment is not None:
            self.warmups.apply(name, fragment)
        touched = await self._writer.replace_fragment(name, fragment)
        self._problems.note_plan(name, fragment, touched)
        batch.touched.add(touched)
        batch.health_checks[name] = {} if fragment is None else fragment.health_checks

    async def _make_plan(self, name: ServiceName, service: Service, marks: Marks) -> Fragment:
        async with self._planning:
            while True:
                slices = list(self._cache.slices(name))
                arguments = service, slices, self.context, marks, self._cache.slice_cache(name)
                if takes_long(service, slices):
                    fragment = await asyncio.to_thread(plan_service, *arguments)
                else:
                    fragment = plan_service(*arguments)
                self.schedulers.note(self.context.scheduler)
                if not await self.schedulers.find({one.scheduler for one in fragment.schedulings.values()}):
                    return fragment
                self.context = self.context._replace(missing_schedulers=self.schedulers.missing)
