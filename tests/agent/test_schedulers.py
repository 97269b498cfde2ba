"""Schedulers that the kernel lacks: asked for once, told to the Service's owner, and found again when they come."""

from __future__ import annotations

from msgspec import structs

from ipvs_proxy.agent.sync.schedulers import Schedulers
from ipvs_proxy.kube.objects import Service
from tests.support.fake_dataplane import FakeDataplane
from tests.support.objects import service
from tests.support.rig import SLICE, VIP, running


def asking(scheduler: str, name: str = "web", cluster_ip: str = "10.96.0.10") -> Service:
    made = service(name, cluster_ip=cluster_ip)
    annotations = {"ipvs-proxy.io/scheduler": scheduler}
    return structs.replace(made, metadata=structs.replace(made.metadata, annotations=annotations))


async def test_a_scheduler_is_asked_for_once_however_many_services_want_it() -> None:
    plane = FakeDataplane()
    async with running(plane, asking("sh"), asking("sh", "api", "10.96.0.11"), SLICE) as rig:
        assert {server.scheduler for server in rig.writer.actual.virtual_servers.values()} == {"sh"}
        assert plane.calls["has_scheduler"] == 1


async def test_nothing_is_asked_while_no_service_has_a_wish() -> None:
    plane = FakeDataplane()
    async with running(plane, service(), SLICE):
        assert plane.calls["has_scheduler"] == 0


async def test_a_service_whose_scheduler_is_missing_is_served_with_the_agents_and_told_so() -> None:
    plane = FakeDataplane()
    plane.missing_schedulers = {"lblc"}
    async with running(plane, asking("lblc"), SLICE) as rig:
        assert rig.writer.actual.virtual_servers[VIP].scheduler == "rr"
        assert [event.partition(" ServedOtherwise ")[2] for event in rig.events if "Served" in event] == [
            "service default/web annotation ipvs-proxy.io/scheduler lblc: no-such-scheduler; "
            "the kernel of this node does not have it, so the scheduler of the agent is used"
        ]
        plane.missing_schedulers.clear()
        await rig.controller.look_for_schedulers()
        await rig.until(lambda: rig.writer.actual.virtual_servers[VIP].scheduler == "lblc")
        asked = plane.calls["has_scheduler"]
        await rig.controller.look_for_schedulers()
        assert plane.calls["has_scheduler"] == asked


async def test_a_kernel_that_does_not_say_is_asked_again() -> None:
    answers: list[bool | OSError] = [OSError("no buffer space"), True]

    async def has(_: str) -> bool:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    schedulers = Schedulers(has)
    assert not await schedulers.find(["sh"])
    assert not await schedulers.find(["sh"])
    assert not await schedulers.find(["sh"])
    assert (answers, schedulers.missing) == ([], frozenset())
