"""Schedulers that the kernel lacks: asked for once, told to the Service's owner, and found again when they come."""

from __future__ import annotations

import pytest
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


def kernel_that_answers(*answers: bool | Exception) -> tuple[Schedulers, list[bool | Exception]]:
    """Return what asks a kernel that answers so, and the answers that are left."""
    left = [*answers]

    async def has(_: str) -> bool:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Schedulers(has), left


@pytest.mark.parametrize("fault", [OSError("no buffer space"), ValueError("a message is too short")])
async def test_a_kernel_that_does_not_say_is_asked_again_in_the_next_period(fault: Exception) -> None:
    schedulers, left = kernel_that_answers(fault, True)
    assert not await schedulers.find(["sh"])
    assert not await schedulers.find(["sh"])
    assert left == [True]
    assert not await schedulers.find_missing()
    assert not await schedulers.find_missing()
    assert (left, schedulers.missing) == ([], frozenset())


async def test_a_scheduler_that_was_taken_for_there_is_found_missing_in_the_next_period() -> None:
    schedulers, left = kernel_that_answers(OSError("no buffer space"), False, ValueError("a message is too short"))
    assert not await schedulers.find(["sh"])
    assert not await schedulers.find(["sh"])
    assert await schedulers.find_missing(), "the Service that has it in its plan would be refused for ever"
    assert not await schedulers.find_missing()
    assert (left, schedulers.missing) == ([], {"sh"})
