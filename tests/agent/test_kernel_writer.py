"""What the kernel writer promises besides writing: nothing waits for nothing, nothing is written in vain or forgotten."""

from __future__ import annotations

from errno import EIO

import pytest

from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import (
    ACTIVE,
    DRAINING,
    AddressOperation,
    Operation,
    RealServerOperation,
    SetEntry,
    SetEntryOperation,
    Verb,
    VirtualServer,
    VirtualServerOperation,
)
from tests.support.failing import failing
from tests.support.fake_dataplane import FakeDataplane
from tests.support.objects import endpoint, endpoint_slice, packed, real, service, virtual
from tests.support.rig import POD1, POD2, SLICE, VIP, WEB, Rig, running
from tests.support.tables import hold

OTHER = virtual("10.96.0.11")


@pytest.fixture
def plane() -> FakeDataplane:
    return FakeDataplane()


def no_addresses(operation: Operation) -> int:
    return EIO if isinstance(operation, AddressOperation) else 0


def attempts(plane: FakeDataplane) -> list[Operation]:
    """What was tried at the kernel, with what it refused."""
    return [operation for operation, _ in plane.kernel.log]


def counted(rig: Rig) -> dict[str, float]:
    """The operations by table, verb and result."""
    return {
        "{table} {verb} {result}".format(**sample.labels): sample.value
        for family in rig.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "ipvs_proxy_operations_total"
    }


async def test_operations_are_counted_with_what_became_of_them(plane: FakeDataplane) -> None:
    plane.kernel.refuse = no_addresses
    async with running(plane, WEB, SLICE) as rig:
        assert counted(rig) == {
            "ipvs add success": 3.0,
            "sets add success": 2.0,
            # With the changes, and once more with everything, at the end of the start.
            "addresses add failure": 2.0,
        }


async def test_what_waits_for_another_attempt_is_not_tried_by_the_audit_before(plane: FakeDataplane) -> None:
    def refuse(operation: Operation) -> int:
        return EIO if isinstance(operation, AddressOperation | SetEntryOperation) else 0

    plane.kernel.refuse = refuse
    async with running(plane, WEB, SLICE) as rig:
        waiting = len(rig.writer.retries)
        plane.kernel.log.clear()
        await rig.audit.unsettled.write()
        assert attempts(plane) == []
        assert len(rig.writer.retries) == waiting == 3


async def test_a_change_of_one_real_server_forgets_no_failed_write_of_another(plane: FakeDataplane) -> None:
    """Of a large Service the plan says which real servers differ, so only they would be compared."""
    pieces = [endpoint_slice(endpoint(f"10.0.0.{number}"), name=f"web-{number}") for number in range(1, 4)]
    failed, new = real("10.0.0.7"), real("10.0.0.8")

    def refuse(operation: Operation) -> int:
        return EIO if isinstance(operation, RealServerOperation) and operation.key == failed else 0

    async with running(plane, WEB, *pieces) as rig:
        plane.kernel.refuse = refuse
        rig.replace(pieces[0], endpoint_slice(endpoint("10.0.0.1"), endpoint("10.0.0.7"), name="web-1"))
        await rig.until(lambda: len(rig.writer.retries))
        plane.kernel.refuse = None
        rig.replace(pieces[1], endpoint_slice(endpoint("10.0.0.2"), endpoint("10.0.0.8"), name="web-2"))
        await rig.until(lambda: new in plane.kernel.virtual_servers[VIP].real_servers)
        await rig.writer.write(TableKeys())  # after the one under way
        assert failed in plane.kernel.virtual_servers[VIP].real_servers
        assert len(rig.writer.retries) == 0


async def test_a_foreign_virtual_server_that_a_service_asks_for_later_is_adopted_as_it_is(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE) as rig:
        plane.kernel.virtual_servers[OTHER] = VirtualServer(OTHER, "wlc", real_servers={POD1: ACTIVE})
        await rig.audit.run_once()
        assert set(rig.writer.foreign) == {OTHER}
        plane.kernel.log.clear()
        rig.add(service("other", cluster_ip="10.96.0.11"))
        rig.add(endpoint_slice(endpoint("10.244.0.1"), endpoint("10.244.0.2"), name="other-x", of="other"))
        await rig.until(lambda: OTHER.address in plane.kernel.addresses)
        desired = rig.writer.desired.virtual_servers[OTHER]
        assert [operation for operation in attempts(plane) if not hasattr(operation, "entry")] == [
            VirtualServerOperation(Verb.SET, desired),
            RealServerOperation(Verb.ADD, OTHER, POD2, ACTIVE),
            AddressOperation(Verb.ADD, OTHER.address),
        ]
        assert rig.writer.foreign == {}


async def test_only_what_drains_is_removed_at_the_end_of_a_drain(plane: FakeDataplane) -> None:
    gone, wanted, active = real("10.244.0.9"), POD1, real("10.244.0.8")
    async with running(plane, WEB, SLICE) as rig:
        for tables in (plane.kernel, rig.writer.actual):
            hold(tables.virtual_servers, VIP, {wanted: DRAINING, active: ACTIVE})
        plane.kernel.log.clear()
        assert await rig.writer.remove_real_servers([(VIP, gone), (VIP, wanted), (VIP, active), (OTHER, gone)]) == []
        assert attempts(plane) == []
        for tables in (plane.kernel, rig.writer.actual):
            hold(tables.virtual_servers, VIP, {active: DRAINING})
        removed = RealServerOperation(Verb.DELETE, VIP, active, DRAINING)
        assert await rig.writer.remove_real_servers([(VIP, active)]) == [removed]
        assert attempts(plane) == [removed]


async def test_what_nobody_wants_is_found_again_after_an_audit_that_failed(
    plane: FakeDataplane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(plane, WEB, SLICE) as rig:
        right = plane.kernel.read()
        plane.kernel.addresses.add(packed("10.96.9.9"))
        plane.kernel.sets["KUBE-IPVS-IPS"].add(SetEntry(packed("10.96.9.9")))
        monkeypatch.setattr(plane, "compare_list", failing(plane.compare_list, 1))
        with pytest.raises(OSError, match="a fault"):
            await rig.audit.run_once()
        await rig.audit.run_once()
        assert plane.kernel.read() == right


async def test_writes_are_noted_for_as_long_as_somebody_wants_to_know(plane: FakeDataplane) -> None:
    async with running(plane, WEB, SLICE) as rig:
        with rig.writer.noting_writes() as noted:
            del rig.writer.actual.virtual_servers[VIP]
            plane.kernel.virtual_servers.clear()
            await rig.writer.write(TableKeys({VIP}))
        assert noted == TableKeys({VIP})
        rig.writer.actual.addresses.clear()
        await rig.writer.write(TableKeys(addresses={VIP.address}))
        assert noted == TableKeys({VIP})
