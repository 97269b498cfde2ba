"""What is said of one Service: the plan beside what was read of the kernel."""

from __future__ import annotations

from msgspec import structs

from ipvs_proxy.commands.overview import state_word
from ipvs_proxy.kernel.filter.ipset.names import name_of
from ipvs_proxy.kernel.ipvs.records import Activity, Balanced, Connections, Counters, Observation
from ipvs_proxy.kube.objects import EndpointSlice, Service, ServicePort
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Context, Fragment, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.tables import ACTIVE, DRAINING, RealServer, RealServerKey, Role, SetEntry, VirtualServer
from ipvs_proxy.state.documents import DifferenceKind, ServiceState, Traffic
from ipvs_proxy.state.services import differences_of, member_text, service_state, summarize
from tests.support.objects import endpoint, endpoint_slice, packed, real, service, virtual

VIP, NAME = virtual("10.96.0.10"), ServiceName("default", "web")
POD1, POD2, GONE = real("10.244.0.1"), real("10.244.0.2"), real("10.244.0.3")
NOTHING = Counters(0, 0, 0, 0, 0)
QUIET = Balanced(NOTHING, NOTHING)


def planned(one: Service, *slices: EndpointSlice) -> tuple[Fragment, DesiredTables]:
    fragment, desired = plan_service(one, slices, Context("node"), Marks()), DesiredTables()
    desired.replace(fragment.name, fragment)
    return fragment, desired


def in_kernel(**weights: int) -> dict[RealServerKey, Activity]:
    names = {"pod1": POD1, "pod2": POD2, "gone": GONE}
    return {
        names[name]: Activity(RealServer(weight), Connections(3, 2, 1), Balanced(Counters(5, 4, 3, 2, 1), NOTHING))
        for name, weight in weights.items()
    }


def state_of(observation: Observation | None, actual: KernelTables | None = None) -> ServiceState:
    web = service()
    fragment, desired = planned(web, endpoint_slice(endpoint("10.244.0.1"), endpoint("10.244.0.2", ready=False)))
    return service_state(
        web,
        fragment,
        desired=desired,
        actual=actual or KernelTables(),
        observed={VIP: observation},
        nodes={"10.244.0.1": "node-a"},
        drains=[],
        warming={},
        name_of_role=name_of,
    )


def test_each_endpoint_is_in_or_out_with_its_reason_and_what_the_kernel_has() -> None:
    (server,) = state_of(Observation(VirtualServer(VIP, "rr"), QUIET, in_kernel(pod1=1, gone=0))).virtual_servers
    assert [(found.address, found.wanted, found.reason, found.weight, found.node) for found in server.endpoints] == [
        ("10.244.0.1:8080", True, "ready", 1, "node-a"),
        ("10.244.0.2:8080", False, "not-ready", None, ""),
        ("10.244.0.3:8080", None, "", 0, ""),
    ]
    assert (server.endpoints[0].active_connections, server.endpoints[0].total.connections) == (3, 5)
    assert (server.reason, server.in_kernel, server.differences) == ("cluster-ip", True, [])


def test_service_is_in_sync_only_if_the_kernel_has_all_of_it() -> None:
    observation = Observation(VirtualServer(VIP, "rr"), QUIET, in_kernel(pod1=1))
    fragment, _ = planned(service(), endpoint_slice(endpoint("10.244.0.1")))
    entries: dict[Role, set[SetEntry]] = {}
    for role, entry in fragment.entries:
        entries.setdefault(role, set()).add(entry)
    whole = KernelTables(addresses={VIP.address}, entries=entries)
    assert state_of(observation, whole).in_sync
    assert not state_of(None, whole).in_sync
    without_address = state_of(observation, KernelTables(entries=entries))
    assert not without_address.in_sync
    assert [found.member for found in without_address.members if not found.in_kernel] == ["10.96.0.10"]


def test_nothing_of_the_kernel_is_told_of_a_virtual_server_that_an_older_service_has() -> None:
    web, older = service(), service("older", age=60)
    fragment, desired = planned(web, endpoint_slice(endpoint("10.244.0.1")))
    winner = plan_service(older, [endpoint_slice(endpoint("10.244.0.3"), of="older")], Context("node"), Marks())
    desired.replace(winner.name, winner)
    entries: dict[Role, set[SetEntry]] = {}
    for role, entry in desired.entries:
        entries.setdefault(role, set()).add(entry)
    state = service_state(
        web,
        fragment,
        desired=desired,
        actual=KernelTables(addresses={VIP.address}, entries=entries),
        observed={
            VIP: Observation(VirtualServer(VIP, "rr"), QUIET._replace(total=Counters(9, 9, 9, 9, 9)), in_kernel(gone=1))
        },
        nodes={},
        drains=[],
        warming={},
        name_of_role=name_of,
    )
    (server,) = state.virtual_servers
    assert (server.owner, server.in_kernel, server.total) == ("default/older", False, Traffic())
    assert server.differences == ["it belongs to the older Service default/older"]
    assert [(found.address, found.weight) for found in server.endpoints] == [("10.244.0.1:8080", None)]
    assert not state.in_sync
    assert all(member.in_kernel for member in state.members)


def test_every_difference_of_a_virtual_server_is_told_and_a_drain_is_none() -> None:
    desired = VirtualServer(VIP, "rr", real_servers={POD1: ACTIVE, POD2: ACTIVE})
    found = VirtualServer(VIP, "lc", real_servers={POD1: DRAINING, GONE: DRAINING, real("10.244.0.9"): ACTIVE})
    assert differences_of(desired, found) == [
        "10.96.0.10:80/TCP has lc instead of rr",
        "10.96.0.10:80/TCP has real server 10.244.0.1:8080 with weight 0",
        "10.96.0.10:80/TCP has real server 10.244.0.9:8080, which is not wanted",
        "10.96.0.10:80/TCP lacks real server 10.244.0.2:8080",
    ]
    assert differences_of(desired, None) == ["10.96.0.10:80/TCP is missing"]


def test_summary_counts_endpoints_and_drains_and_names_who_has_its_address() -> None:
    fragment, desired = planned(service(), endpoint_slice(endpoint("10.244.0.1")))
    actual = KernelTables({VIP: VirtualServer(VIP, "rr", real_servers={POD1: ACTIVE, GONE: DRAINING})})
    balanced = {VIP: Balanced(Counters(9, 8, 7, 6, 5), Counters(1, 2, 3, 4, 5))}
    found = summarize(NAME, service(), desired=desired, actual=actual, omissions=fragment.omissions, balanced=balanced)
    assert (found.addresses, found.ports, found.virtual_servers) == (["10.96.0.10"], ["80/TCP"], 1)
    assert (found.endpoints, found.draining, found.in_sync) == (1, 1, True)
    assert (found.total, found.per_second) == (Traffic(9, 8, 7, 6, 5), Traffic(1, 2, 3, 4, 5))
    older = service("older", age=60)
    desired.replace(ServiceName("default", "older"), plan_service(older, [], Context("node"), Marks()))
    lost = summarize(NAME, service(), desired=desired, actual=actual, omissions=[], balanced={})
    assert (lost.in_sync, lost.differences) == (False, ["10.96.0.10:80/TCP belongs to default/older"])
    assert lost.difference_kinds == [DifferenceKind.CONFLICT]
    assert found.difference_kinds == []


def test_conflict_hides_no_difference_of_the_kernel_however_many_there_are() -> None:
    web = service(ports=[ServicePort(number) for number in range(80, 86)])
    older = service("older", age=60, ports=[ServicePort(number) for number in range(80, 85)])
    _, desired = planned(web)
    desired.replace(ServiceName("default", "older"), plan_service(older, [], Context("node"), Marks()))
    found = summarize(NAME, web, desired=desired, actual=KernelTables(), omissions=[], balanced={})
    assert all("belongs to default/older" in text for text in found.differences), "more are not named"
    assert found.difference_kinds == [DifferenceKind.CONFLICT, DifferenceKind.KERNEL]
    assert state_word(found) == "differs"
    assert state_word(structs.replace(found, difference_kinds=[DifferenceKind.CONFLICT])) == "conflict"


def test_members_are_written_as_ipset_writes_them() -> None:
    entry = SetEntry(*VIP[:3])
    assert member_text(entry) == "10.96.0.10,tcp:80"
    assert member_text(SetEntry(packed("fd00::1"))) == "fd00::1"
    assert member_text(SetEntry(port=30080)) == "30080"
    assert member_text(entry._replace(source=packed("192.0.2.0"), prefix_length=24)) == "10.96.0.10,tcp:80,192.0.2.0/24"
    assert member_text(entry._replace(mark=0x2005)) == "10.96.0.10,tcp:80 mark 0x2005"


def test_endpoint_that_is_a_virtual_ip_is_named() -> None:
    web = service()
    fragment, desired = planned(web, endpoint_slice(endpoint("10.244.0.1"), endpoint("10.96.0.10")))
    state = service_state(
        web,
        fragment,
        desired=desired,
        actual=KernelTables(),
        observed={VIP: None},
        nodes={},
        drains=[],
        warming={},
        name_of_role=name_of,
    )
    [omission] = state.omissions
    assert (omission.where, omission.reason) == ("service default/web endpoint 10.96.0.10", "endpoint-is-a-virtual-ip")
    assert "on the node itself" in omission.instead
