"""An agent's controller, kernel writer and audit over a fake kernel, without an API or a clock of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_network

from ipvs_proxy.agent.observe.health import HealthTracker
from ipvs_proxy.agent.observe.history import History
from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.agent.observe.reports import Reports
from ipvs_proxy.agent.sync import startup
from ipvs_proxy.agent.sync.audit import Audit
from ipvs_proxy.agent.sync.controller import KINDS, Controller
from ipvs_proxy.agent.sync.departed import DepartedEndpoints
from ipvs_proxy.agent.sync.drains import Drains, Ending
from ipvs_proxy.agent.sync.kernel_writer import KernelWriter
from ipvs_proxy.agent.sync.node_facts import NodeFacts
from ipvs_proxy.kube.events import Regarding
from ipvs_proxy.kube.objects import KubernetesObject, Node
from ipvs_proxy.kube.store import Change
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Context, HealthCheck, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.tables import Family
from tests.support.fake_dataplane import FakeDataplane
from tests.support.objects import endpoint, endpoint_slice, real, service, virtual

VIP = virtual("10.96.0.10")
POD1, POD2 = real("10.244.0.1"), real("10.244.0.2")


class Rig:
    """An agent without a kernel, an API or a clock of its own."""

    def __init__(self, plane: FakeDataplane, exclude: tuple[str, ...] = ()) -> None:
        self.plane = plane
        self.metrics = Metrics(tuple(Family))
        self.health = HealthTracker(tuple(Family), sync_period=30.0)
        self.endings: list[Ending] = []
        departed = DepartedEndpoints("node")
        self.drains = Drains(deadline=60.0, finished=self.endings.append, node_of=departed.node_of, clock=lambda: 0.0)
        self.writer = KernelWriter(
            plane,
            DesiredTables(),
            count=self.metrics.operations,
            observers=[self.drains],
            exclude=[ip_network(cidr) for cidr in exclude],
        )
        self.interfaces: dict[str, set[bytes]] = {}
        self.adapted: list[Node | None] = []
        self.wishes: dict[ServiceName, Mapping[Family, HealthCheck]] = {}
        self.events: list[str] = []
        self.history = History()
        self.controller = Controller(
            self.writer,
            context=Context("node"),
            recorder=Reports(
                self.metrics,
                self.health,
                wish=lambda name, wanted: self.wishes.update({name: wanted}),
                emit=self.emit,
                history=self.history,
            ),
            marks=Marks(),
            facts=NodeFacts(lambda: self.interfaces),
            departed=departed,
            adapt_rules=lambda node: bool(self.adapted.append(node)),
        )
        self.repairs: dict[str, int] = {}
        self.audit = Audit(
            self.writer,
            repair_rules=plane.repair_rules,
            reader=plane,
            repaired=lambda table, found: self.repairs.update({table: self.repairs.get(table, 0) + len(found)}),
        )

    def emit(self, regarding: Regarding, **fields: str) -> None:
        self.events.append(f"{regarding} {fields['reason']} {fields['note']}")

    def add(self, *objects: KubernetesObject) -> None:
        self.controller.changed([Change(type(item).__name__, None, item) for item in objects])

    def replace(self, old: KubernetesObject, new: KubernetesObject | None) -> None:
        self.controller.changed([Change(type(old).__name__, old, new)])

    def all_known(self) -> None:
        for kind in KINDS:
            self.controller.synced(kind)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)


@asynccontextmanager
async def running(
    plane: FakeDataplane, *objects: KubernetesObject, exclude: tuple[str, ...] = ()
) -> AsyncIterator[Rig]:
    """Run an agent that knows these objects, wait until it has started, and end it afterwards."""
    rig = Rig(plane, exclude)
    tasks = [asyncio.create_task(startup.run(rig.controller)), asyncio.create_task(rig.writer.retry_for_ever())]
    rig.add(*objects)
    rig.all_known()
    try:
        await rig.until(rig.controller.started.is_set)
        yield rig
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        rig.writer.close()


WEB, SLICE = service("web"), endpoint_slice(endpoint("10.244.0.1"), endpoint("10.244.0.2"))
