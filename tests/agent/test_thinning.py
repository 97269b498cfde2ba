"""What one object can do to the log and to the event loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from ipvs_proxy.agent.observe.thinning import BURST, Thinning
from ipvs_proxy.kube.objects import EndpointSlice, Service
from ipvs_proxy.plan.annotations import DRAIN_TIMEOUT
from ipvs_proxy.plan.fragment import Fragment
from ipvs_proxy.plan.services import plan_service
from tests.support.fake_dataplane import FakeDataplane
from tests.support.large_services import LARGE, slices, wanted
from tests.support.objects import service
from tests.support.rig import Rig


def test_one_object_is_told_of_some_times_then_once_a_minute_with_what_was_left_out() -> None:
    now = 0.0
    thinning = Thinning(lambda: now)
    assert [thinning.admit("a") for _ in range(BURST + 5)] == [{}] * BURST + [None] * 5
    assert thinning.admit("b") == {}
    now = 60.0
    assert [thinning.admit("a"), thinning.admit("a")] == [{"not_logged": 5}, None]


async def test_a_large_annotation_that_changes_all_the_time_writes_little_to_the_log() -> None:
    rig = Rig(FakeDataplane())
    task = asyncio.create_task(rig.controller.run())
    rig.add(service())
    rig.all_known()
    await rig.until(rig.controller.started.is_set)
    old = service()
    with capture_logs() as logs:
        for number in range(100):
            new = replace(old, metadata=replace(old.metadata, annotations={DRAIN_TIMEOUT: f"{number}" * 100_000}))
            rig.replace(old, new)
            old = new
            await rig.until(lambda new=new: rig.controller.cache.services and not rig.controller._dirty)  # type: ignore[misc]
            await asyncio.sleep(0)
        await rig.until(lambda: not rig.controller._wake.is_set())
    task.cancel()
    told = [line for line in logs if line["log_level"] == "warning"]
    assert 0 < len(told) <= BURST
    assert sum(len(str(line)) for line in logs) < 10_000
    assert all(len(note) < 400 for note in rig.events)


async def test_a_service_that_claims_all_of_another_ones_addresses_again_and_again_writes_little_to_the_log() -> None:
    rig = Rig(FakeDataplane())
    task = asyncio.create_task(rig.controller.run())
    ports = [{"name": f"p{number}", "port": 1 + number} for number in range(500)]
    older, younger = (
        wanted(
            ports=ports, clusterIP=cluster_ip, clusterIPs=[cluster_ip], ipFamilies=["IPv4"], externalIPs=["203.0.113.9"]
        )
        for cluster_ip in ("10.96.0.1", "10.96.0.2")
    )
    younger = replace(younger, metadata=replace(younger.metadata, name="younger"))
    rig.add(older)
    rig.all_known()
    await rig.until(rig.controller.started.is_set)
    with capture_logs() as logs:
        for _ in range(5):
            rig.add(younger)
            await rig.until(lambda: len(rig.programmer.desired.conflicts()) == 500)
            rig.replace(younger, None)
            await rig.until(lambda: not rig.programmer.desired.conflicts())
    task.cancel()
    told = [line for line in logs if line["event"] == "conflict"]
    assert 0 < len(told) <= BURST
    assert sum(len(str(line)) for line in logs) < 20_000


@pytest.mark.parametrize(
    ("large", "pieces"),
    [
        (wanted(), slices(100, 100)),
        (wanted(ports=[{"name": f"p{number}", "port": 1 + number} for number in range(1000)]), slices(1, 1)),
    ],
    ids=["slices", "ports"],
)
async def test_a_service_that_takes_long_is_planned_beside_the_event_loop(
    large: Service, pieces: list[EndpointSlice], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned_in: dict[str, threading.Thread] = {}

    def plan(item: Service, *arguments: Any) -> Fragment:
        planned_in[item.metadata.name] = threading.current_thread()
        return plan_service(item, *arguments)

    monkeypatch.setattr("ipvs_proxy.agent.sync.controller.plan_service", plan)
    rig = Rig(FakeDataplane())
    task = asyncio.create_task(rig.controller.run())
    rig.add(large, *pieces, service("small"))
    rig.all_known()
    await rig.until(rig.controller.started.is_set)
    task.cancel()
    assert {name: thread is threading.main_thread() for name, thread in planned_in.items()} == {
        "web": False,
        "small": True,
    }


#: Seconds without a turn of the event loop. The goal is 0.05; a busy machine of tests may be five times slower.
GAP = 0.25


@pytest.mark.parametrize(
    "name", ["100 slices of 1,000", "100 slices of 1,000 with 20 ports", "1,000 ports at 100 external IPs"]
)
async def test_a_large_service_never_keeps_others_from_the_event_loop(name: str) -> None:
    """From the object to the last operation that the kernel has carried out, and as it goes."""
    large, pieces = LARGE[name]
    rig = Rig(FakeDataplane())
    tasks = [asyncio.create_task(rig.controller.run())]
    rig.all_known()
    await rig.until(rig.controller.started.is_set)
    gc.collect()
    gc.disable()
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - begun)

    tasks.append(asyncio.create_task(watch()))
    try:
        rig.add(*pieces, large)
        await rig.until(lambda: rig.controller.cache.services and rig.plane.kernel.virtual_servers)
        rig.replace(large, None)
        await rig.until(lambda: not rig.programmer.desired.virtual_servers and len(rig.drains))
    finally:
        gc.enable()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        rig.programmer.close()
    assert longest < GAP
