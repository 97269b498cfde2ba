"""External addresses that may be another host's: they go with their last Service, and what drains there with them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ipvs_proxy.kube.objects import ServicePort
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.difference import unsettled, unwanted
from ipvs_proxy.plan.draining import DrainingVirtualServers, is_external, ledger_entry, remains_of
from ipvs_proxy.plan.fragment import Context, ServiceName
from ipvs_proxy.plan.marks import Marks, mark_key
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.ownership import ledger
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.table_keys import TableKeys, keys_of
from ipvs_proxy.plan.tables import ACTIVE, DRAINING, AddressOperation, Family, Operation, Protocol, SetEntry
from tests.support.fake_kernel import FakeKernel
from tests.support.objects import endpoint, endpoint_slice, packed, real, service, virtual
from tests.support.roles import role
from tests.support.tables import everything, round_of

OUTSIDE = "203.0.113.1"
#: Three Services that share an external IP (kubernetes/kubernetes#80158).
SHARED_BY = {
    name: replace(
        service(name, cluster_ip=f"10.96.1.{number}", ports=[ServicePort(8000 + number, "http")]),
        spec=replace(
            service(cluster_ip=f"10.96.1.{number}", ports=[ServicePort(8000 + number, "http")]).spec,
            external_ips=[OUTSIDE],
        ),
    )
    for number, name in enumerate(("s1", "s2", "s3"), 1)
}


def shared() -> tuple[DesiredTables, FakeKernel, KernelTables]:
    """Three Services with one external IP, in the kernel."""
    desired, kernel = DesiredTables(), FakeKernel()
    for name, one in SHARED_BY.items():
        fragment = plan_service(one, [endpoint_slice(endpoint("10.0.0.1"), of=name)], Context("here"), Marks())
        desired.replace(fragment.name, fragment)
    mirror = kernel.read()
    carry_out(round_of(desired, mirror, everything(desired, mirror)), kernel, mirror)
    return desired, kernel, mirror


def carry_out(operations: list[Operation], kernel: FakeKernel, mirror: KernelTables) -> None:
    for operation in operations:
        assert kernel.apply(operation) == 0, operation
        mirror.record([operation])


def let_go(name: str, desired: DesiredTables, kernel: FakeKernel, mirror: KernelTables) -> list[Operation]:
    operations = round_of(desired, mirror, desired.replace(ServiceName("default", name), None))
    carry_out(operations, kernel, mirror)
    return operations


def test_a_shared_external_ip_goes_with_its_last_service_whatever_drains_there() -> None:
    desired, kernel, mirror = shared()
    for name in ("s1", "s2"):
        let_go(name, desired, kernel, mirror)
        assert packed(OUTSIDE) in kernel.addresses
        assert virtual(OUTSIDE, 8001) in kernel.virtual_servers, "it drains as long as the address is there"
    let_go("s3", desired, kernel, mirror)
    assert packed(OUTSIDE) not in kernel.addresses
    assert not [key for key in kernel.virtual_servers if key.address == packed(OUTSIDE)]
    assert not [entry for entries in kernel.sets.values() for entry in entries if entry.address == packed(OUTSIDE)]
    assert virtual("10.96.1.1", 8001) in kernel.virtual_servers, "at the cluster IP it drains"
    assert packed("10.96.1.1") in kernel.addresses


def test_what_drains_at_a_shared_external_ip_is_known_after_a_restart() -> None:
    desired, kernel, mirror = shared()
    let_go("s1", desired, kernel, mirror)
    found = kernel.read()
    assert ledger(found)(virtual(OUTSIDE, 8001))
    assert round_of(desired, found, unwanted(desired, found)) == []
    assert virtual(OUTSIDE, 8001) in found.draining
    # Wanted again, it needs no entry in the ledger.
    again = plan_service(SHARED_BY["s1"], [endpoint_slice(endpoint("10.0.0.1"), of="s1")], Context("here"), Marks())
    carry_out(round_of(desired, found, desired.replace(again.name, again)), kernel, found)
    assert not kernel.sets["IPVS-PROXY-LEAVING"]
    assert kernel.virtual_servers[virtual(OUTSIDE, 8001)].real_servers == {real("10.0.0.1"): ACTIVE}


def test_a_crash_while_an_address_goes_leaves_nothing_that_is_not_known_as_ours() -> None:
    desired, kernel, mirror = shared()
    for name in ("s1", "s2"):
        let_go(name, desired, kernel, mirror)
    for operation in round_of(desired, mirror, desired.replace(ServiceName("default", "s3"), None)):
        is_ours = ledger(kernel.read())
        assert all(map(is_ours, kernel.virtual_servers)), f"before {operation}"
        assert kernel.apply(operation) == 0
    assert not [key for key in kernel.virtual_servers if key.address == packed(OUTSIDE)]


def test_what_has_drained_at_an_external_address_goes_with_it_and_is_found_by_it() -> None:
    desired, _, mirror = shared()
    for server in mirror.virtual_servers.values():
        server.real_servers.update(dict.fromkeys(server.real_servers, DRAINING))
    for name in SHARED_BY:
        desired.replace(ServiceName("default", name), None)
    assert not unsettled(desired, mirror).virtual_servers, "there is nothing to write to it"
    found = round_of(desired, mirror, unwanted(desired, mirror))
    assert keys_of(found).virtual_servers == {virtual(OUTSIDE, 8000 + number) for number in (1, 2, 3)}
    assert {operation.address for operation in found if isinstance(operation, AddressOperation)} == {packed(OUTSIDE)}


@pytest.mark.parametrize(
    ("protocol", "node_port"),
    [
        (Protocol.TCP, ("KUBE-NODE-PORT-TCP", SetEntry(port=8001))),
        (Protocol.UDP, ("KUBE-NODE-PORT-UDP", SetEntry(port=8001))),
        (Protocol.SCTP, ("KUBE-NODE-PORT-SCTP-HASH", SetEntry(packed(OUTSIDE), Protocol.SCTP, 8001))),
    ],
)
def test_what_may_outlast_a_virtual_server(protocol: Protocol, node_port: tuple[str, SetEntry]) -> None:
    address = packed(OUTSIDE)
    entries = {(role("KUBE-IPVS-IPS"), SetEntry(address)), (role(node_port[0]), node_port[1])}
    assert remains_of(virtual(OUTSIDE, 8001, protocol)) == TableKeys(addresses={address}, entries=entries)


def test_nothing_outlasts_the_virtual_server_of_a_mark() -> None:
    key = mark_key(0x2005, Family.IPV4)
    assert not remains_of(key)
    assert not is_external(key, {role("KUBE-EXTERNAL-IP"): {SetEntry(*key[:3])}})


def test_what_is_let_go_is_no_longer_held() -> None:
    found, (one, two) = DrainingVirtualServers(), (virtual(OUTSIDE, 8001), virtual(OUTSIDE, 8002))
    for key in (one, two):
        found.hold(key, external=True)
    assert found.external_at(packed(OUTSIDE)) == {one, two}
    found.release(one)
    assert found.external_at(packed(OUTSIDE)) == {two}
    assert (found.holds(ledger_entry(one)), found.holds(ledger_entry(two))) == (False, True)
    found.release(two)
    assert found.external_at(packed(OUTSIDE)) == set(found.keys()) == set()
