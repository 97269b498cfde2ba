"""When flows are read and deleted, over a table of flows in memory; its faults are ordered by the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from errno import EPERM

import pytest
import structlog

from ipvs_proxy.agent.sync import stale_flows
from ipvs_proxy.agent.sync.stale_flows import StaleFlows
from ipvs_proxy.netlink.errors import UNKNOWN, MissingPiece
from ipvs_proxy.netlink.wire import MalformedMessage
from ipvs_proxy.pacing import Backoff
from ipvs_proxy.plan.flows import Flow
from ipvs_proxy.plan.tables import ACTIVE, Family, Protocol, RealServerKey, VirtualServer, VirtualServerKey, family_of
from tests.support.objects import packed, real, virtual

DNS, SYSLOG = virtual("10.96.0.10", 53, Protocol.UDP), virtual("10.96.0.11", 514, Protocol.UDP)
DNS6 = virtual("fd00:96::10", 53, Protocol.UDP)
POD, OTHER_POD, POD6 = real("10.244.0.1", 53), real("10.244.0.2", 53), real("fd00:244::1", 53)


def flow(key: VirtualServerKey, pod: RealServerKey, source_port: int = 40000) -> Flow:
    client = packed("10.244.3.3" if len(key.address) == 4 else "fd00::3")
    return Flow(
        Protocol.UDP, client, source_port, key.address, key.port, pod.address, pod.port, client, source_port
    )  # fmt: skip


class FlowsInMemory:
    """``faults`` are raised by the next readings, ``refusals`` are the next results of deletions, ``gate`` holds reads."""

    def __init__(self) -> None:
        self.flows: set[Flow] = set()
        self.faults: list[Exception] = []
        self.refusals: list[int] = []
        self.reads: list[Family] = []
        self.gate: threading.Event | None = None
        self.threads: set[int] = set()
        self.open = 0

    def __enter__(self):
        self.open += 1
        return self

    def __exit__(self, *_):
        self.open -= 1

    def read(self, family, protocol, *, keep):
        assert protocol == Protocol.UDP
        self.threads.add(threading.get_ident())
        self.reads.append(family)
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.faults:
            raise self.faults.pop(0)
        return [found for found in self.flows if family_of(found.source) is family and keep(found)]

    def delete(self, flows):
        results = []
        for found in flows:
            results.append(self.refusals.pop(0) if self.refusals else 0)
            if not results[-1]:
                self.flows.discard(found)
        return results


class Bench:
    """Stale flows over a table in memory, with what they report."""

    def __init__(self) -> None:
        self.table = FlowsInMemory()
        self.desired: dict[VirtualServerKey, VirtualServer] = {}
        self.also_allowed: dict[VirtualServerKey, list[RealServerKey]] = {}
        self.cleaned: list[tuple[Family, int]] = []
        self.stale_flows = StaleFlows(
            lambda: self.desired, cleaned=self._note, also_allowed=lambda: self.also_allowed, open_table=self._open
        )

    def wants(self, key: VirtualServerKey, *pods: RealServerKey) -> None:
        self.desired[key] = VirtualServer(key, "rr", real_servers=dict.fromkeys(pods, ACTIVE))

    def _open(self) -> FlowsInMemory:
        return self.table

    def _note(self, family: Family, deleted: int, seconds: float) -> None:
        assert seconds >= 0
        self.cleaned.append((family, deleted))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.stale_flows.clean_for_ever())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  polling is the point
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    for name in ("SETTLE", "REST"):
        monkeypatch.setattr(stale_flows, name, 0.001)
    monkeypatch.setattr(stale_flows, "BACKOFF", Backoff(0.001, 0.001))


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_flow_of_a_removed_real_server_is_deleted_and_counted(bench):
    stays = flow(DNS, OTHER_POD, 40001)
    bench.table.flows = {flow(DNS, POD), stays}
    bench.wants(DNS, OTHER_POD)
    async with bench.running():
        bench.stale_flows.observe({DNS})
        await until(lambda: bench.cleaned == [(Family.IPV4, 1)])
    assert bench.table.flows == {stays}
    assert bench.table.reads == [Family.IPV4]
    assert bench.table.open == 0
    assert threading.get_ident() not in bench.table.threads


async def test_nothing_is_read_before_something_of_udp_was_written(bench):
    async with bench.running():
        bench.stale_flows.observe({virtual("10.96.0.10", 80, Protocol.TCP), virtual("10.96.0.10", 80, Protocol.SCTP)})
        await asyncio.sleep(0.02)
        assert bench.table.reads == []
        bench.stale_flows.observe({DNS6})
        await until(lambda: bench.cleaned == [(Family.IPV6, 0)])
    assert bench.table.reads == [Family.IPV6]


async def test_families_are_cleaned_each_by_itself(bench):
    bench.table.flows = {flow(DNS, POD), flow(DNS6, POD6), flow(DNS6, POD6, 40001)}
    bench.wants(DNS)
    bench.wants(DNS6)
    async with bench.running():
        bench.stale_flows.observe({DNS, DNS6})
        await until(lambda: sorted(bench.cleaned) == [(Family.IPV4, 1), (Family.IPV6, 2)])
    assert bench.table.flows == set()


async def test_flow_of_a_virtual_server_that_is_gone_is_deleted_and_of_others_not(bench):
    foreign = flow(SYSLOG, POD)
    bench.table.flows = {flow(DNS, POD), foreign}
    async with bench.running():
        bench.stale_flows.observe({DNS})
        await until(lambda: bench.cleaned == [(Family.IPV4, 1)])
    assert bench.table.flows == {foreign}


async def test_many_changes_need_one_reading(bench, monkeypatch):
    monkeypatch.setattr(stale_flows, "SETTLE", 0.05)
    keys = [virtual(f"10.96.1.{number}", 53, Protocol.UDP) for number in range(100)]
    bench.table.flows = {flow(key, POD) for key in keys}
    async with bench.running():
        for key in keys:
            bench.stale_flows.observe({key})
            await asyncio.sleep(0)
        await until(lambda: bench.cleaned == [(Family.IPV4, 100)])
        await asyncio.sleep(0.1)  # longer than it takes to read again
    assert bench.table.reads == [Family.IPV4]


async def test_after_a_reading_there_is_a_rest(bench, monkeypatch):
    monkeypatch.setattr(stale_flows, "REST", 60.0)
    async with bench.running():
        bench.stale_flows.observe({DNS})
        await until(lambda: len(bench.cleaned) == 1)
        bench.stale_flows.observe({DNS})
        await asyncio.sleep(0.05)
        assert len(bench.table.reads) == 1


async def test_what_is_desired_counts_when_flows_are_read(bench, monkeypatch):
    monkeypatch.setattr(stale_flows, "SETTLE", 0.05)
    bench.table.flows = {flow(DNS, POD)}
    bench.wants(DNS, OTHER_POD)
    async with bench.running():
        bench.stale_flows.observe({DNS})
        await asyncio.sleep(0)
        bench.wants(DNS, POD)
        await until(lambda: bench.cleaned == [(Family.IPV4, 0)])
    assert bench.table.flows == {flow(DNS, POD)}


async def test_virtual_server_that_goes_while_flows_are_read_is_looked_at_again(bench):
    bench.table.flows = {flow(DNS, POD)}
    bench.table.gate = threading.Event()
    bench.wants(DNS, POD)
    async with bench.running():
        bench.stale_flows.observe({DNS})
        await until(lambda: len(bench.table.reads) == 1)
        del bench.desired[DNS]
        bench.stale_flows.observe({DNS})
        bench.table.gate.set()
        await until(lambda: bench.cleaned == [(Family.IPV4, 0), (Family.IPV4, 1)])
    assert bench.table.flows == set()


async def test_virtual_server_that_is_gone_is_nobody_of_ours_once_its_flows_are_cleaned(bench):
    async with bench.running():
        bench.stale_flows.observe({DNS})
        await until(lambda: len(bench.cleaned) == 1)
        bench.table.flows = {flow(DNS, POD)}  # somebody else serves the address now
        bench.stale_flows.observe({SYSLOG})
        await until(lambda: len(bench.cleaned) == 2)
    assert bench.table.flows == {flow(DNS, POD)}


async def test_real_servers_that_another_virtual_server_gives_are_allowed(bench):
    bench.table.flows = {flow(DNS, POD), flow(DNS, OTHER_POD, 40001)}
    bench.wants(DNS)
    bench.also_allowed = {DNS: [POD]}
    async with bench.running():
        bench.stale_flows.observe({DNS})
        await until(lambda: bench.cleaned == [(Family.IPV4, 1)])
    assert bench.table.flows == {flow(DNS, POD)}


@pytest.mark.parametrize("fault", [OSError("no buffer"), MalformedMessage("garbage")], ids=["refused", "garbage"])
async def test_fault_is_told_and_what_was_remembered_is_cleaned_later(bench, fault):
    bench.table.flows = {flow(DNS, POD)}
    bench.table.faults = [fault, fault]
    with structlog.testing.capture_logs() as logs:
        async with bench.running():
            bench.stale_flows.observe({DNS})
            await until(lambda: bench.cleaned == [(Family.IPV4, 1)])
    assert bench.table.flows == set()
    told = [log for log in logs if log["event"] == "flows_not_readable"]
    assert [(log["family"], log["error"]) for log in told] == [("IPv4", str(fault))] * 2


async def test_fault_of_one_family_does_not_hold_back_the_other(bench, monkeypatch):
    monkeypatch.setattr(stale_flows, "BACKOFF", Backoff(60.0, 60.0))
    bench.table.flows = {flow(DNS, POD), flow(DNS6, POD6)}
    bench.table.faults = [OSError("no buffer")]
    async with bench.running():
        bench.stale_flows.observe({DNS})
        await until(lambda: not bench.table.faults)
        bench.stale_flows.observe({DNS6})
        await until(lambda: bench.cleaned == [(Family.IPV6, 1)])
    assert bench.table.flows == {flow(DNS, POD)}


@pytest.mark.parametrize(("code", "name"), [(EPERM, "EPERM"), (UNKNOWN, "no answer from the kernel")])
async def test_flow_that_could_not_be_deleted_is_tried_again(bench, code, name):
    bench.table.flows = {flow(DNS, POD), flow(DNS, POD, 40001)}
    bench.table.refusals = [code]
    with structlog.testing.capture_logs() as logs:
        async with bench.running():
            bench.stale_flows.observe({DNS})
            await until(lambda: bench.cleaned == [(Family.IPV4, 1), (Family.IPV4, 1)])
    assert bench.table.flows == set()
    told = [log for log in logs if log["event"] == "stale_flows_not_deleted"]
    assert [(log["failed"], log["error"]) for log in told] == [(1, name)]


async def test_kernel_without_conntrack_netlink_is_told_once_and_served_when_it_has_it(bench):
    bench.table.flows = {flow(DNS, POD), flow(DNS6, POD6)}
    bench.table.faults = [MissingPiece("the kernel has no conntrack netlink", "load the module") for _ in range(6)]
    with structlog.testing.capture_logs() as logs:
        async with bench.running():
            bench.stale_flows.observe({DNS, DNS6})
            await until(lambda: sorted(bench.cleaned) == [(Family.IPV4, 1), (Family.IPV6, 1)])
    told = [log for log in logs if log["log_level"] == "warning"]
    assert [(log["event"], log["error"]) for log in told] == [
        ("conntrack_unusable", "the kernel has no conntrack netlink: load the module")
    ]
