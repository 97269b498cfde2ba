"""The controller with the kernel writer, over a fake kernel as strict as the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from datetime import UTC, datetime, timedelta
from errno import EIO
from typing import Any

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from ipvs_proxy.agent.sync import retries, startup
from ipvs_proxy.agent.sync.audit import follow_for_ever
from ipvs_proxy.agent.sync.drains import Ending
from ipvs_proxy.kernel.links.monitor import LinkChange, LinkEvent
from ipvs_proxy.kube.objects import TRIGGER_TIME, EndpointSlice, Node, ObjectMeta, Service, ServicePort
from ipvs_proxy.pacing import Backoff
from ipvs_proxy.plan import roles
from ipvs_proxy.plan.fragment import Context, Fragment, HealthCheck, ServiceName
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.tables import (
    ACTIVE,
    DRAINING,
    Family,
    Operation,
    RealServerOperation,
    SetEntry,
    Verb,
    VirtualServer,
    VirtualServerOperation,
    text_of,
)
from tests.support.fake_dataplane import FakeDataplane
from tests.support.listening import Listening
from tests.support.objects import annotated_slice, endpoint, endpoint_slice, packed, real, service, virtual
from tests.support.rig import POD1, POD2, SLICE, VIP, WEB, Rig, running
from tests.support.roles import role


@pytest.fixture
def plane() -> FakeDataplane:
    return FakeDataplane()


async def test_kernel_is_read_when_the_node_is_known_and_services_come_when_all_is(plane: FakeDataplane) -> None:
    rig = Rig(plane)
    task = asyncio.create_task(startup.run(rig.controller))
    rig.add(WEB, SLICE)
    rig.controller.synced("Service")
    await asyncio.sleep(0.02)
    assert not plane.calls
    rig.controller.synced("Node")
    await rig.until(lambda: "read_virtual_servers" in plane.calls)
    assert not plane.kernel.virtual_servers
    rig.controller.synced("EndpointSlice")
    await rig.until(rig.controller.started.is_set)
    assert plane.calls["read_virtual_servers"] == 1
    assert plane.kernel.virtual_servers[VIP].real_servers == {POD1: ACTIVE, POD2: ACTIVE}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_services_are_planned_while_slices_still_come_and_again_only_if_they_change(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, planned = Rig(plane), []

    def counting(found: Service, *arguments: Any) -> Fragment:
        planned.append(found.metadata.name)
        return plan_service(found, *arguments)

    monkeypatch.setattr("ipvs_proxy.agent.sync.planner.plan_service", counting)
    task = asyncio.create_task(startup.run(rig.controller))
    names = ["web", "api", "late"]
    rig.add(*(service(name, cluster_ip=f"10.96.0.{number}") for number, name in enumerate(names, 10)))
    pieces = [endpoint_slice(endpoint("10.244.0.1"), name=f"{name}-x", of=name) for name in names]
    rig.add(*pieces[:2])
    rig.controller.synced("Node")
    await asyncio.sleep(0.05)
    assert planned == []
    rig.controller.synced("Service")
    await rig.until(lambda: planned == ["api", "web"])
    rig.replace(pieces[0], endpoint_slice(endpoint("10.244.0.2"), name="web-x", of="web"))
    await rig.until(lambda: planned == ["api", "web", "web"])
    assert not plane.kernel.virtual_servers
    assert not plane.calls["apply"]
    rig.replace(pieces[1], endpoint_slice(endpoint("10.244.0.2"), name="api-x", of="api"))
    rig.add(pieces[2])
    rig.controller.synced("EndpointSlice")
    await rig.until(rig.controller.started.is_set)
    assert planned == ["api", "web", "web", "api", "late"]
    assert [list(server.real_servers) for _, server in sorted(plane.kernel.virtual_servers.items())] == [
        [POD2],
        [POD2],
        [POD1],
    ]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_of_many_that_were_planned_ahead_each_is_programmed_as_it_was_last(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipvs_proxy.agent.sync.planner.BATCH", 3)
    rig = Rig(plane)
    task = asyncio.create_task(startup.run(rig.controller))
    dns = service("kube-dns", namespace="kube-system", cluster_ip="10.96.0.2")
    many = [service(f"a{number}", cluster_ip=f"10.96.1.{number}") for number in range(11)]
    pieces = [endpoint_slice(endpoint("10.244.0.1"), name=f"a{number}-x", of=f"a{number}") for number in range(11)]
    rig.add(dns, *many, *pieces)
    rig.add(endpoint_slice(endpoint("10.244.0.9"), name="dns-x", namespace="kube-system", of="kube-dns"))
    rig.controller.synced("Node")
    rig.controller.synced("Service")
    await rig.until(lambda: len(rig.controller.planner.planned) == 12)
    # In batches that are planned already: one changes, one goes, one has its last endpoint go.
    rig.replace(pieces[4], endpoint_slice(endpoint("10.244.0.2"), name="a4-x", of="a4"))
    rig.replace(many[7], None)
    rig.replace(pieces[10], None)
    rig.controller.synced("EndpointSlice")
    await rig.until(rig.controller.started.is_set)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    found = {text_of(key.address): list(server.real_servers) for key, server in plane.kernel.virtual_servers.items()}
    expected = {f"10.96.1.{number}": [POD1] for number in range(11)} | {"10.96.0.2": [real("10.244.0.9")]}
    del expected["10.96.1.7"]
    assert found == expected | {"10.96.1.4": [POD2], "10.96.1.10": []}
    added = [operation for operation in plane.applied if isinstance(operation, VirtualServerOperation)]
    assert text_of(added[0].virtual_server.key.address) == "10.96.0.2"
    assert len(added) == len(found)
    assert rig.wishes[ServiceName("default", "a7")] == {}
    assert len(rig.wishes) == 12
    assert not rig.controller.planner.planned


async def test_kernel_that_was_read_long_before_all_is_known_is_read_again(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipvs_proxy.agent.sync.startup.TAKE_OVER_AGAIN", 0.0)
    async with running(plane, WEB, SLICE):
        assert plane.calls["read_virtual_servers"] == 2


async def test_other_settings_lead_to_a_new_plan_of_everything(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE) as rig:
        plane.applied.clear()
        await rig.controller.reconfigure(scheduler="lc", compatible=False, min_sync_period=0.0)
        await rig.until(lambda: plane.kernel.virtual_servers[VIP].scheduler == "lc")
        (operation,) = [one for one in plane.applied if isinstance(one, VirtualServerOperation)]
        assert operation.verb is Verb.SET
        await rig.until(lambda: len(plane.applied) == 3)
        assert not rig.writer.actual.entries[roles.NO_LOCAL[Family.IPV4]]


async def test_api_server_and_dns_are_programmed_first(plane: FakeDataplane) -> None:
    many = [service(f"a{number}", cluster_ip=f"10.97.{number // 250}.{number % 250}") for number in range(300)]
    first = service("kubernetes", cluster_ip="10.96.0.1")
    dns = service("kube-dns", namespace="kube-system", cluster_ip="10.96.0.2")
    async with running(plane, *many, first, dns):
        added = [o.virtual_server.key for o in plane.applied if isinstance(o, VirtualServerOperation)]
        batch = set(added[:128])
        assert {virtual("10.96.0.1"), virtual("10.96.0.2")} <= batch
        assert len(added) == 302


async def test_change_of_one_endpoint_writes_only_that_and_reads_nothing(plane: FakeDataplane) -> None:
    many = [service(f"a{number}", cluster_ip=f"10.97.{number // 250}.{number % 250}") for number in range(500)]
    async with running(plane, WEB, SLICE, *many) as rig:
        plane.applied.clear()
        plane.calls.clear()
        rig.replace(SLICE, endpoint_slice(endpoint("10.244.0.1"), endpoint("10.244.0.2"), endpoint("10.244.0.3")))
        await rig.until(lambda: plane.applied)
        assert plane.applied == [RealServerOperation(Verb.ADD, VIP, real("10.244.0.3"), ACTIVE)]
        assert plane.calls == {"apply": 1}


async def test_comparing_many_virtual_servers_lets_others_run_in_between(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipvs_proxy.agent.sync.unsettled.COMPARED_AT_ONCE", 10)
    many = [service(f"a{number}", cluster_ip=f"10.97.0.{number}") for number in range(100)]
    async with running(plane, *many) as rig:
        # They are other than desired, and need no operation all the same.
        for key, server in rig.writer.actual.virtual_servers.items():
            rig.writer.actual.virtual_servers[key] = structs.replace(server, real_servers={POD1: DRAINING})
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(take_turns())
        assert await rig.audit.unsettled.write() == []
        task.cancel()
        assert turns >= 10


async def test_rules_of_another_mode_serve_until_ours_are_complete(plane: FakeDataplane) -> None:
    plane.leftovers = ["IPv4: 9 chains of iptables mode"]
    order: list[str] = []
    apply, repair, remove = plane.apply, plane.repair_rules, plane.remove_leftovers
    plane.apply = lambda operations: order.append("apply") or apply(operations)  # type: ignore[method-assign,func-returns-value]
    plane.repair_rules = lambda: order.append("rules") or repair()  # type: ignore[method-assign,func-returns-value]
    plane.remove_leftovers = lambda: order.append("remove") or remove()  # type: ignore[method-assign,func-returns-value]
    async with running(plane, WEB, SLICE):
        assert order == ["apply", "rules", "remove"]


async def test_what_the_sets_of_another_packet_filter_say_is_ours_goes_if_nobody_wants_it(plane: FakeDataplane) -> None:
    plane.leftovers = ["the nftables table inet ipvs-proxy"]
    gone = virtual("10.96.0.99", 80)
    plane.kernel.virtual_servers[gone] = VirtualServer(gone, "rr")
    plane.left_entries = {role("KUBE-CLUSTER-IP"): {SetEntry(gone.address, gone.protocol, gone.port)}}
    async with running(plane, WEB, SLICE) as rig:
        assert gone not in plane.kernel.virtual_servers
        assert plane.left_entries[role("KUBE-CLUSTER-IP")].isdisjoint(plane.kernel.entries()[role("KUBE-CLUSTER-IP")])
        assert rig.writer.actual.entries[role("KUBE-CLUSTER-IP")]


async def test_the_rules_are_written_once_and_nobody_waits_for_a_look_at_them(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE):
        assert (plane.calls["write_rules"], plane.calls["repair_rules"]) == (1, 0)


async def test_a_node_without_another_mode_is_not_searched_twice(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE):
        assert (plane.calls["find_leftovers"], plane.calls["remove_leftovers"]) == (1, 0)


async def test_conflicts_are_told_to_the_loser_and_counted(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE, service("young", age=-5)) as rig:
        (event,) = rig.events[:1]
        assert event.startswith(
            "Service default/young AddressConflict 10.96.0.10:80/TCP is served for the older Service"
        )
        assert b"ipvs_proxy_conflicts 1.0" in rig.metrics.render("text/plain")[0]
        rig.replace(WEB, None)
        await rig.until(lambda: b"ipvs_proxy_conflicts 0.0" in rig.metrics.render("text/plain")[0])


async def test_what_cannot_be_served_is_counted_and_told(plane: FakeDataplane) -> None:
    odd = service("odd", cluster_ip="10.96.0.77", ports=[ServicePort(0, "zero")])
    async with running(plane, WEB, SLICE, odd) as rig:
        assert [event for event in rig.events if "default/odd" in event] == [
            "Service default/odd NotServed service default/odd port zero: invalid-port"
        ]
        assert b'ipvs_proxy_left_out_total{reason="invalid-port"} 1.0' in rig.metrics.render("text/plain")[0]


async def test_what_is_served_otherwise_is_not_called_unserved(plane: FakeDataplane) -> None:
    sticky = service("sticky", cluster_ip="10.96.0.77", affinity="ClientIP", timeout=86_401)
    async with running(plane, WEB, SLICE, sticky) as rig:
        assert virtual("10.96.0.77") in plane.kernel.virtual_servers
        assert [event for event in rig.events if "default/sticky" in event] == [
            "Service default/sticky ServedOtherwise service default/sticky port http timeoutSeconds 86401: "
            "invalid-affinity-timeout; the API's default of 10800 s is used"
        ]


async def test_an_address_that_comes_to_the_node_gets_its_node_ports(plane: FakeDataplane) -> None:
    exposed = service("exposed", cluster_ip="10.96.0.78", ports=[ServicePort(80, "http", node_port=30080)])
    node_port = virtual("192.0.2.1", 30080)
    async with running(plane, exposed) as rig:
        assert node_port not in plane.kernel.virtual_servers
        rig.interfaces["eth0"] = {node_port.address}
        await rig.controller.refresh_facts()
        await rig.until(lambda: node_port in plane.kernel.virtual_servers)
        rig.interfaces.clear()
        await rig.controller.refresh_facts()
        await rig.until(lambda: SetEntry(port=30080) not in plane.kernel.sets["KUBE-NODE-PORT-TCP"])
        assert node_port not in plane.kernel.virtual_servers


async def test_a_deleted_service_leaves_nothing_also_if_somebody_else_ends_its_drain(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE) as rig:
        rig.replace(WEB, None)
        await rig.until(lambda: plane.kernel.virtual_servers[VIP].real_servers == {POD1: DRAINING, POD2: DRAINING})
        assert plane.kernel.addresses == {VIP.address}
        plane.kernel.virtual_servers[VIP].real_servers.clear()
        await rig.audit.run_once()
        assert plane.kernel.virtual_servers == {}
        assert plane.kernel.addresses == set()
        assert not any(plane.kernel.sets.values())


async def test_health_checks_follow_the_service(plane: FakeDataplane) -> None:
    balanced = service("lb", cluster_ip="10.96.0.79", kind="LoadBalancer")
    balanced = structs.replace(
        balanced,
        spec=structs.replace(balanced.spec, external_traffic_policy="Local", health_check_node_port=32000),
    )
    pods = endpoint_slice(endpoint("10.244.0.1", node="node"), endpoint("10.244.0.2", node="other"), name="lb", of="lb")
    async with running(plane, balanced, pods) as rig:
        name = ServiceName("default", "lb")
        assert rig.wishes[name] == {Family.IPV4: HealthCheck(32000, 1)}
        rig.replace(balanced, None)
        await rig.until(lambda: rig.wishes[name] == {})


async def test_restart_writes_nothing(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE):
        pass
    plane.applied.clear()
    async with running(plane, WEB, SLICE):
        assert plane.applied == []


async def test_leftovers_of_ours_go_and_those_of_others_stay(plane: FakeDataplane) -> None:
    ours, foreign, excluded = virtual("10.96.0.99"), virtual("192.0.2.5"), virtual("10.96.5.5")
    for key in (ours, foreign, excluded):
        plane.kernel.virtual_servers[key] = VirtualServer(key, "wlc", real_servers={POD1: ACTIVE})
    plane.kernel.addresses |= {ours.address, excluded.address}
    async with running(plane, WEB, SLICE, exclude=("10.96.5.0/24",)) as rig:
        assert plane.kernel.virtual_servers[ours].real_servers == {POD1: DRAINING}
        await rig.writer.remove_real_servers([(ours, POD1)])
        assert set(plane.kernel.virtual_servers) == {VIP, foreign, excluded}
        assert set(rig.writer.foreign) == {foreign, excluded}
        assert ours.address not in plane.kernel.addresses


async def test_foreign_virtual_server_that_becomes_desired_is_adopted_as_it_is(plane: FakeDataplane) -> None:
    plane.kernel.virtual_servers[VIP] = VirtualServer(VIP, "wlc", real_servers={POD1: ACTIVE})
    async with running(plane, WEB, SLICE):
        verbs = [operation.verb for operation in plane.applied if isinstance(operation, VirtualServerOperation)]
        assert verbs == [Verb.SET]
        assert plane.kernel.virtual_servers[VIP].real_servers == {POD1: ACTIVE, POD2: ACTIVE}


async def test_failing_operation_is_retried_alone_until_it_succeeds(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "BACKOFF", Backoff(0.01, 30.0))
    attempts = []

    def refuse(operation: Operation) -> int:
        if isinstance(operation, RealServerOperation) and operation.key == POD2 and len(attempts) < 3:
            attempts.append(operation)
            return EIO
        return 0

    plane.kernel.refuse = refuse
    other = service("other", cluster_ip="10.96.0.11")
    with capture_logs() as logs:
        async with running(plane, WEB, SLICE, other) as rig:
            assert virtual("10.96.0.11") in plane.kernel.virtual_servers
            assert POD1 in plane.kernel.virtual_servers[VIP].real_servers
            await rig.until(lambda: POD2 in plane.kernel.virtual_servers[VIP].real_servers)
            await rig.until(lambda: not rig.writer.retries)
    delays = [entry["retry_in_seconds"] for entry in logs if entry["event"] == "operation_failed"]
    assert delays == [0.01, 0.02, 0.04]


async def test_dead_socket_loses_nothing(plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "BACKOFF", Backoff(0.01, 30.0))
    plane.broken = 2
    async with running(plane, WEB, SLICE) as rig:
        await rig.until(lambda: not rig.writer.retries)
        assert plane.kernel.virtual_servers[VIP].real_servers == {POD1: ACTIVE, POD2: ACTIVE}
        assert VIP.address in plane.kernel.addresses


async def test_older_service_wins_and_the_other_takes_over(plane: FakeDataplane) -> None:
    older = service("older", cluster_ip="10.96.0.10", age=10)
    with capture_logs() as logs:
        async with running(plane, WEB, SLICE, older) as rig:
            assert plane.kernel.virtual_servers[VIP].real_servers == {}
            rig.replace(older, None)
            await rig.until(lambda: plane.kernel.virtual_servers[VIP].real_servers)
    conflict = next(entry for entry in logs if entry["event"] == "conflict")
    assert (conflict["winner"], conflict["loser"]) == ("default/older", "default/web")


async def test_endpoint_that_leaves_drains_and_returns_with_one_message(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE) as rig:
        plane.applied.clear()
        less = endpoint_slice(endpoint("10.244.0.1"))
        rig.replace(SLICE, less)
        await rig.until(lambda: len(rig.drains) == 1)
        rig.replace(less, SLICE)
        await rig.until(lambda: rig.endings)
        assert plane.applied == [
            RealServerOperation(Verb.SET, VIP, POD2, DRAINING),
            RealServerOperation(Verb.SET, VIP, POD2, ACTIVE),
        ]
        assert rig.endings == [Ending.RETURNED]


async def test_unreadable_object_is_counted_and_named(plane: FakeDataplane) -> None:
    with capture_logs() as logs:
        async with running(plane) as rig:
            rig.controller.skipped("Service", "ns/bad", "Expected `str`")
            assert 'ipvs_proxy_skipped_objects_total{kind="Service"} 1.0' in rig.metrics.render("")[0].decode()
            assert rig.events[-1:] == [
                "Service ns/bad Unreadable Expected `str`; "
                "the last version that could be read stays in use, if there was one"
            ]
    assert any(entry["event"] == "object_skipped" and entry["object"] == "ns/bad" for entry in logs)


def drift_virtual_server_removed(plane: FakeDataplane) -> None:
    del plane.kernel.virtual_servers[VIP]


def drift_weight_changed(plane: FakeDataplane) -> None:
    plane.kernel.virtual_servers[VIP].real_servers[POD1] = DRAINING


def drift_real_server_removed(plane: FakeDataplane) -> None:
    del plane.kernel.virtual_servers[VIP].real_servers[POD1]


def drift_virtual_server_added(plane: FakeDataplane) -> None:
    stranger = VIP._replace(port=99)
    plane.kernel.virtual_servers[stranger] = VirtualServer(stranger, "rr")


def drift_address_removed(plane: FakeDataplane) -> None:
    plane.kernel.addresses.clear()


def drift_address_added(plane: FakeDataplane) -> None:
    plane.kernel.addresses.add(packed("10.96.9.9"))


def drift_service_leaked(plane: FakeDataplane) -> None:
    """What another agent leaves of a Service that is gone."""
    leaked = virtual("10.96.9.9")
    plane.kernel.virtual_servers[leaked] = VirtualServer(leaked, "rr")
    plane.kernel.addresses.add(leaked.address)


def drift_member_leaked(plane: FakeDataplane) -> None:
    """The same where the address is a node's: only the member of the set says whose the virtual server is."""
    leaked = virtual("203.0.113.9")
    plane.kernel.virtual_servers[leaked] = VirtualServer(leaked, "rr")
    plane.kernel.sets["KUBE-EXTERNAL-IP"].add(SetEntry(*leaked[:3]))


def drift_sets_flushed(plane: FakeDataplane) -> None:
    for members in plane.kernel.sets.values():
        members.clear()


def drift_set_destroyed(plane: FakeDataplane) -> None:
    del plane.kernel.sets["KUBE-CLUSTER-IP"]


def drift_rules(plane: FakeDataplane) -> None:
    plane.wrong_rules = ["nat: chain KUBE-SERVICES is missing"]


@pytest.mark.parametrize(
    ("drift", "tables"),
    [
        (drift_virtual_server_removed, {"ipvs"}),
        (drift_weight_changed, {"ipvs"}),
        (drift_real_server_removed, {"ipvs"}),
        (drift_virtual_server_added, {"ipvs"}),
        (drift_address_removed, {"addresses"}),
        (drift_address_added, {"addresses"}),
        (drift_service_leaked, {"ipvs", "addresses"}),
        (drift_member_leaked, {"ipvs", "sets"}),
        (drift_sets_flushed, {"sets"}),
        (drift_set_destroyed, {"tables", "sets"}),
        (drift_rules, {"rules"}),
    ],
)
async def test_audit_repairs_and_counts_drift(
    plane: FakeDataplane, drift: Callable[[FakeDataplane], None], tables: set[str]
) -> None:
    async with running(plane, WEB, SLICE) as rig:
        await rig.audit.run_once()
        assert rig.repairs == {}
        right = plane.kernel.read()
        drift(plane)
        await rig.audit.run_once()
        assert set(rig.repairs) == tables
        assert plane.kernel.read() == right


async def test_audit_keeps_and_counts_what_is_not_ours(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE) as rig:
        foreign = virtual("192.0.2.5")
        plane.kernel.virtual_servers[foreign] = VirtualServer(foreign, "rr")
        await rig.audit.run_once()
        assert foreign in plane.kernel.virtual_servers
        assert set(rig.writer.foreign) == {foreign}
        assert rig.repairs == {}


async def test_service_that_leaked_goes_whole_also_when_an_address_was_repaired_before(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE) as rig:
        right = plane.kernel.read()
        drift_service_leaked(plane)
        plane.kernel.addresses.remove(VIP.address)
        await rig.audit.handle_events([LinkEvent(LinkChange.ADDRESS_REMOVED, VIP.address)])
        assert VIP.address in plane.kernel.addresses
        await rig.audit.run_once()
        assert plane.kernel.read() == right
        assert rig.repairs == {"addresses": 2, "ipvs": 1}


async def test_removed_address_is_put_back_at_once_and_our_own_writes_are_no_news(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE) as rig:
        plane.calls.clear()
        await rig.audit.handle_events(
            [LinkEvent(LinkChange.ADDRESS_REMOVED, packed("10.96.9.9")), LinkEvent(LinkChange.ADDRESS_ADDED)]
        )
        assert not plane.calls
        plane.kernel.addresses.clear()
        await rig.audit.handle_events([LinkEvent(LinkChange.ADDRESS_REMOVED, VIP.address)])
        assert plane.kernel.addresses == {VIP.address}
        plane.kernel.addresses.clear()
        await rig.audit.handle_events([LinkEvent(LinkChange.LINK_REMOVED)])
        assert plane.kernel.addresses == {VIP.address}


async def test_where_the_link_went_virtual_servers_come_back_at_once_and_before_the_addresses(
    plane: FakeDataplane,
) -> None:
    async with running(plane, WEB, SLICE) as rig:
        right = plane.kernel.read()
        plane.kernel.virtual_servers.clear()
        plane.kernel.addresses.clear()
        plane.calls.clear()
        await rig.audit.handle_events([LinkEvent(LinkChange.LINK_REMOVED)])
        assert plane.kernel.read() == right
        assert list(rig.repairs) == ["ipvs", "addresses"], "what has no virtual server leads to ports of the node"


async def test_service_that_cannot_be_planned_harms_no_other(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(item: Service, slices: Iterable[EndpointSlice], context: Context, *memory: Any) -> Fragment:
        if item.metadata.name == "cursed":
            raise RuntimeError("a bug")
        return plan_service(item, slices, context, *memory)

    monkeypatch.setattr("ipvs_proxy.agent.sync.planner.plan_service", plan)
    with capture_logs() as logs:
        async with running(plane, service("cursed", cluster_ip="10.96.0.11"), WEB, SLICE):
            assert set(plane.kernel.virtual_servers) == {VIP}
    assert [entry["service"] for entry in logs if entry["event"] == "plan_failed"] == ["default/cursed"]


async def test_listening_that_fails_is_begun_again_and_what_was_missed_is_repaired(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipvs_proxy.agent.sync.audit.LISTEN_AGAIN", 0.01)
    begun = []

    async def watch() -> AsyncGenerator[list[LinkEvent], None]:
        begun.append(None)
        plane.kernel.addresses.clear()
        yield []
        raise OSError("no buffer space")

    async with running(plane, WEB, SLICE) as rig:
        task = asyncio.create_task(
            follow_for_ever(rig.audit.handle_events, lambda: Listening(watch), failed=rig.audit.stop_listening)
        )
        await rig.until(lambda: len(begun) >= 2)
        assert rig.repairs["addresses"] >= 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_happened_before_it_listened_is_repaired_at_once(plane: FakeDataplane) -> None:
    async def watch() -> AsyncGenerator[list[LinkEvent], None]:
        await asyncio.Event().wait()
        yield []

    async with running(plane, WEB, SLICE) as rig:
        plane.kernel.addresses.clear()
        task = asyncio.create_task(
            follow_for_ever(rig.audit.handle_events, lambda: Listening(watch), failed=rig.audit.stop_listening)
        )
        await rig.until(lambda: plane.kernel.addresses == {VIP.address})
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class UnwalkedDict(dict[Any, Any]):
    """Fails when somebody goes through it all."""

    def __iter__(self) -> Any:
        raise AssertionError("walked")

    def keys(self) -> Any:
        raise AssertionError("walked")

    items = values = keys


async def test_a_change_looks_at_nothing_of_other_services(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE) as rig:
        desired, actual = rig.writer.desired, rig.writer.actual
        desired.virtual_servers = UnwalkedDict(desired.virtual_servers)
        actual.virtual_servers = UnwalkedDict(actual.virtual_servers)
        rig.controller.cache.services = UnwalkedDict(rig.controller.cache.services)
        rig.replace(SLICE, endpoint_slice(endpoint("10.244.0.1"), endpoint("10.244.0.9")))
        await rig.until(lambda: plane.kernel.virtual_servers[VIP].real_servers.get(real("10.244.0.9")) == ACTIVE)


def at(moment: datetime, *addresses: str) -> EndpointSlice:
    """A slice that says when the change happened that led to it."""
    return annotated_slice(endpoint_slice(*map(endpoint, addresses)), {TRIGGER_TIME: moment.isoformat()})


async def test_changes_are_counted_and_their_way_into_the_kernel_is_measured_once(plane: FakeDataplane) -> None:
    old = at(datetime.now(UTC) - timedelta(hours=1), "10.244.0.1")
    async with running(plane, WEB, old) as rig:
        new = at(datetime.now(UTC), "10.244.0.1", "10.244.0.2")
        rig.replace(old, new)
        await rig.until(lambda: rig.history.changes)
        # The next one is of the same moment, as when a label changes: nothing happened to an endpoint.
        rig.replace(WEB, structs.replace(WEB, spec=structs.replace(WEB.spec, session_affinity="ClientIP")))
        await rig.until(lambda: len(rig.history.changes) == 2)
        exposed = rig.metrics.render("")[0].decode()
    latencies = [line for line in exposed.splitlines() if "network_programming_duration_seconds_count" in line]
    assert latencies == [
        'kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1.0',
        'kubeproxy_network_programming_duration_seconds_count{ip_family="IPv6"} 1.0',
    ]
    changes = [line for line in exposed.splitlines() if line.startswith("kubeproxy_") and "_changes" in line]
    assert changes == [
        "kubeproxy_sync_proxy_rules_service_changes_total 2.0",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 2.0",
        "kubeproxy_sync_proxy_rules_service_changes_pending 0.0",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0.0",
    ]
    assert [(change.what, change.objects, change.total) for change in rig.history.changes] == [
        ("programmed", ["default/web"], 1),
        ("programmed", ["default/web"], 1),
    ]


async def test_rules_follow_the_own_node(plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(ObjectMeta("node"))
    changed = structs.replace(node, metadata=ObjectMeta("node", labels={"a": "b"}))
    async with running(plane, WEB, SLICE, node) as rig:
        assert rig.adapted == [node]
        plane.calls.clear()
        monkeypatch.setattr(
            rig.controller, "_adapt_rules", lambda node: bool(rig.adapted.append(node)) or node is changed
        )
        rig.replace(node, changed)
        await rig.until(lambda: plane.calls["repair_rules"])
        assert (rig.adapted, plane.calls) == ([node, changed], {"repair_rules": 1})
        rig.replace(changed, node)
        rig.replace(SLICE, endpoint_slice(endpoint("10.244.0.1")))
        await rig.until(lambda: plane.calls["apply"])
        assert plane.calls["repair_rules"] == 1
