"""What one event costs, counted to the last message: netlink messages, system calls, Services planned again.

The agent's own path from the bytes of a watch event to a real kernel's answer, among few and among many Services.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import structlog

from bench import cluster
from bench.rig import Rig, WithoutRules
from ipvs_proxy.agent.sync import planner
from lab.packet_filter import CHOSEN, NFTABLES
from tests.support.namespaces import fresh_namespace, run

ENDPOINTS = 10
INDEX = 7
PODS = cluster.pods_of(INDEX, ENDPOINTS)
NEWCOMER = "10.200.0.1"


class Work(NamedTuple):
    messages: int
    system_calls: int
    fragments: int


class Event(NamedTuple):
    """``work`` is ``None`` for what nobody acts on: whatever it costs is counted with the next event.

    ``transactions`` of members take one system call more with nftables, which answers with its generation.
    """

    what: str
    object: dict[str, Any]
    kind: str
    work: Work | None
    transactions: int = 0

    @property
    def expected(self) -> Work:
        assert self.work is not None
        more = self.transactions if CHOSEN == NFTABLES else 0
        return self.work._replace(system_calls=self.work.system_calls + more)


def slice_of(pods: list[str], version: int, **changes: Any) -> dict[str, Any]:
    found = cluster.endpoint_slice(INDEX, 0, pods, version)
    found["endpoints"][-1]["conditions"] |= changes.pop("conditions", {})
    found["endpoints"][-1] |= changes
    return found


def service_of(version: int, **spec: Any) -> dict[str, Any]:
    found = cluster.service(INDEX)
    found["metadata"]["resourceVersion"] = str(version)
    found["spec"] |= spec
    return found


def wishing(version: int, wishes: dict[str, str]) -> dict[str, Any]:
    """Return the Service with session affinity and annotations, which are named without our prefix."""
    found = service_of(version, sessionAffinity="ClientIP")
    found["metadata"]["annotations"] = {f"ipvs-proxy.io/{name}": text for name, text in wishes.items()}
    return found


METRICS = {"name": "metrics", "port": 9090, "protocol": "TCP", "targetPort": 9090}
HTTP = cluster.service(INDEX)["spec"]["ports"][0]
IPVS = Work(messages=1, system_calls=2, fragments=1)
#: A member of a set comes before and goes after, so that new connections wait.
SWITCH = Work(messages=3, system_calls=6, fragments=1)

#: One after another: each begins where the one before ended.
EVENTS = (
    Event("an endpoint is added", slice_of([*PODS, NEWCOMER], 2), "MODIFIED", IPVS),
    Event("the same once more", slice_of([*PODS, NEWCOMER], 3), "MODIFIED", None),
    Event("a field that nobody reads", slice_of([*PODS, NEWCOMER], 4, hostname="a"), "MODIFIED", None),
    Event("it is not ready", slice_of([*PODS, NEWCOMER], 5, conditions={"ready": False}), "MODIFIED", IPVS),
    Event("it is ready again", slice_of([*PODS, NEWCOMER], 6), "MODIFIED", IPVS),
    Event("it is removed", slice_of(PODS, 7), "MODIFIED", IPVS),
    Event("three come", slice_of([*PODS, NEWCOMER, "10.200.0.2", "10.200.0.3"], 8), "MODIFIED", Work(3, 2, 1)),
    Event("three go", slice_of(PODS, 9), "MODIFIED", Work(3, 2, 1)),
    Event("a local endpoint comes", slice_of([*PODS, NEWCOMER], 10, nodeName=cluster.NODE), "MODIFIED", Work(2, 4, 1), 1),
    Event("a local endpoint goes", slice_of(PODS, 11), "MODIFIED", Work(2, 4, 1), 1),
    Event("a port without endpoints", service_of(9001, ports=[HTTP, METRICS]), "MODIFIED", Work(3, 6, 1), 2),
    Event("and without it", service_of(9002, ports=[HTTP]), "MODIFIED", Work(3, 6, 1), 2),
    Event("session affinity", service_of(9003, sessionAffinity="ClientIP"), "MODIFIED", IPVS),
    Event("a scheduler", wishing(9012, {"scheduler": "lc"}), "MODIFIED", SWITCH, 2),
    Event("limits of its endpoints", wishing(9013, {"max-connections": "7"}), "MODIFIED", Work(ENDPOINTS + 3, 8, 1), 2),
    Event("no limits", wishing(9014, {}), "MODIFIED", Work(ENDPOINTS, 2, 1)),
    Event("rules that give nobody a weight", wishing(9015, {"weights": "zone=other:9"}), "MODIFIED", SWITCH, 2),
    Event("what cannot be read", wishing(9016, {"weights": "some"}), "MODIFIED", SWITCH, 2),
    Event("no annotation", wishing(9017, {}), "MODIFIED", None),
    Event("an external IP", service_of(9021, sessionAffinity="ClientIP", externalIPs=["203.0.113.7"]), "MODIFIED",
          Work(14, 9, 1), 1),
    Event("the whole Service goes", service_of(9022), "DELETED", Work(15, 13, 0), 2),
)  # fmt: skip


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Undo what the rig sets for the whole process, as the agent does: logging, garbage collection, threads."""
    logging, thresholds, interval = structlog.get_config(), gc.get_threshold(), sys.getswitchinterval()
    yield
    structlog.configure(**logging)
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    sys.setswitchinterval(interval)


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with fresh_namespace():
        yield


@pytest.mark.parametrize("services", [10, 300])
def test_the_work_of_an_event_is_exactly_that_of_the_change(services: int, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[str] = []
    plan = planner.plan_service

    def counted(service: Any, *arguments: Any, **named: Any) -> Any:
        planned.append(service.metadata.name)
        return plan(service, *arguments, **named)

    monkeypatch.setattr(planner, "plan_service", counted)

    async def measure() -> dict[str, Work]:
        kernel = WithoutRules()
        tables = {
            id(table.traffic): table.traffic for table in (kernel.ipvs, kernel.addresses, kernel.packet_filter.sets)
        }
        rig = Rig(cluster.objects(services, ENDPOINTS), kernel)
        for scheduler in ("lc", "wrr"):
            rig.controller.planner.schedulers.note(scheduler)

        def so_far() -> Work:
            calls = sum(traffic.system_calls for traffic in tables.values())
            return Work(kernel.writes(), calls, len(planned))

        found: dict[str, Work] = {}
        async with rig.running():
            before = so_far()
            for event in EVENTS:
                if event.work is None:
                    rig.send(event.object, event.kind)
                    continue
                await rig.change(event.object, event.kind)
                now = so_far()
                found[event.what] = Work(*(new - old for new, old in zip(now, before, strict=True)))
                before = now
        return found

    assert asyncio.run(measure()) == {event.what: event.expected for event in EVENTS if event.work}
    assert run("ipvsadm", "-Sn").count("\n-a ") >= (services - 1) * ENDPOINTS


def test_the_kernel_is_asked_about_a_scheduler_once() -> None:
    async def measure() -> list[int]:
        kernel = WithoutRules()
        rig = Rig(cluster.objects(10, ENDPOINTS), kernel)
        found = []
        async with rig.running():
            for version, name in enumerate(("lc", "rr", "lc", "sed"), 9001):
                before = kernel.writes()
                await rig.change(wishing(version, {"scheduler": name}))
                found.append(kernel.writes() - before)
        return found

    # The probe is a virtual server that comes and goes.
    assert asyncio.run(measure()) == [2 + 3, 3, 3, 2 + 3]
