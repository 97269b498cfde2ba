"""What a start finds and takes over: marks, rules and the node's own addresses."""

from __future__ import annotations

import asyncio

from ipvs_proxy.agent.sync import startup
from ipvs_proxy.kube.objects import Node, ObjectMeta, ServicePort
from ipvs_proxy.plan.tables import SetEntryOperation
from tests.support.fake_dataplane import FakeDataplane
from tests.support.objects import marked, service, virtual
from tests.support.rig import SLICE, WEB, Rig, running


async def test_a_service_keeps_its_mark_over_a_restart_also_if_another_one_is_gone() -> None:
    plane = FakeDataplane()
    async with running(plane, marked("aaa", 1), marked("bbb", 2)):
        pass
    marks = {
        entry for name, members in plane.kernel.sets.items() if "MARK" not in name for entry in members if entry.mark
    }
    theirs = {entry for entry in marks if entry.address == virtual("203.0.113.2").address}
    assert theirs
    plane.applied.clear()
    async with running(plane, marked("bbb", 2)):
        written = {operation.entry for operation in plane.applied if isinstance(operation, SetEntryOperation)}
        assert {entry for entry in written if entry.mark} == marks - theirs, "only the marks of the other one go"


async def test_a_service_that_goes_gives_its_marks_back() -> None:
    gone = marked("aaa", 1)
    async with running(FakeDataplane(), gone) as rig:
        marks = rig.controller.planner._marks
        assert marks._taken
        rig.replace(gone, None)
        await rig.until(lambda: not rig.controller.dirty and not marks._taken)


async def test_node_ports_are_there_from_the_start() -> None:
    plane = FakeDataplane()
    rig, node_port = Rig(plane), virtual("192.0.2.1", 30080)
    rig.interfaces["eth0"] = {node_port.address}
    task = asyncio.create_task(startup.run(rig.controller))
    rig.add(service("exposed", ports=[ServicePort(80, "http", node_port=30080)]))
    rig.all_known()
    await rig.until(rig.controller.started.is_set)
    assert node_port in plane.kernel.virtual_servers
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    rig.writer.close()


async def test_rules_that_were_taken_over_for_the_own_node_are_not_written_again() -> None:
    plane = FakeDataplane()
    rig = Rig(plane)
    rig.controller._adapt_rules = lambda _: True
    task = asyncio.create_task(startup.run(rig.controller))
    rig.add(Node(ObjectMeta("node")), WEB, SLICE)
    rig.all_known()
    await rig.until(rig.controller.started.is_set)
    await rig.until(lambda: not rig.controller._wake.is_set())
    assert (plane.calls["write_rules"], plane.calls["repair_rules"]) == (1, 0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    rig.writer.close()
