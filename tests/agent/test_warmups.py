"""Slow start: who warms up, in which steps, and how much work it is."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

import pytest
from msgspec import structs

from ipvs_proxy.agent.sync.warmups import Warmups, warm_up_for_ever
from ipvs_proxy.kube.objects import Endpoint, EndpointPort, Service, ServicePort
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Context, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.tables import RealServerKey, text_of
from ipvs_proxy.plan.warming import STEPS, step_of
from tests.support.clock import Clock
from tests.support.fake_dataplane import FakeDataplane
from tests.support.objects import HTTP, endpoint, endpoint_slice, real, service, virtual
from tests.support.rig import running

NAME = ServiceName("default", "web")
VIP = virtual("10.96.0.10")


def slow(seconds: str = "10s", **more: str) -> Service:
    made = service()
    annotations = {"ipvs-proxy.io/slow-start": seconds, **more}
    return structs.replace(made, metadata=structs.replace(made.metadata, annotations=annotations))


class Life:
    """The desired tables of one Service that is planned again and again."""

    def __init__(self, *, started: bool = True) -> None:
        self.clock = Clock()
        self.warmups = Warmups(self.clock)
        self.desired = DesiredTables()
        if started:
            self.warmups.start()

    def plan(
        self, made: Service | None, *pods: int | Endpoint, ports: Iterable[EndpointPort] = (EndpointPort("http", 8080),)
    ) -> dict[str, int]:
        """Plan with these pods; return the weight of each address."""
        if made is None:
            self.warmups.follow(NAME, None, self.desired)
            self.desired.replace(NAME, None)
            return {}
        endpoints = [pod if isinstance(pod, Endpoint) else endpoint(f"10.0.0.{pod}") for pod in pods]
        fragment = plan_service(made, [endpoint_slice(*endpoints, ports=ports)], Context("here"), Marks())
        self.warmups.follow(NAME, fragment, self.desired)
        self.warmups.apply(NAME, fragment)
        self.desired.replace(NAME, fragment)
        servers = self.desired.virtual_servers[VIP].real_servers
        return {text_of(key.address)[-1]: one.weight for key, one in servers.items()}


def test_a_new_endpoint_gets_its_weight_in_steps_from_1_up() -> None:
    life = Life()
    life.plan(slow(), 1, 2)
    weights = []
    for _ in range(12):
        weights.append(life.plan(slow(), 1, 2, 3))
        life.clock.now += 1.0
    assert [found["3"] for found in weights] == [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10]
    assert all(found["1"] == found["2"] == 10 for found in weights)
    assert len(life.warmups) == 0


def test_weights_rise_to_what_the_rules_say() -> None:
    life, made = Life(), slow(**{"ipvs-proxy.io/weights": "*:5"})
    life.plan(made, 1)
    assert life.plan(made, 1, 2) == {"1": 50, "2": 1}
    life.clock.now += 5.0
    assert life.plan(made, 1, 2) == {"1": 50, "2": 25}


def test_what_is_there_at_the_start_is_warm() -> None:
    life = Life(started=False)
    assert life.plan(slow(), 1) == {"1": 10}
    assert life.plan(slow(), 1, 2) == {"1": 10, "2": 10}
    life.warmups.start()
    assert life.plan(slow(), 1, 2) == {"1": 10, "2": 10}


def test_endpoints_that_all_come_at_once_are_all_alike() -> None:
    life = Life()
    assert life.plan(slow(), 1, 2) == {"1": 10, "2": 10}


@pytest.mark.parametrize("between", [(1,), (1, endpoint("10.0.0.2", ready=False))], ids=["gone", "not ready"])
def test_an_endpoint_that_comes_back_warms_up_again(between: tuple[int | Endpoint, ...]) -> None:
    life = Life()
    life.plan(slow(), 1, 2)
    life.plan(slow(), *between)
    assert life.plan(slow(), 1, 2) == {"1": 10, "2": 1}


def test_an_endpoint_that_goes_while_it_warms_up_is_forgotten() -> None:
    life = Life()
    life.plan(slow(), 1)
    life.plan(slow(), 1, 2)
    life.clock.now += 5.0
    life.plan(slow(), 1)
    assert (len(life.warmups), life.warmups.due()) == (0, [])
    assert life.plan(slow(), 1, 2) == {"1": 10, "2": 1}


def test_a_paused_endpoint_stays_paused_while_it_warms_up() -> None:
    life, made = Life(), slow(**{"ipvs-proxy.io/weights": "node=there:0"})
    life.plan(made, 1)
    assert life.plan(made, 1, endpoint("10.0.0.2", node="there"))["2"] == 0


def test_without_the_annotation_an_endpoint_has_its_full_weight_at_once() -> None:
    life = Life()
    life.plan(slow(), 1)
    life.plan(slow(), 1, 2)
    assert life.plan(service(), 1, 2) == {"1": 1, "2": 1}
    assert len(life.warmups) == 0


def test_another_duration_counts_from_when_the_endpoint_came() -> None:
    life = Life()
    life.plan(slow("10s"), 1)
    life.plan(slow("10s"), 1, 2)
    life.clock.now += 5.0
    assert life.plan(slow("100s"), 1, 2)["2"] == 1
    assert life.plan(slow("5s"), 1, 2)["2"] == 10


def test_a_service_that_goes_takes_its_endpoints_along() -> None:
    life = Life()
    life.plan(slow(), 1)
    life.plan(slow(), 1, 2)
    assert life.warmups.seconds_left(NAME) == {real("10.0.0.2"): 10.0}
    life.plan(None)
    assert (len(life.warmups), life.warmups.seconds_left(NAME)) == (0, {})


PORTS = [EndpointPort("http", 8080), EndpointPort("more", 8081)]


def with_port_81(made: Service) -> Service:
    return structs.replace(made, spec=service(ports=[HTTP, ServicePort(port=81, name="more")]).spec)


def test_endpoints_of_a_virtual_server_that_another_service_owns_warm_up_once() -> None:
    life, other = Life(), ServiceName("default", "api")
    older = service("api", ports=[ServicePort(port=81)], age=60)
    life.desired.replace(other, plan_service(older, [], Context("here"), Marks()))
    for pods in [(1,), *[(1, 2)] * 15]:
        life.plan(with_port_81(slow()), *pods, ports=PORTS)
        life.clock.now += 1.0
    assert life.desired.owners[virtual("10.96.0.10", 81)] == other
    assert (len(life.warmups), life.warmups.due()) == (0, [])


def test_endpoints_at_a_port_that_is_new_are_all_alike() -> None:
    life = Life()
    life.plan(slow(), 1, 2)
    life.plan(with_port_81(slow()), 1, 2, ports=PORTS)
    assert len(life.warmups) == 0
    life.plan(with_port_81(slow()), 1, 2, 3, ports=PORTS)
    assert life.warmups.seconds_left(NAME).keys() == {real("10.0.0.3", 8080), real("10.0.0.3", 8081)}


def test_whoever_asks_for_an_explanation_does_not_take_the_step() -> None:
    life = Life()
    life.plan(slow(), 1)
    life.plan(slow(), 1, 2)
    life.clock.now += 3.0
    fragment = plan_service(slow(), [endpoint_slice(endpoint("10.0.0.2"))], Context("here"), Marks())
    life.warmups.apply(NAME, fragment)
    assert fragment.virtual_servers[VIP][0].real_servers[real("10.0.0.2")].weight == 1
    assert life.warmups.due() == [NAME]


def test_steps_are_due_when_they_are_reached() -> None:
    life = Life()
    assert life.warmups.due() == []
    life.plan(slow("20s"), 1)
    life.plan(slow("20s"), 1, 2)
    life.clock.now += 1.9
    assert life.warmups.due() == []
    life.clock.now += 0.2
    assert life.warmups.due() == [NAME]
    assert [step_of(elapsed, 20.0) for elapsed in (0.0, 1.9, 2.0, 19.9, 20.0, 99.0)] == [0, 0, 1, 9, STEPS, STEPS]


async def test_only_the_service_that_warms_up_is_planned_again_and_nothing_once_nobody_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ipvs_proxy.agent.sync.warmups.INTERVAL", 0.001)
    life = Life()
    planned: list[ServiceName] = []
    begun = asyncio.Event()

    def replan(names: Collection[ServiceName]) -> None:
        planned.extend(names)
        begun.set()
        life.clock.now += 1.0
        life.plan(slow("1s"), 1, 2)

    task = asyncio.create_task(warm_up_for_ever(life.warmups, replan))
    try:
        await asyncio.sleep(0.05)
        assert planned == []
        life.plan(slow("1s"), 1)
        life.plan(slow("1s"), 1, 2)
        life.clock.now += 0.3
        async with asyncio.timeout(10):
            await begun.wait()
        await asyncio.sleep(0.05)
        assert planned == [NAME]
    finally:
        task.cancel()


async def test_a_slow_start_of_hours_holds_up_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipvs_proxy.agent.sync.warmups.INTERVAL", 0.001)
    life, other = Life(), ServiceName("default", "other")
    replanned = asyncio.Event()

    def follow_other(*pods: int) -> None:
        pieces = [endpoint_slice(*(endpoint(f"10.0.1.{pod}") for pod in pods), of="other")]
        fragment = plan_service(structs.replace(slow("5s"), metadata=named), pieces, Context("here"), Marks())
        life.warmups.follow(other, fragment, life.desired)
        life.desired.replace(other, fragment)

    named = structs.replace(slow("5s").metadata, name="other")
    life.plan(slow("3600s"), 1)
    life.plan(slow("3600s"), 1, 2)
    task = asyncio.create_task(
        warm_up_for_ever(life.warmups, lambda names: replanned.set() if other in names else None)
    )
    try:
        await asyncio.sleep(0.05)
        follow_other(1)
        follow_other(1, 2)
        life.clock.now += 1.0
        async with asyncio.timeout(10):
            await replanned.wait()
    finally:
        task.cancel()


async def test_one_message_a_step_and_none_afterwards() -> None:
    made, two = slow(), [endpoint("10.0.0.1"), endpoint("10.0.0.2")]
    async with running(FakeDataplane(), made, endpoint_slice(two[0])) as rig:
        clock = Clock()
        rig.controller.planner.warmups._clock = clock
        rig.replace(endpoint_slice(two[0]), endpoint_slice(*two))
        await rig.until(lambda: real("10.0.0.2") in rig.writer.actual.virtual_servers[VIP].real_servers)

        def weight(key: RealServerKey) -> int:
            return rig.writer.actual.virtual_servers[VIP].real_servers[key].weight

        assert (weight(real("10.0.0.1")), weight(real("10.0.0.2"))) == (10, 1)
        before = len(rig.plane.applied)
        for step in range(2, STEPS + 1):
            clock.now = 5000.0 + step
            rig.controller.replan(rig.controller.planner.warmups.due())
            await rig.until(lambda step=step: weight(real("10.0.0.2")) == step)  # type: ignore[misc]
        assert len(rig.plane.applied) - before == STEPS - 1
        clock.now += 100.0
        assert rig.controller.planner.warmups.due() == []
