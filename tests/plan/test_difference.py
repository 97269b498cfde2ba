"""From desired and actual to operations: what each difference leads to, and in which order."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ipvs_proxy.kernel.filter.ipset.names import name_of
from ipvs_proxy.kube.objects import EndpointPort, ServicePort
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.difference import unsettled, unwanted, virtual_server_difference
from ipvs_proxy.plan.draining import remains_of
from ipvs_proxy.plan.fragment import Context, Fragment
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.mirror import KernelTables, is_same
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.table_keys import TableKeys, keys_of
from ipvs_proxy.plan.tables import (
    ACTIVE,
    DRAINING,
    PERSISTENT,
    AddressOperation,
    IpvsOperation,
    Operation,
    Protocol,
    RealServer,
    RealServerKey,
    RealServerOperation,
    SetEntry,
    SetEntryOperation,
    Verb,
    VirtualServer,
    VirtualServerOperation,
)
from tests.support.fake_kernel import FakeKernel
from tests.support.objects import endpoint, endpoint_slice, packed, real, service, virtual
from tests.support.roles import role
from tests.support.tables import everything, round_of

ADD, SET, DELETE = Verb.ADD, Verb.SET, Verb.DELETE
A, B = real("10.0.0.1"), real("10.0.0.2")
TCP, UDP, SCTP = (virtual("10.96.0.10", 80, protocol) for protocol in Protocol)


def server(
    key: object = TCP, *, real_servers: dict[RealServerKey, RealServer] | None = None, **more: object
) -> VirtualServer:
    return VirtualServer(key, "rr", real_servers=real_servers or {}, **more)  # type: ignore[arg-type]


def on(key: object, verb: Verb, who: RealServerKey, what: RealServer) -> RealServerOperation:
    return RealServerOperation(verb, key, who, what)  # type: ignore[arg-type]


# One virtual server.

BARE = server()
STICKY = server(flags=PERSISTENT, timeout=600)
FULL = server(real_servers={A: ACTIVE, B: ACTIVE})
HALF = server(real_servers={A: ACTIVE})
UDP_HALF, UDP_FULL = replace(HALF, key=UDP), replace(FULL, key=UDP)
SCTP_HALF, SCTP_FULL = replace(HALF, key=SCTP), replace(FULL, key=SCTP)

#: Case: (desired, actual, operations).
TABLE: dict[str, tuple[VirtualServer | None, VirtualServer | None, list[IpvsOperation]]] = {
    "absent on both sides": (None, None, []),
    "equal": (FULL, FULL, []),
    "missing": (BARE, None, [VirtualServerOperation(ADD, BARE)]),
    "missing with real servers: the virtual server first": (
        FULL,
        None,
        [VirtualServerOperation(ADD, FULL), on(TCP, ADD, A, ACTIVE), on(TCP, ADD, B, ACTIVE)],
    ),
    "not wanted: its real servers drain": (None, FULL, [on(TCP, SET, A, DRAINING), on(TCP, SET, B, DRAINING)]),
    "not wanted and drained already": (None, replace(FULL, real_servers={A: DRAINING}), []),
    "not wanted and empty": (None, BARE, [VirtualServerOperation(DELETE, BARE)]),
    "not wanted, of UDP: one operation, its real servers go along": (
        None,
        replace(FULL, key=UDP),
        [VirtualServerOperation(DELETE, replace(FULL, key=UDP))],
    ),
    "other flags and timeout: the real servers are not touched": (
        replace(STICKY, real_servers={A: ACTIVE}),
        HALF,
        [VirtualServerOperation(SET, replace(STICKY, real_servers={A: ACTIVE}))],
    ),
    "affinity ended": (BARE, STICKY, [VirtualServerOperation(SET, BARE)]),
    "other timeout": (STICKY, replace(STICKY, timeout=10), [VirtualServerOperation(SET, STICKY)]),
    "other scheduler": (
        replace(BARE, scheduler="mh", flags=16),
        BARE,
        [VirtualServerOperation(SET, replace(BARE, scheduler="mh", flags=16))],
    ),
    "other netmask": (BARE, replace(BARE, netmask=24), [VirtualServerOperation(SET, BARE)]),
    "one more real server": (FULL, HALF, [on(TCP, ADD, B, ACTIVE)]),
    "one more real server and other settings": (
        replace(FULL, timeout=600, flags=1),
        HALF,
        [VirtualServerOperation(SET, replace(FULL, timeout=600, flags=1)), on(TCP, ADD, B, ACTIVE)],
    ),
    "a real server with another weight": (
        HALF,
        server(real_servers={A: RealServer(weight=7)}),
        [on(TCP, SET, A, ACTIVE)],
    ),
    "a real server with another forwarding method": (
        HALF,
        server(real_servers={A: RealServer(forwarding=3)}),
        [on(TCP, SET, A, ACTIVE)],
    ),
    "a real server with thresholds": (
        HALF,
        server(real_servers={A: RealServer(upper_threshold=9, lower_threshold=1)}),
        [on(TCP, SET, A, ACTIVE)],
    ),
    "TCP that goes away drains": (HALF, FULL, [on(TCP, SET, B, DRAINING)]),
    "SCTP that goes away drains": (SCTP_HALF, SCTP_FULL, [on(SCTP, SET, B, DRAINING)]),
    "UDP that goes away is deleted": (UDP_HALF, UDP_FULL, [on(UDP, DELETE, B, ACTIVE)]),
    "UDP that still answers drains": (
        replace(UDP_HALF, lingering=frozenset({B})),
        UDP_FULL,
        [on(UDP, SET, B, DRAINING)],
    ),
    "UDP that drains and answers is left alone": (
        replace(UDP_HALF, lingering=frozenset({B})),
        replace(UDP_HALF, real_servers={A: ACTIVE, B: DRAINING}),
        [],
    ),
    "UDP that drains and answers no longer is deleted": (
        UDP_HALF,
        replace(UDP_HALF, real_servers={A: ACTIVE, B: DRAINING}),
        [on(UDP, DELETE, B, DRAINING)],
    ),
    "TCP that lingers drains too": (replace(HALF, lingering=frozenset({B})), FULL, [on(TCP, SET, B, DRAINING)]),
    "a draining server is left alone": (HALF, replace(HALF, real_servers={A: ACTIVE, B: DRAINING}), []),
    "a lingering server that is not there is not brought back": (replace(HALF, lingering=frozenset({B})), HALF, []),
    "back from the drain: one SET": (
        FULL,
        replace(FULL, real_servers={A: ACTIVE, B: DRAINING}),
        [on(TCP, SET, B, ACTIVE)],
    ),
    "SCTP back from the drain: one SET": (
        SCTP_FULL,
        replace(SCTP_FULL, real_servers={A: ACTIVE, B: DRAINING}),
        [on(SCTP, SET, B, ACTIVE)],
    ),
    "all go away": (BARE, FULL, [on(TCP, SET, A, DRAINING), on(TCP, SET, B, DRAINING)]),
    "exchanged: the new one comes before the old one drains": (
        server(real_servers={B: ACTIVE}),
        server(real_servers={A: ACTIVE}),
        [on(TCP, ADD, B, ACTIVE), on(TCP, SET, A, DRAINING)],
    ),
    "the same address on another port is another server": (
        server(real_servers={real("10.0.0.1", 9090): ACTIVE}),
        HALF,
        [on(TCP, ADD, real("10.0.0.1", 9090), ACTIVE), on(TCP, SET, A, DRAINING)],
    ),
    "lingering alone is no difference to the kernel": (
        replace(FULL, lingering=frozenset({real("10.0.0.3")})),
        FULL,
        [],
    ),
}


@pytest.mark.parametrize(("desired", "actual", "operations"), TABLE.values(), ids=TABLE)
def test_virtual_server_difference(
    desired: VirtualServer | None, actual: VirtualServer | None, operations: list[IpvsOperation]
) -> None:
    assert virtual_server_difference(desired, actual) == operations


#: What a plan knows of a virtual server and the kernel does not.
OF_THE_PLAN = {"key", "real_servers", "lingering", "internal", "drain_timeout"}


@pytest.mark.parametrize(("field", "value"), [("scheduler", "lc"), ("flags", 1), ("timeout", 600), ("netmask", 24)])
def test_a_setting_that_differs_is_set(field: str, value: object) -> None:
    desired = replace(FULL, **{field: value})
    assert virtual_server_difference(desired, FULL) == [VirtualServerOperation(SET, desired)]
    assert not is_same(desired, FULL)


def test_every_field_is_a_setting_or_the_plans_own() -> None:
    settings = {"scheduler", "flags", "timeout", "netmask"}
    assert set(VirtualServer.__struct_fields__) == settings | OF_THE_PLAN
    assert is_same(replace(FULL, internal=UDP, drain_timeout=1.0, lingering=frozenset({B})), FULL)


@pytest.mark.parametrize(("desired", "actual", "operations"), TABLE.values(), ids=TABLE)
def test_the_kernel_takes_every_operation_and_then_nothing_is_left(
    desired: VirtualServer | None, actual: VirtualServer | None, operations: list[IpvsOperation]
) -> None:
    kernel = FakeKernel()
    if actual is not None:
        kernel.virtual_servers[actual.key] = replace(actual, real_servers=dict(actual.real_servers))
    mirror = kernel.read()
    for operation in operations:
        assert kernel.apply(operation) == 0
        mirror.record([operation])
    assert mirror == kernel.read()
    key = (desired or actual or BARE).key
    assert virtual_server_difference(desired, mirror.virtual_servers.get(key)) == []


# The mirror.


def test_the_mirror_never_shares_real_servers_with_the_plan() -> None:
    mirror = KernelTables()
    mirror.record([VirtualServerOperation(ADD, FULL)])
    assert mirror.virtual_servers[TCP].real_servers == {}
    mirror.record([on(TCP, ADD, A, ACTIVE)])
    mirror.record([VirtualServerOperation(SET, replace(STICKY, real_servers={B: ACTIVE}))])
    assert mirror.virtual_servers[TCP] == replace(STICKY, real_servers={A: ACTIVE})
    mirror.record([on(TCP, SET, A, DRAINING)])
    mirror.record([on(TCP, DELETE, A, DRAINING)])
    assert mirror.virtual_servers[TCP] == STICKY
    assert FULL.real_servers == {A: ACTIVE, B: ACTIVE}


def test_the_mirror_keeps_no_lingering_servers_of_the_plan() -> None:
    mirror = KernelTables()
    mirror.record([VirtualServerOperation(ADD, replace(BARE, lingering=frozenset({A})))])
    assert mirror.virtual_servers == {TCP: BARE}


@pytest.mark.parametrize("verb", Verb)
def test_a_real_server_of_a_virtual_server_that_is_gone_is_not_recorded(verb: Verb) -> None:
    mirror = KernelTables()
    mirror.record([on(TCP, verb, A, ACTIVE)])
    assert mirror == KernelTables()


def test_deletions_of_what_is_unknown_are_harmless() -> None:
    mirror = KernelTables()
    entry = SetEntry(b"\0\0\0\0")
    for operation in (
        VirtualServerOperation(DELETE, BARE),
        AddressOperation(DELETE, b"\0\0\0\0"),
        SetEntryOperation(DELETE, role("KUBE-IPVS-IPS"), entry),
    ):
        mirror.record([operation])
    assert (mirror.virtual_servers, mirror.addresses, mirror.entries) == ({}, set(), {role("KUBE-IPVS-IPS"): set()})


def test_operations_of_all_kinds_are_recorded_in_one_go() -> None:
    mirror = KernelTables()
    mirror.record(
        [
            VirtualServerOperation(ADD, BARE),
            on(TCP, ADD, A, ACTIVE),
            VirtualServerOperation(ADD, replace(BARE, key=UDP)),
            on(UDP, ADD, B, ACTIVE),
            on(TCP, ADD, B, ACTIVE),
            AddressOperation(ADD, TCP.address),
        ]
    )
    assert mirror.virtual_servers == {TCP: FULL, UDP: replace(BARE, key=UDP, real_servers={B: ACTIVE})}
    assert mirror.addresses == {TCP.address}
    # Somebody else deleted it meanwhile: the kernel took the add, so it is empty.
    mirror.record([VirtualServerOperation(ADD, FULL)])
    assert mirror.virtual_servers[TCP].real_servers == {}
    mirror.record([VirtualServerOperation(SET, replace(STICKY, key=SCTP))])
    assert mirror.virtual_servers[SCTP].settings == STICKY.settings


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (None, None, True),
        (FULL, None, False),
        (None, FULL, False),
        (FULL, replace(FULL), True),
        (FULL, HALF, False),
        (FULL, replace(FULL, real_servers={A: ACTIVE, B: DRAINING}), False),
    ],
)
def test_two_virtual_servers_are_the_same(one: VirtualServer | None, other: VirtualServer | None, same: bool) -> None:
    assert is_same(one, other) is same


# What is looked at.


def plan(name: str, address: str, *ports: ServicePort, pods: tuple[str, ...] = ()) -> Fragment:
    wanted = service(name, cluster_ip=address, ports=ports or [ServicePort(80, "http")])
    piece = endpoint_slice(
        *(endpoint(pod, node="here") for pod in pods),
        of=name,
        ports=[EndpointPort(port.name, 8080, port.protocol) for port in wanted.spec.ports or ()],
    )
    return plan_service(wanted, [piece], Context("here"), Marks())


def rounds(desired: DesiredTables, kernel: FakeKernel, mirror: KernelTables, touched: TableKeys) -> list[Operation]:
    operations = round_of(desired, mirror, touched)
    for operation in operations:
        assert kernel.apply(operation) == 0, operation
        mirror.record([operation])
    return operations


def test_only_touched_keys_are_compared() -> None:
    desired, kernel = DesiredTables(), FakeKernel()
    desired.replace(plan("a", "10.96.0.1").name, plan("a", "10.96.0.1"))
    touched = desired.replace(plan("b", "10.96.0.2").name, plan("b", "10.96.0.2"))
    rounds(desired, kernel, KernelTables(), touched)
    assert kernel.addresses == {packed("10.96.0.2")}


def test_what_nobody_wants_goes_and_what_is_missing_comes() -> None:
    desired, kernel = DesiredTables(), FakeKernel()
    kernel.virtual_servers[virtual("10.96.0.9")] = server(virtual("10.96.0.9"))
    kernel.addresses.add(packed("10.96.0.9"))
    kernel.sets["KUBE-IPVS-IPS"].add(SetEntry(packed("10.96.0.9")))
    kernel.sets["KUBE-NODE-PORT-TCP"].add(SetEntry(port=30080))
    one = plan("a", "10.96.0.1", pods=("10.0.0.1",))
    desired.replace(one.name, one)
    mirror = kernel.read()
    touched = unsettled(desired, mirror)
    touched.add(unwanted(desired, mirror))
    rounds(desired, kernel, mirror, touched)
    assert set(kernel.virtual_servers) == {virtual("10.96.0.1")}
    assert kernel.addresses == {packed("10.96.0.1")}
    assert {name: members for name, members in kernel.sets.items() if members} == {
        "KUBE-CLUSTER-IP": {SetEntry(packed("10.96.0.1"), Protocol.TCP, 80)},
        "KUBE-IPVS-IPS": {SetEntry(packed("10.96.0.1"))},
        "KUBE-LOOP-BACK": {SetEntry(packed("10.0.0.1"), Protocol.TCP, 8080, packed("10.0.0.1"))},
    }
    assert round_of(desired, mirror, everything(desired, mirror)) == []


def test_a_set_that_is_missing_in_the_kernel_is_filled() -> None:
    desired = DesiredTables()
    touched = desired.replace(plan("a", "10.96.0.1").name, plan("a", "10.96.0.1"))
    added = [operation for operation in round_of(desired, KernelTables(), touched) if operation.verb is ADD]
    assert {name_of(operation.role) for operation in added if isinstance(operation, SetEntryOperation)} == {
        "KUBE-CLUSTER-IP",
        "KUBE-IPVS-IPS",
        "IPVS-PROXY-NO-ENDPOINT",
    }


def test_touch_gives_the_keys_of_operations() -> None:
    entry = SetEntry(packed("10.96.0.1"))
    assert keys_of(
        [
            on(UDP, SET, A, ACTIVE),
            VirtualServerOperation(ADD, BARE),
            AddressOperation(ADD, b"1234"),
            SetEntryOperation(DELETE, role("KUBE-IPVS-IPS"), entry),
        ]
    ) == TableKeys({UDP, TCP}, {b"1234"}, {(role("KUBE-IPVS-IPS"), entry)})
    assert not keys_of([])


# The order of a round.


def rank(operation: Operation) -> str:
    """Name the step of a round that an operation belongs to."""
    match operation:
        case RealServerOperation(verb):
            return f"real server {verb.value}"
        case VirtualServerOperation(verb):
            return f"virtual server {verb.value}"
        case AddressOperation(verb):
            return f"address {verb.value}"
        case SetEntryOperation(verb, role):
            return f"{name_of(role)} {verb.value}"


def steps(operations: list[Operation]) -> list[str]:
    """The steps in their order, neighbours of one kind as one."""
    names = [rank(operation) for operation in operations]
    return [name for number, name in enumerate(names) if number == 0 or names[number - 1] != name]


@pytest.fixture
def before() -> tuple[DesiredTables, FakeKernel, KernelTables]:
    """A kernel with one Service of one port and one local pod."""
    desired, kernel = DesiredTables(), FakeKernel()
    mirror = kernel.read()
    one = plan("a", "10.96.0.1", pods=("10.0.0.1",))
    rounds(desired, kernel, mirror, desired.replace(one.name, one))
    return desired, kernel, mirror


def test_a_new_service_is_complete_before_its_address_attracts_connections() -> None:
    desired = DesiredTables()
    one = plan("a", "10.96.0.1", pods=("10.0.0.1",))
    found = steps(round_of(desired, KernelTables(), desired.replace(one.name, one)))
    assert sorted(found[-3:-1]) == ["KUBE-CLUSTER-IP add", "KUBE-IPVS-IPS add"]
    del found[-3:-1]
    assert found == ["KUBE-LOOP-BACK add", "virtual server add", "real server add", "address add"]


def test_a_service_that_goes_is_shut_before_it_is_taken_down(
    before: tuple[DesiredTables, FakeKernel, KernelTables],
) -> None:
    desired, kernel, mirror = before
    found = steps(rounds(desired, kernel, mirror, desired.replace(plan("a", "10.96.0.1").name, None)))
    # Its connections go on: virtual server and address stay until they are drained.
    assert found == ["real server set", "KUBE-CLUSTER-IP delete", "KUBE-LOOP-BACK delete"]
    key = virtual("10.96.0.1")
    assert round_of(desired, mirror, everything(desired, mirror)) == []
    mirror.record([VirtualServerOperation(Verb.DELETE, mirror.virtual_servers[key])])
    assert steps(round_of(desired, mirror, remains_of(key))) == ["address delete", "KUBE-IPVS-IPS delete"]


def test_a_service_that_comes_back_while_it_drains_gets_its_weights_back(
    before: tuple[DesiredTables, FakeKernel, KernelTables],
) -> None:
    desired, kernel, mirror = before
    one = plan("a", "10.96.0.1", pods=("10.0.0.1",))
    rounds(desired, kernel, mirror, desired.replace(one.name, None))
    found = steps(rounds(desired, kernel, mirror, desired.replace(one.name, one)))
    assert sorted(found) == ["KUBE-CLUSTER-IP add", "KUBE-LOOP-BACK add", "real server set"]
    assert found[-1] == "real server set"
    assert virtual("10.96.0.1") not in mirror.draining


def test_a_service_of_udp_goes_at_once(before: tuple[DesiredTables, FakeKernel, KernelTables]) -> None:
    desired, kernel, mirror = before
    dns = plan("b", "10.96.0.2", ServicePort(53, "http", "UDP"), pods=("10.0.0.1",))
    rounds(desired, kernel, mirror, desired.replace(dns.name, dns))
    rounds(desired, kernel, mirror, desired.replace(dns.name, None))
    assert virtual("10.96.0.2", 53, Protocol.UDP) not in kernel.virtual_servers
    assert kernel.addresses == {packed("10.96.0.1")}


def test_a_port_that_moves_is_never_open_to_the_node_itself(
    before: tuple[DesiredTables, FakeKernel, KernelTables],
) -> None:
    desired, kernel, mirror = before
    moved = plan("a", "10.96.0.1", ServicePort(81, "http"), pods=("10.0.0.1",))
    found = rounds(desired, kernel, mirror, desired.replace(moved.name, moved))
    names = [rank(operation) for operation in found]
    assert sorted(names[:3]) == ["real server add", "real server set", "virtual server add"]
    assert names.index("virtual server add") < names.index("real server add")
    # The old port drains, and refuses new connections.
    assert names[3:] == ["KUBE-CLUSTER-IP add", "KUBE-CLUSTER-IP delete"]


def test_a_pod_can_reach_itself_from_its_first_connection(
    before: tuple[DesiredTables, FakeKernel, KernelTables],
) -> None:
    desired, kernel, mirror = before
    scaled = plan("a", "10.96.0.1", pods=("10.0.0.1", "10.0.0.2"))
    assert steps(rounds(desired, kernel, mirror, desired.replace(scaled.name, scaled))) == [
        "KUBE-LOOP-BACK add",
        "real server add",
    ]


def test_a_service_that_goes_and_one_that_comes_in_one_round(
    before: tuple[DesiredTables, FakeKernel, KernelTables],
) -> None:
    desired, kernel, mirror = before
    new = plan("b", "10.96.0.2", pods=("10.0.0.2",))
    touched = desired.replace(plan("a", "10.96.0.1").name, None)
    touched.add(desired.replace(new.name, new))
    found = rounds(desired, kernel, mirror, touched)
    verbs = [operation.verb for operation in found if operation.verb is not SET]
    # All that comes, then all that goes: connections are never refused for the sake of others.
    assert verbs == sorted(verbs, key=[ADD, DELETE].index)
