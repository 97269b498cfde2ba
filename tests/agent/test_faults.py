"""What a fault at a bad moment must not make forgotten: every difference ends, at once or with the next audit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from errno import ENODEV, ENOMEM

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from ipvs_proxy.agent.sync import planner, retries, startup
from ipvs_proxy.agent.sync.audit import audit_for_ever, follow_for_ever
from ipvs_proxy.agent.sync.failures import LOGGED
from ipvs_proxy.kernel.ipvs.records import ListDifference
from ipvs_proxy.kernel.links.monitor import LinkChange, LinkEvent
from ipvs_proxy.kube.objects import EndpointPort, EndpointSlice, ServicePort
from ipvs_proxy.pacing import Backoff
from ipvs_proxy.plan.marks import corrections
from ipvs_proxy.plan.roles import NODE_PORT_UDP
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import (
    DRAINING,
    AddressOperation,
    Family,
    Operation,
    Protocol,
    RealServerOperation,
    SetEntry,
    VirtualServer,
    VirtualServerKey,
)
from tests.support.failing import failing
from tests.support.fake_dataplane import FakeDataplane
from tests.support.listening import Listening
from tests.support.objects import endpoint, endpoint_slice, marked, real, service, virtual
from tests.support.rig import POD1, SLICE, VIP, WEB, Rig, running
from tests.support.tables import hold

OTHER = virtual("10.96.0.11")


@pytest.fixture
def plane() -> FakeDataplane:
    return FakeDataplane()


def large(*groups: tuple[str, ...]) -> list[EndpointSlice]:
    """The slices of a Service that is remembered from one plan to the next."""
    return [endpoint_slice(*map(endpoint, addresses), name=f"web-{number}") for number, addresses in enumerate(groups)]


async def test_end_of_a_drain_forgets_no_failed_write_of_the_same_virtual_server(plane: FakeDataplane) -> None:
    slices = large(("10.0.0.1",), ("10.0.0.2", "10.0.0.9"), ("10.0.0.3",))
    new, leaving = real("10.0.0.7"), real("10.0.0.9")

    def refuse(operation: Operation) -> int:
        return 12 if isinstance(operation, RealServerOperation) and operation.key == new else 0

    async with running(plane, WEB, *slices) as rig:
        rig.replace(slices[1], large((), ("10.0.0.2",))[1])
        await rig.until(lambda: plane.kernel.virtual_servers[VIP].real_servers[leaving] == DRAINING)
        plane.kernel.refuse = refuse
        rig.replace(slices[0], large(("10.0.0.1", "10.0.0.7"))[0])
        await rig.until(lambda: len(rig.writer.retries))
        plane.kernel.refuse = None
        await rig.writer.remove_real_servers([(VIP, leaving)])
        found = plane.kernel.virtual_servers[VIP].real_servers
        assert new in found
        assert leaving not in found


@pytest.mark.parametrize("call", ["read_virtual_server", "read_entries"])
async def test_drift_is_repaired_by_the_audit_after_one_that_failed(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    async with running(plane, WEB, SLICE, service("other", cluster_ip="10.96.0.11")) as rig:
        del plane.kernel.virtual_servers[VIP].real_servers[POD1]
        del plane.kernel.virtual_servers[OTHER]
        plane.kernel.addresses.discard(VIP.address)
        faulty = 2 if call == "read_virtual_server" else 1
        monkeypatch.setattr(plane, call, failing(getattr(plane, call), faulty))
        with pytest.raises(OSError, match="a fault"):
            await rig.audit.run_once()
        await rig.audit.run_once()
        assert POD1 in plane.kernel.virtual_servers[VIP].real_servers
        assert OTHER in plane.kernel.virtual_servers
        assert VIP.address in plane.kernel.addresses


async def test_audit_finds_what_is_not_as_desired_though_nothing_waits(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE) as rig:
        for tables in (plane.kernel, rig.writer.actual):
            hold(tables.virtual_servers, VIP, {POD1: None})
            tables.addresses.discard(VIP.address)
        await rig.audit.run_once()
        assert POD1 in plane.kernel.virtual_servers[VIP].real_servers
        assert VIP.address in plane.kernel.addresses


async def test_audit_that_fails_survives_a_set_that_is_gone(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(plane, WEB, SLICE) as rig:
        rig.writer.actual.entries[NODE_PORT_UDP[Family.IPV4]] = {SetEntry(port=1)}
        del plane.kernel.sets["KUBE-NODE-PORT-UDP"]
        monkeypatch.setattr(plane.kernel, "create_sets", lambda: None)
        monkeypatch.setattr(plane, "compare_list", failing(plane.compare_list, 1))
        with pytest.raises(OSError, match="a fault"):
            await rig.audit.run_once()
        await rig.audit.run_once()


async def test_leaked_address_is_found_again_with_its_virtual_server_after_an_audit_that_failed(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(plane, WEB, SLICE) as rig:
        leaked, guarding = leak(plane)
        monkeypatch.setattr(plane, "compare_list", failing(plane.compare_list, 1))
        with pytest.raises(OSError, match="a fault"):
            await rig.audit.run_once()
        await rig.audit.run_once()
        assert leaked not in plane.kernel.virtual_servers
        assert leaked.address not in plane.kernel.addresses
        assert guarding not in plane.kernel.sets["KUBE-IPVS-IPS"]


def leak(plane: FakeDataplane) -> tuple[VirtualServerKey, SetEntry]:
    """Leave a virtual server with its address and the member that guards it, as of a Service that is gone."""
    key = virtual("10.96.9.9", 53, Protocol.UDP)
    plane.kernel.virtual_servers[key] = VirtualServer(key, "rr")
    plane.kernel.addresses.add(key.address)
    plane.kernel.sets["KUBE-IPVS-IPS"].add(SetEntry(key.address))
    return key, SetEntry(key.address)


async def test_service_deleted_and_made_again_beside_an_audit_has_its_virtual_server(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    dns = service("web", ports=[ServicePort(port=53, name="http", protocol="UDP")])
    piece = endpoint_slice(endpoint("10.0.0.1"), ports=[EndpointPort("http", 8080, "UDP")])
    key = virtual("10.96.0.10", 53, Protocol.UDP)
    async with running(plane, dns, piece) as rig:
        loop, read = asyncio.get_running_loop(), plane.compare_list

        def slow(known: Mapping[VirtualServerKey, VirtualServer], *, ipv6: bool) -> ListDifference:
            found = read(known, ipv6=ipv6)
            loop.call_soon_threadsafe(lambda: rig.replace(dns, None))
            while key in plane.kernel.virtual_servers or key.address in plane.kernel.addresses:
                time.sleep(0.002)
            return found

        monkeypatch.setattr(plane, "compare_list", slow)
        await rig.audit.run_once()
        assert not rig.writer.foreign
        rig.add(dns)
        await rig.until(lambda: key.address in plane.kernel.addresses)
        assert key in plane.kernel.virtual_servers


async def test_explanation_before_the_kernel_is_read_takes_nobodys_mark(plane: FakeDataplane) -> None:
    services = (marked("aaa", 1), marked("bbb", 2))
    async with running(plane, *services):
        pass
    written = len(plane.applied)
    rig = Rig(plane)
    task = asyncio.create_task(startup.run(rig.controller))
    rig.add(*services)
    await rig.controller.planner.explain(services[1])
    rig.all_known()
    await rig.until(rig.controller.started.is_set)
    assert len(plane.applied) == written
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    rig.writer.close()


async def test_a_service_is_not_planned_twice_at_a_time(plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody looks at a Service while a thread plans it, which takes long: marks and memory are one plan's at a time."""
    planning, overlaps = set[str](), list[str]()

    def slow(*arguments):
        if planning:
            overlaps.append(arguments[0].metadata.name)
        planning.add("now")
        time.sleep(0.05)
        planning.clear()
        return plan_service(*arguments)

    monkeypatch.setattr(planner, "plan_service", slow)
    monkeypatch.setattr(planner, "takes_long", lambda *_: True)
    rig = Rig(plane)
    task = asyncio.create_task(startup.run(rig.controller))
    wanted = marked("aaa", 1)
    rig.add(wanted)
    rig.all_known()
    await asyncio.gather(*(rig.controller.planner.explain(wanted) for _ in range(3)))
    await rig.until(rig.controller.started.is_set)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    rig.writer.close()
    assert overlaps == []


async def test_health_check_that_was_planned_stays_if_the_next_plan_fails(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    balanced = structs.replace(
        WEB,
        spec=structs.replace(
            WEB.spec, type="LoadBalancer", external_traffic_policy="Local", health_check_node_port=32000
        ),
    )
    rig, plans = Rig(plane), 0

    def failing(*arguments: object) -> object:
        nonlocal plans
        plans += 1
        if plans == 2:
            raise RuntimeError("never meant to happen")
        return plan_service(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("ipvs_proxy.agent.sync.planner.plan_service", failing)
    task = asyncio.create_task(startup.run(rig.controller))
    rig.add(balanced, SLICE)
    for kind in ("Node", "Service"):
        rig.controller.synced(kind)
    await rig.until(lambda: plans == 1)
    rig.replace(SLICE, endpoint_slice(endpoint("10.244.0.1")))
    await rig.until(lambda: plans == 2)
    assert not rig.wishes
    rig.controller.synced("EndpointSlice")
    await rig.until(rig.controller.started.is_set)
    assert [check.port for checks in rig.wishes.values() for check in checks.values()] == [32000]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    rig.writer.close()


def take_virtual_server(plane: FakeDataplane) -> None:
    del plane.kernel.virtual_servers[VIP]


def take_real_server(plane: FakeDataplane) -> None:
    del plane.kernel.virtual_servers[VIP].real_servers[POD1]


def take_set(plane: FakeDataplane) -> None:
    del plane.kernel.sets["KUBE-CLUSTER-IP"]


def take_link(plane: FakeDataplane) -> None:
    """Take the link with all its addresses: the next one cannot be added before it is made again."""
    plane.kernel.addresses.clear()
    ensure = plane.ensure_tables

    def refuse(operation: Operation) -> int:
        return ENODEV if isinstance(operation, AddressOperation) else 0

    def make() -> list[str]:
        plane.kernel.refuse = None
        return ["link", *ensure()]

    plane.kernel.refuse = refuse
    plane.ensure_tables = make  # type: ignore[method-assign]


@pytest.mark.parametrize("take", [take_virtual_server, take_real_server, take_set, take_link])
async def test_a_change_that_meets_what_somebody_else_took_away_puts_it_back(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch, take: Callable[[FakeDataplane], None]
) -> None:
    """What failed is read again: repeated as it was, the operation would fail for ever. No audit is needed."""
    monkeypatch.setattr(retries, "BACKOFF", Backoff(0.01, 0.01))
    drained, more = endpoint_slice(endpoint("10.244.0.2")), service("more", cluster_ip="10.96.0.11")
    undisturbed = FakeDataplane()
    async with running(undisturbed, WEB, drained, more):
        right = undisturbed.kernel.read()
    async with running(plane, WEB, SLICE) as rig:
        take(plane)
        rig.replace(SLICE, drained)
        rig.add(more)
        await rig.until(lambda: OTHER in rig.writer.actual.virtual_servers)
        await rig.writer.write(TableKeys())  # after the one under way
        await rig.until(lambda: not rig.writer.retries)
        # The endpoint that went drains, unless somebody else took it.
        plane.kernel.virtual_servers[VIP].real_servers.pop(POD1, None)
        assert plane.kernel.read() == right


async def test_a_refusal_of_many_is_told_in_few_lines_and_counted(plane: FakeDataplane) -> None:
    plane.kernel.refuse = lambda operation: ENOMEM if isinstance(operation, AddressOperation) else 0
    many = [service(f"a{number}", cluster_ip=f"10.97.0.{number}") for number in range(1, 26)]
    with capture_logs() as logs:
        async with running(plane, *many) as rig:
            assert b'operations_total{result="failure",table="addresses",verb="add"} 50.0' in rig.metrics.render("")[0]
            assert len(rig.writer.retries) == 25
            assert rig.health.healthy()
    lines = [line for line in logs if line["event"].startswith("operation")]
    of_a_write = [("operation_failed", None)] * LOGGED + [("operations_failed", 25)]
    # With the changes, and once more with everything, at the end of the start.
    assert [(line["event"], line.get("addresses")) for line in lines] == of_a_write * 2
    assert {line["error"] for line in lines if line["event"] == "operation_failed"} == {"Cannot allocate memory"}


async def test_work_is_not_done_while_something_waits_for_another_attempt(plane: FakeDataplane) -> None:
    """What the metrics and the health tracker hear: ``kubeproxy_sync_proxy_rules_last_timestamp_seconds`` stays."""
    plane.kernel.refuse = lambda operation: ENOMEM if isinstance(operation, AddressOperation) else 0
    async with running(plane, WEB, SLICE) as rig:
        assert 'last_timestamp_seconds{ip_family="IPv4"}' not in rig.metrics.render("")[0].decode()
        assert rig.health._queued is not None


@pytest.mark.parametrize("stale", ["a real server is missing", "all is missing"])
async def test_what_differs_only_in_the_read_beside_the_writes_is_no_drift(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch, stale: str
) -> None:
    async with running(plane, WEB, SLICE) as rig:
        if stale == "all is missing":
            monkeypatch.setattr(plane, "compare_list", lambda *_, **__: ListDifference([VIP], {}))
        else:
            monkeypatch.setattr(plane, "differing", lambda _: [VIP])
        plane.applied.clear()
        await rig.audit.run_once()
        assert (rig.repairs, plane.applied) == ({}, [])


async def test_audits_follow_one_another_and_one_that_fails_is_not_finished(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[str]()
    async with running(plane, WEB, SLICE) as rig:
        monkeypatch.setattr(plane, "read_entries", failing(plane.read_entries, 1))
        del plane.kernel.virtual_servers[VIP]
        with capture_logs() as logs:
            task = asyncio.create_task(
                audit_for_ever(
                    rig.audit,
                    period=lambda: 0.001,
                    begun=lambda: told.append("begun"),
                    finished=lambda: told.append("finished"),
                )
            )
            await rig.until(lambda: told.count("finished") >= 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert VIP in plane.kernel.virtual_servers
    assert told[:5] == ["begun", "begun", "finished", "begun", "finished"]
    assert [line["error"] for line in logs if line["event"] == "audit_failed"] == ["a fault"]


async def test_a_restart_touches_nothing_and_takes_away_what_nobody_wants(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE):
        right = plane.kernel.read()
    plane.calls.clear()
    async with running(plane, WEB, SLICE):
        pass
    assert plane.calls["apply"] == 0, "what is right is not written, also not in vain"
    plane.kernel.sets["KUBE-EXTERNAL-IP"].add(SetEntry(*OTHER[:3]))
    plane.kernel.addresses.add(OTHER.address)
    async with running(plane, WEB, SLICE):
        assert plane.kernel.read() == right


async def test_a_kernel_that_cannot_be_read_is_read_again_and_traffic_comes(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "BACKOFF", Backoff(0.01, 0.02))
    for call, number in (("ensure_tables", 1), ("read_entries", 2), ("read_virtual_servers", 1), ("read_addresses", 2)):
        monkeypatch.setattr(plane, call, failing(getattr(plane, call), number))
    with capture_logs() as logs:
        async with running(plane, WEB, SLICE) as rig:
            assert plane.kernel.read() == rig.writer.actual
    delays = [line["retry_in_seconds"] for line in logs if line["event"] == "kernel_not_readable"]
    assert delays == [0.01, 0.02, 0.02, 0.02]


async def test_each_batch_of_notifications_is_acted_on_as_it_comes(plane: FakeDataplane) -> None:
    taken = asyncio.Event()

    async def watch() -> AsyncGenerator[list[LinkEvent], None]:
        await taken.wait()
        yield [LinkEvent(LinkChange.ADDRESS_REMOVED, VIP.address)]
        await asyncio.Event().wait()

    async with running(plane, WEB, SLICE) as rig:
        task = asyncio.create_task(
            follow_for_ever(rig.audit.handle_events, lambda: Listening(watch), failed=rig.audit.stop_listening)
        )
        await rig.until(lambda: plane.calls["read_addresses"] == 2)  # at the start, and when listening began
        plane.kernel.addresses.clear()
        taken.set()
        await rig.until(lambda: plane.kernel.addresses == {VIP.address})
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_marks_that_were_written_in_part_are_spelled_right_before_the_rules_read_them(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(plane, marked("aaa", 1), marked("bbb", 2)):
        right = plane.kernel.read()
    for members in (members for name, members in plane.kernel.sets.items() if "MARK" in name):
        members.clear()
    torn = corrections(plane.kernel.entries())
    plane.applied.clear()
    monkeypatch.setattr(plane, "write_rules", lambda: before_rules.extend(plane.applied) or [])
    before_rules = list[Operation]()
    async with running(plane, marked("aaa", 1), marked("bbb", 2)):
        assert torn
        assert before_rules == torn
        assert plane.kernel.read() == right


async def test_marks_that_no_rule_spells_are_not_spelled(plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(plane, marked("aaa", 1)):
        pass
    for members in (members for name, members in plane.kernel.sets.items() if "MARK" in name):
        members.clear()
    plane.applied.clear()
    before_rules = list[Operation]()
    monkeypatch.setattr(plane, "write_rules", lambda: before_rules.extend(plane.applied) or [])
    plane.spells_marks = False
    async with running(plane, marked("aaa", 1)):
        assert before_rules == []


@pytest.mark.parametrize("turns", range(5))
async def test_retries_end_with_the_agent_also_if_something_fails_in_the_same_moment(
    plane: FakeDataplane, turns: int
) -> None:
    """On Python 3.11, ``asyncio.wait_for`` loses a cancellation that comes in the turn in which its event does."""
    rig = Rig(plane)
    rig.writer.retries.failed(TableKeys(addresses={VIP.address}), time.monotonic() + 60.0)
    task = asyncio.create_task(rig.writer.retry_for_ever())
    await asyncio.sleep(0.01)
    rig.writer._retry_soon.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=1.0)
    assert done
    rig.writer.close()


async def test_each_monitor_is_closed_before_another_listens(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipvs_proxy.agent.sync.audit.LISTEN_AGAIN", 0.001)
    opened: list[Listening] = []

    async def dead() -> AsyncGenerator[list[LinkEvent], None]:
        raise OSError(ENOMEM, "no buffer space")
        yield []

    def listen() -> Listening:
        assert not any(one.is_open for one in opened)
        opened.append(Listening(dead))
        return opened[-1]

    async with running(plane, WEB, SLICE) as rig:
        task = asyncio.create_task(follow_for_ever(rig.audit.handle_events, listen, failed=rig.audit.stop_listening))
        await rig.until(lambda: len(opened) >= 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not any(one.is_open for one in opened)
