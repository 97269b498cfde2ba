"""What each kind of Service asks for outside the cluster IP, in both modes, as text."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from ipvs_proxy.kernel.filter.ipset.names import name_of
from ipvs_proxy.kube.objects import LoadBalancerIngress, LoadBalancerStatus, Service, ServicePort, ServiceStatus
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.family_spec import read_family_spec
from ipvs_proxy.plan.fragment import Context, Fragment, HealthCheck
from ipvs_proxy.plan.marks import CLASS, Marks, mark_key, spelling
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.tables import Family, Protocol, SetEntry, family_of, text_of
from tests.support.objects import HTTP, dual_stack, endpoint, endpoint_slice, packed, service, virtual
from tests.support.roles import role

NODE, NODE6 = "192.0.2.1", "2001:db8:1::1"
HERE = Context(
    "node-0",
    node_port_addresses=(packed(NODE), packed(NODE6)),
    host_addresses=frozenset((packed(NODE), packed(NODE6))),
    node_ips=(packed(NODE), packed(NODE6)),
)
COMPATIBLE = HERE._replace(compatible=True)
LOCAL, REMOTE = endpoint("10.244.0.7", node="node-0"), endpoint("10.244.1.9", node="node-1")
EXPOSED = (structs.replace(HTTP, node_port=30080),)


def make(*, ingress: tuple[LoadBalancerIngress, ...] = (), base: Service | None = None, **spec: Any) -> Service:
    made = base or service(ports=spec.pop("ports", (HTTP,)))
    return structs.replace(
        made,
        spec=structs.replace(made.spec, **spec),
        status=ServiceStatus(LoadBalancerStatus(list(ingress))),
    )


def plan(wanted: Service, *endpoints: Any, context: Context = HERE) -> Fragment:
    return plan_service(wanted, [endpoint_slice(*endpoints)] if endpoints else [], context, Marks())


def entry_text(entry: SetEntry) -> str:
    if not entry.address:
        return str(entry.port)
    text = text_of(entry.address)
    if entry.protocol:
        text += f",{Protocol(entry.protocol).name.lower()}:{entry.port}"
    if entry.source:
        text += f",{text_of(entry.source)}"
    if entry.prefix_length is not None:
        text += f"/{entry.prefix_length}"
    return text + " marked" * bool(entry.mark)


def shown(fragment: Fragment) -> set[str]:
    """Everything that a fragment asks for, a line each, without the cluster IP's own."""
    lines = {f"ADDRESS {text_of(address)}" for address in fragment.addresses}
    lines |= {f"{name_of(role)} {entry_text(entry)}" for role, entry in fragment.entries}
    for key, (server, _) in fragment.virtual_servers.items():
        name = "marked" if key.mark else str(key)
        settings = f" {server.flags:#x} {server.timeout}" * bool(server.flags)
        lines.add(f"VS {name} {server.scheduler}{settings}")
        lines |= {f"RS {name} {real}" for real in server.real_servers}
    return {
        line for line in lines if "10.96.0.10" not in line and "fd00:96::10" not in line and "LOOP-BACK" not in line
    }


def lines(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if line.strip()}


NODE_PORT = f"""
VS {NODE}:30080/TCP rr
RS {NODE}:30080/TCP 10.244.0.7:8080
RS {NODE}:30080/TCP 10.244.1.9:8080
KUBE-NODE-PORT-TCP 30080
"""
BALANCED = """
VS 203.0.113.5:80/TCP rr
RS 203.0.113.5:80/TCP 10.244.0.7:8080
RS 203.0.113.5:80/TCP 10.244.1.9:8080
KUBE-LOAD-BALANCER 203.0.113.5,tcp:80
KUBE-IPVS-IPS 203.0.113.5
ADDRESS 203.0.113.5
"""
EXTERNAL = BALANCED.replace("KUBE-LOAD-BALANCER", "KUBE-EXTERNAL-IP")
MARKED = """
VS marked rr
RS marked 10.244.0.7:8080
RS marked 10.244.1.9:8080
"""
VIP = LoadBalancerIngress("203.0.113.5")

TABLE: dict[str, tuple[Service, str]] = {
    "nothing outside": (make(), ""),
    "a node port": (make(type="NodePort", ports=EXPOSED), NODE_PORT),
    "an address that a load balancer answers itself": (make(ingress=(structs.replace(VIP, ip_mode="Proxy"),)), ""),
    "an ingress address": (make(type="LoadBalancer", ingress=(VIP,)), BALANCED),
    "an ingress address of mode VIP": (
        make(type="LoadBalancer", ingress=(structs.replace(VIP, ip_mode="VIP"),)),
        BALANCED,
    ),
    "an ingress address that the Service has left over": (make(ingress=(VIP,)), BALANCED),
    "an ingress address with a leading zero, which is decimal": (
        make(ingress=(LoadBalancerIngress("203.000.113.05"),)),
        BALANCED,
    ),
    "an external IP, and one of the other family": (make(external_ips=["203.0.113.5", "2001:db8::7"]), EXTERNAL),
    "one address of both kinds": (
        make(external_ips=["203.0.113.5"], ingress=(VIP,)),
        BALANCED + EXTERNAL,
    ),
    "an external IP that the node has": (
        make(external_ips=[NODE]),
        f"""
VS {NODE}:80/TCP rr
RS {NODE}:80/TCP 10.244.0.7:8080
RS {NODE}:80/TCP 10.244.1.9:8080
KUBE-EXTERNAL-IP {NODE},tcp:80
""",
    ),
    "affinity everywhere": (
        make(type="LoadBalancer", ingress=(VIP,), ports=EXPOSED, session_affinity="ClientIP"),
        (NODE_PORT + BALANCED).replace(" rr", " rr 0x1 10800"),
    ),
    "the internal policy does not concern clients outside": (
        make(type="NodePort", ports=EXPOSED, internal_traffic_policy="Local"),
        NODE_PORT,
    ),
    "the external policy of a Service without outside": (make(external_traffic_policy="Local"), ""),
}


@pytest.mark.parametrize(("wanted", "expected"), TABLE.values(), ids=TABLE)
@pytest.mark.parametrize("context", [HERE, COMPATIBLE], ids=["ours", "compatible"])
def test_services_of_each_kind(wanted: Service, expected: str, context: Context) -> None:
    assert shown(plan(wanted, LOCAL, REMOTE, context=context)) == lines(expected)


@pytest.mark.parametrize(
    ("protocol", "sets"),
    [
        (Protocol.TCP, {"KUBE-NODE-PORT-TCP 30080", "KUBE-NODE-PORT-LOCAL-TCP 30080"}),
        (Protocol.UDP, {"KUBE-NODE-PORT-UDP 30080", "KUBE-NODE-PORT-LOCAL-UDP 30080"}),
        (
            Protocol.SCTP,
            {f"KUBE-NODE-PORT-SCTP-HASH {NODE},sctp:30080", f"KUBE-NODE-PORT-LOCAL-SCTP-HASH {NODE},sctp:30080"},
        ),
    ],
)
def test_node_ports_of_each_protocol_with_the_policy_local(protocol: Protocol, sets: set[str]) -> None:
    port = ServicePort(80, "http", protocol.name, 30080)
    wanted = make(type="NodePort", ports=(port,), external_traffic_policy="Local")
    found = shown(plan(wanted, context=COMPATIBLE))
    assert {line for line in found if "NODE-PORT" in line} == sets


def test_both_families_have_their_node_ports() -> None:
    wanted = make(base=dual_stack(ports=EXPOSED), type="NodePort")
    found = shown(plan(wanted))
    assert {line for line in found if line.startswith("VS")} == {
        f"VS {NODE}:30080/TCP rr",
        f"VS [{NODE6}]:30080/TCP rr",
    }
    assert {"KUBE-NODE-PORT-TCP 30080", "KUBE-6-NODE-PORT-TCP 30080"} <= found


def test_without_node_addresses_a_node_port_is_nowhere_and_the_rest_is_served() -> None:
    wanted = make(type="LoadBalancer", ports=EXPOSED, ingress=(VIP,))
    found = shown(plan(wanted, LOCAL, REMOTE, context=HERE._replace(node_port_addresses=())))
    assert found == lines(BALANCED)


# The policy Local: (endpoints, ours, compatible).
LOCAL_ONLY = (
    BALANCED.replace("RS 203.0.113.5:80/TCP 10.244.1.9:8080\n", "") + "KUBE-LOAD-BALANCER-LOCAL 203.0.113.5,tcp:80\n"
)
INTERNAL = "IPVS-PROXY-INTERNAL 203.0.113.5,tcp:80 marked\nIPVS-PROXY-MARK-0x4 203.0.113.5,tcp:80\n"
INSIDE = MARKED + INTERNAL
REMOTE_ONLY = (
    BALANCED.replace("RS 203.0.113.5:80/TCP 10.244.0.7:8080\n", "") + "KUBE-LOAD-BALANCER-LOCAL 203.0.113.5,tcp:80\n"
)
NOBODY = REMOTE_ONLY.replace("RS 203.0.113.5:80/TCP 10.244.1.9:8080\n", "")


@pytest.mark.parametrize(
    ("endpoints", "ours", "compatible"),
    [
        ((LOCAL, REMOTE), LOCAL_ONLY + INSIDE, LOCAL_ONLY),
        (
            (REMOTE,),
            NOBODY + INSIDE.replace("RS marked 10.244.0.7:8080\n", "") + "IPVS-PROXY-NO-LOCAL 203.0.113.5,tcp:80",
            REMOTE_ONLY,
        ),
        (
            (),
            NOBODY + "VS marked rr\n" + INTERNAL + "IPVS-PROXY-NO-ENDPOINT 203.0.113.5,tcp:80",
            NOBODY,
        ),
    ],
    ids=["here and there", "there", "none"],
)
def test_the_policy_local_of_an_ingress_address(endpoints: tuple[Any, ...], ours: str, compatible: str) -> None:
    wanted = make(type="LoadBalancer", ingress=(VIP,), external_traffic_policy="Local", health_check_node_port=32100)
    health = "\nKUBE-HEALTH-CHECK-NODE-PORT 32100"
    assert shown(plan(wanted, *endpoints)) == lines(ours + health)
    assert shown(plan(wanted, *endpoints, context=COMPATIBLE)) == lines(compatible + health)


def test_all_addresses_of_a_port_share_one_mark_in_both_families() -> None:
    wanted = make(
        base=dual_stack(ports=EXPOSED),
        type="LoadBalancer",
        external_traffic_policy="Local",
        ingress=(VIP, LoadBalancerIngress("2001:db8::5")),
        external_ips=["203.0.113.6"],
    )
    fragment = plan(wanted, LOCAL)
    marks = {entry.mark for _, entry in fragment.entries if entry.mark}
    assert len(marks) == 1
    assert all(mark & CLASS for mark in marks)
    assert sum(bool(key.mark) for key in fragment.virtual_servers) == 2
    inside = {virtual("10.96.0.10"), virtual("fd00:96::10")}
    stand_ins = {key: server.internal for key, (server, _) in fragment.virtual_servers.items() if not key.mark}
    assert stand_ins == {key: None if key in inside else mark_key(*marks, family_of(key.address)) for key in stand_ins}
    assert {type(entry.source) for _, entry in fragment.entries} == {bytes}
    spelled = {(role, entry) for role, entry in fragment.entries if "-MARK-" in name_of(role)}
    internal = {entry for _, entry in fragment.entries if entry.mark}
    assert len(spelled) == len(internal) * len(spelling(marks.pop())), (
        "each address and node port is in the set of each bit"
    )


def test_a_packet_filter_that_gives_marks_whole_is_asked_for_no_bits() -> None:
    wanted = make(type="NodePort", ports=EXPOSED, external_traffic_policy="Local")
    spelled, whole = (
        plan_service(wanted, [endpoint_slice(LOCAL)], HERE._replace(spells_marks=spells), Marks())
        for spells in (True, False)
    )
    bits = {(role, entry) for role, entry in spelled.entries if "-MARK-" in name_of(role)}
    assert bits
    assert whole.entries.keys() == spelled.entries.keys() - bits
    assert whole.virtual_servers == spelled.virtual_servers


@pytest.mark.parametrize("later", [{"external_traffic_policy": "Cluster"}, {"type": "ExternalName"}])
def test_a_service_that_needs_a_mark_no_longer_gives_it_back(later: dict[str, Any]) -> None:
    marks = Marks()
    wanted = make(type="NodePort", ports=EXPOSED, external_traffic_policy="Local")
    for changed in (wanted, structs.replace(wanted, spec=structs.replace(wanted.spec, **later))):
        fragment = plan_service(changed, [endpoint_slice(LOCAL)], HERE, marks)
        assert bool(marks._held) is any(key.mark for key in fragment.virtual_servers)
    assert not marks._held


def test_where_no_mark_is_left_the_port_behaves_compatibly_and_says_so() -> None:
    wanted = make(type="LoadBalancer", ingress=(VIP,), external_traffic_policy="Local", health_check_node_port=1)
    fragment = plan_service(wanted, [endpoint_slice(REMOTE)], HERE, Marks(masquerade_bit=13))
    assert "RS 203.0.113.5:80/TCP 10.244.1.9:8080" in shown(fragment)
    assert [omission.reason for omission in fragment.omissions] == [Reason.NO_MARK_LEFT]


@pytest.mark.parametrize(
    ("context", "exposed", "everywhere"),
    [(HERE, True, False), (HERE, False, False), (COMPATIBLE, True, True), (COMPATIBLE, False, False)],
)
def test_internal_policy_local_without_local_endpoints_is_kube_proxys_only_in_its_mode_and_if_exposed(
    context: Context, exposed: bool, everywhere: bool
) -> None:
    ports = EXPOSED if exposed else (HTTP,)
    wanted = make(type="NodePort", ports=ports, internal_traffic_policy="Local")
    fragment = plan(wanted, REMOTE, context=context)
    assert bool(fragment.virtual_servers[virtual("10.96.0.10")][0].real_servers) is everywhere
    assert fragment.no_local == {("internal", Family.IPV4)}
    assert plan(make(type="NodePort", ports=ports), context=context).no_local == set()


@pytest.mark.parametrize(
    ("endpoints", "no_local"), [((LOCAL, REMOTE), False), ((REMOTE,), True), ((), False)], ids=["here", "there", "none"]
)
def test_no_local_endpoint_for_clients_outside_is_told_only_if_there_are_others(
    endpoints: tuple[Any, ...], no_local: bool
) -> None:
    wanted = make(type="NodePort", ports=EXPOSED, external_traffic_policy="Local")
    assert plan(wanted, *endpoints).no_local == ({("external", Family.IPV4)} if no_local else set())
    assert plan(make(type="NodePort", ports=EXPOSED), *endpoints).no_local == set()


@pytest.mark.parametrize(
    ("kind", "external_ips", "policy", "local"),
    [
        ("LoadBalancer", None, "Local", True),
        ("NodePort", None, "Local", True),
        ("ClusterIP", ["203.0.113.5"], "Local", True),
        ("ClusterIP", None, "Local", False),
        ("Other", ["203.0.113.5"], "Local", False),
        ("NodePort", ["203.0.113.5"], "Cluster", False),
    ],
)
def test_the_policy_local_counts_for_what_is_exposed(
    kind: str, external_ips: list[str] | None, policy: str, local: bool
) -> None:
    wanted = make(type=kind, external_ips=external_ips, external_traffic_policy=policy)
    assert read_family_spec(wanted, Family.IPV4, HERE, []).external_local is local


def budgeted(monkeypatch: pytest.MonkeyPatch, context: Context, **bounds: int) -> tuple[int, list[str]]:
    """Plan a port at three ingress addresses with two source ranges and two endpoints, one here.

    Returns how many virtual servers it has outside the cluster, and what is said of ports that were too much.
    """
    for bound, value in bounds.items():
        monkeypatch.setattr(f"ipvs_proxy.plan.budget.{bound}", value)
    ingress = tuple(LoadBalancerIngress(f"203.0.113.{number}") for number in (5, 6, 7))
    wanted = make(
        type="LoadBalancer",
        ingress=ingress,
        external_traffic_policy="Local",
        health_check_node_port=32100,
        load_balancer_source_ranges=["198.51.100.0/24", "192.0.2.128/25"],
    )
    fragment = plan(wanted, LOCAL, REMOTE, context=context)
    told = [omission.where for omission in fragment.omissions if omission.reason is Reason.TOO_MUCH]
    return len(fragment.virtual_servers) - 1, told


@pytest.mark.parametrize(
    ("context", "bound", "enough"),
    [
        # Three addresses, the mark's with them, and the cluster IP.
        (HERE, "MAX_VIRTUAL_SERVERS", 5),
        (COMPATIBLE, "MAX_VIRTUAL_SERVERS", 4),
        # Two endpoints each.
        (HERE, "MAX_REAL_SERVERS", 10),
        (COMPATIBLE, "MAX_REAL_SERVERS", 8),
        # Two ranges for each of three addresses.
        (HERE, "MAX_RANGE_MEMBERS", 6),
    ],
)
def test_what_a_service_may_ask_for_is_counted_exactly(
    monkeypatch: pytest.MonkeyPatch, context: Context, bound: str, enough: int
) -> None:
    everything = 3 if context.compatible else 4
    assert budgeted(monkeypatch, context, **{bound: enough}) == (everything, [])
    outside, told = budgeted(monkeypatch, context, **{bound: enough - 1})
    assert outside == 0
    assert told == ["service default/web ports with more virtual servers or endpoints: 1"]


@pytest.mark.parametrize(
    "more", [{"external_ips": ["203.0.113.5", "203.0.113.6"]}, {"ingress": (VIP, LoadBalancerIngress("203.0.113.6"))}]
)
def test_every_port_that_finds_no_room_outside_is_counted(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    monkeypatch.setattr("ipvs_proxy.plan.budget.MAX_VIRTUAL_SERVERS", 4)
    fragment = plan(make(ports=[ServicePort(number, f"p{number}") for number in (1, 2, 3)], **more), LOCAL)
    assert len(fragment.virtual_servers) == 3
    assert [omission.where for omission in fragment.omissions] == [
        "service default/web ports with more virtual servers or endpoints: 3"
    ]


def test_local_endpoints_beyond_the_bound_are_not_their_own_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    loop_back = role("KUBE-LOOP-BACK")
    for bound, members in ((1, 1), (0, 0)):
        monkeypatch.setattr("ipvs_proxy.plan.budget.MAX_LOCAL_MEMBERS", bound)
        fragment = plan(make(), LOCAL, REMOTE)
        assert sum(one is loop_back for one, _ in fragment.entries) == members
        assert len(fragment.omissions) == 1 - members


def test_a_cluster_ip_is_put_on_our_link_even_if_the_host_has_it() -> None:
    address = packed("10.96.0.10")
    fragment = plan(make(), LOCAL, context=HERE._replace(host_addresses=frozenset({address})))
    assert address in fragment.addresses


@pytest.mark.parametrize(("name", "told"), [("http", "http"), ("", "80")])
def test_a_port_is_told_by_its_name_or_its_number(name: str, told: str) -> None:
    ports = [ServicePort(80, name), ServicePort(80, name)]
    assert plan(make(ports=ports), LOCAL).omissions == [
        Omission(f"service default/web port {told}", Reason.DUPLICATE_PORT)
    ]
    twice = make(ports=[ServicePort(80, name)], external_ips=["10.96.0.10"])
    where = f"service default/web port {told} external-ip 10.96.0.10:80/TCP"
    assert plan(twice, LOCAL).omissions == [Omission(where, Reason.DUPLICATE_PORT)]


@pytest.mark.parametrize(("ranges", "admitted"), [(["192.0.2.0/24"], True), (["198.51.100.0/24"], False)])
def test_the_node_itself_is_admitted_if_a_source_range_has_its_address(ranges: list[str], admitted: bool) -> None:
    fragment = plan(make(type="LoadBalancer", ingress=(VIP,), load_balancer_source_ranges=ranges), LOCAL)
    found = {entry for one, entry in fragment.entries if one is role("KUBE-LOAD-BALANCER-SOURCE-IP")}
    address = packed("203.0.113.5")
    assert found == ({SetEntry(address, Protocol.TCP, 80, source=address)} if admitted else set())


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        (["198.51.100.7/24 "], {"198.51.100.0/24"}),
        (["198.51.100.7/32"], {"198.51.100.7/32"}),
        (["10.0.0.0/8", "0.0.0.0/0"], set()),
        (["2001:db8::/32"], set()),
        (["nonsense", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/8"], {"10.0.0.0/8"}),
    ],
)
def test_source_ranges(ranges: list[str], expected: set[str]) -> None:
    fragment = plan(make(type="LoadBalancer", ingress=(VIP,), load_balancer_source_ranges=ranges), LOCAL)
    prefix = "KUBE-LOAD-BALANCER-SOURCE-CIDR 203.0.113.5,tcp:80,"
    found = shown(fragment)
    assert {line.removeprefix(prefix) for line in found if line.startswith(prefix)} == expected
    assert ("KUBE-LOAD-BALANCER-FW 203.0.113.5,tcp:80" in found) == bool(expected)
    bad = [
        omission.where.split()[-1] for omission in fragment.omissions if omission.reason is Reason.INVALID_SOURCE_RANGE
    ]
    assert bad == [text for text in ("nonsense", "10.0.0.0", "10.0.0.0/33") if text in ranges]


@pytest.mark.parametrize("ip", ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "nonsense", "1.2.3"])
def test_addresses_that_can_be_nobodys_are_left_out_with_a_reason(ip: str) -> None:
    fragment = plan(make(external_ips=[ip, "203.0.113.5"]), LOCAL, REMOTE)
    assert shown(fragment) == lines(EXTERNAL)
    assert fragment.omissions == [Omission(f"service default/web externalIPs {ip}", Reason.INVALID_EXTERNAL_ADDRESS)]


def test_health_check_counts_distinct_ready_addresses_of_this_node() -> None:
    wanted = make(
        base=service(ports=(HTTP, ServicePort(443, "https"))),
        type="LoadBalancer",
        external_traffic_policy="Local",
        health_check_node_port=32100,
    )
    also = endpoint("10.244.0.8", node="node-0", ready=False, serving=True, terminating=True)
    assert plan(wanted, LOCAL, also, REMOTE).health_checks == {Family.IPV4: HealthCheck(32100, 1)}


@pytest.mark.parametrize(
    ("node_port", "health_port", "addresses", "reasons"),
    [
        (30080, 32100, (NODE,), []),
        (30080, 30080, (NODE,), [Reason.DUPLICATE_HEALTH_CHECK_PORT]),
        # A virtual server at another address, or at the same port of an address that is not the node's.
        (30080, 80, (NODE,), []),
        (0, 30080, (), []),
    ],
)
def test_a_health_check_port_that_a_virtual_server_has_on_this_node_is_told(
    node_port: int, health_port: int, addresses: tuple[str, ...], reasons: list[Reason]
) -> None:
    wanted = make(
        type="LoadBalancer",
        ports=(structs.replace(HTTP, node_port=node_port),),
        ingress=(VIP,),
        external_traffic_policy="Local",
        health_check_node_port=health_port,
    )
    context = HERE._replace(node_port_addresses=tuple(map(packed, addresses)))
    fragment = plan(wanted, LOCAL, context=context)
    assert [omission.reason for omission in fragment.omissions] == reasons
    assert set(fragment.health_checks) == (set() if reasons else {Family.IPV4})


@pytest.mark.parametrize(
    ("kind", "policy", "port", "reasons"),
    [
        ("LoadBalancer", "Local", 0, [Reason.NO_HEALTH_CHECK_PORT]),
        ("LoadBalancer", "Cluster", 32100, []),
        ("NodePort", "Local", 32100, []),
    ],
)
def test_only_a_load_balancer_with_the_policy_local_has_a_health_check(
    kind: str, policy: str, port: int, reasons: list[Reason]
) -> None:
    fragment = plan(make(type=kind, external_traffic_policy=policy, health_check_node_port=port), LOCAL)
    assert fragment.health_checks == {}
    assert [omission.reason for omission in fragment.omissions] == reasons


@pytest.mark.parametrize(
    ("annotation", "timeout", "reasons"),
    [
        ("5m", 300.0, []),
        ("0s", 0.0, []),
        ("unlimited", float("inf"), []),
        ("soon", None, [Reason.INVALID_DRAIN_TIMEOUT]),
        (None, None, []),
    ],
)
def test_drain_timeout_of_a_service(annotation: str | None, timeout: float | None, reasons: list[Reason]) -> None:
    wanted = make()
    annotations = None if annotation is None else {"ipvs-proxy.io/drain-timeout": annotation}
    wanted = structs.replace(wanted, metadata=structs.replace(wanted.metadata, annotations=annotations))
    fragment = plan(wanted, LOCAL)
    assert {server.drain_timeout for server, _ in fragment.virtual_servers.values()} == {timeout}
    assert fragment.options.drain_timeout == timeout
    assert [omission.reason for omission in fragment.omissions] == reasons


#: The worked example of kube-proxy's behaviour: a load balancer with everything.
EXAMPLE = make(
    type="LoadBalancer",
    ports=EXPOSED,
    ingress=(VIP,),
    external_traffic_policy="Local",
    health_check_node_port=32100,
    load_balancer_source_ranges=["198.51.100.0/24"],
)
EXAMPLE_LINES = f"""
ADDRESS 203.0.113.5
VS 203.0.113.5:80/TCP rr
RS 203.0.113.5:80/TCP 10.244.0.7:8080
VS {NODE}:30080/TCP rr
RS {NODE}:30080/TCP 10.244.0.7:8080
KUBE-LOAD-BALANCER 203.0.113.5,tcp:80
KUBE-LOAD-BALANCER-LOCAL 203.0.113.5,tcp:80
KUBE-LOAD-BALANCER-FW 203.0.113.5,tcp:80
KUBE-LOAD-BALANCER-SOURCE-CIDR 203.0.113.5,tcp:80,198.51.100.0/24
KUBE-NODE-PORT-TCP 30080
KUBE-NODE-PORT-LOCAL-TCP 30080
KUBE-HEALTH-CHECK-NODE-PORT 32100
KUBE-IPVS-IPS 203.0.113.5
"""


def test_worked_example() -> None:
    compatible = plan(EXAMPLE, LOCAL, REMOTE, context=COMPATIBLE)
    assert shown(compatible) == lines(EXAMPLE_LINES)
    assert (
        role("KUBE-LOOP-BACK"),
        SetEntry(packed("10.244.0.7"), Protocol.TCP, 8080, packed("10.244.0.7")),
    ) in compatible.entries
    assert len(compatible.virtual_servers) == 3
    assert shown(plan(EXAMPLE, LOCAL, REMOTE)) == lines(
        EXAMPLE_LINES
        + MARKED
        + INTERNAL
        + f"IPVS-PROXY-INTERNAL {NODE},tcp:30080 marked\nIPVS-PROXY-MARK-0x4 {NODE},tcp:30080"
    )


def test_without_the_gate_external_ips_are_left_out_and_told() -> None:
    wanted = make(ports=EXPOSED, external_ips=["203.0.113.9"], ingress=(VIP,), type="LoadBalancer")
    fragment = plan(wanted, LOCAL, context=HERE._replace(external_ips=False))
    expected = plan(make(ports=EXPOSED, ingress=(VIP,), type="LoadBalancer"), LOCAL)
    assert shown(fragment) == shown(expected)
    assert packed("203.0.113.9") not in fragment.addresses
    [(where, reason)] = fragment.omissions
    assert (where.rpartition(" ")[2], reason) == ("externalIPs", Reason.EXTERNAL_IPS_OFF)
