"""One Service that claims the same virtual server twice: one claim wins, it is told, and the kernel comes to rest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from ipvs_proxy.kernel.filter.ipset.names import name_of
from ipvs_proxy.kube.objects import (
    EndpointPort,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Service,
    ServicePort,
    ServiceStatus,
)
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Context, Fragment
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.roles import HEALTH_CHECK_NODE_PORT
from ipvs_proxy.plan.services import plan_service
from tests.support.fake_kernel import FakeKernel
from tests.support.objects import endpoint, endpoint_slice, packed, real, service, virtual
from tests.support.tables import everything, round_of

NODE = "192.0.2.1"
CLUSTER_IP = "10.96.0.10"
OUTSIDE = "203.0.113.1"
HERE = Context(
    "here",
    node_port_addresses=(packed(NODE), packed("192.0.2.9"), packed("fd00:2::1")),
    host_addresses=frozenset({packed(NODE), packed("192.0.2.9"), packed("fd00:2::1")}),
    node_ips=(packed(NODE), packed("fd00:2::1")),
)
SLICES = [
    endpoint_slice(
        endpoint("10.0.0.1", node="here"),
        endpoint("10.0.0.2", node="there"),
        ports=[EndpointPort("a", 8080), EndpointPort("b", 9090), EndpointPort("b", 9090, "UDP")],
    )
]
A = ServicePort(80, "a", "TCP", 30080)
B = ServicePort(81, "b", "TCP", 30080)


def made(*ports: ServicePort, status: list[str] | None = None, **spec: Any) -> Service:
    """A Service with these ports, fields of its spec and ingress addresses."""
    wanted = service(ports=ports, kind=spec.pop("type", "NodePort"), cluster_ip=spec.pop("cluster_ip", CLUSTER_IP))
    return structs.replace(
        wanted,
        spec=structs.replace(wanted.spec, **spec),
        status=ServiceStatus(LoadBalancerStatus([LoadBalancerIngress(text) for text in status or ()])),
    )


def planned(wanted: Service, *, compatible: bool = False) -> Fragment:
    return plan_service(wanted, SLICES, HERE._replace(compatible=compatible), Marks())


def servers(fragment: Fragment, address: str, port: int) -> set[object]:
    return set(fragment.virtual_servers[virtual(address, port)][0].real_servers)


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_of_two_ports_with_one_node_port_the_first_one_has_it(policy: str) -> None:
    fragment = planned(made(A, B, external_traffic_policy=policy))
    locals_only = {real("10.0.0.1")}
    assert servers(fragment, NODE, 30080) == (locals_only if policy == "Local" else {*locals_only, real("10.0.0.2")})
    assert {(one.where, one.reason) for one in fragment.omissions} == {
        (f"service default/web port b node-port {NODE}:30080/TCP", Reason.DUPLICATE_PORT),
        ("service default/web port b node-port 192.0.2.9:30080/TCP", Reason.DUPLICATE_PORT),
    }
    # Both are served where they do not meet.
    assert servers(fragment, CLUSTER_IP, 81) == {real("10.0.0.1", 9090), real("10.0.0.2", 9090)}


def test_one_node_port_of_two_protocols_is_two_virtual_servers() -> None:
    fragment = planned(made(A, ServicePort(81, "b", "UDP", 30080)))
    assert not fragment.omissions


@pytest.mark.parametrize("taken", [NODE, "192.0.2.9"])
def test_a_node_port_that_another_service_has_at_one_address_is_one_at_the_others(taken: str) -> None:
    """Members without an address are about all of the node's: they stay until the last one is lost."""
    older = structs.replace(service("older", cluster_ip="10.96.0.11", age=100, ports=[ServicePort(30080, "x")]))
    older = structs.replace(older, spec=structs.replace(older.spec, external_ips=[taken]))
    desired = DesiredTables()
    wanted = planned(made(A))
    desired.replace(wanted.name, wanted)
    members = {member for member in desired.entries if not member[1].address and member[1].port == 30080}
    assert members
    thief = plan_service(older, [], HERE, Marks())
    desired.replace(thief.name, thief)
    assert desired.owners[virtual(taken, 30080)] == thief.name, "the older one wins"
    assert members <= desired.entries.keys()
    desired.replace(wanted.name, None)
    assert not members & desired.entries.keys()


def test_a_port_and_the_node_port_of_another_meet_at_an_external_ip_of_the_node() -> None:
    fragment = planned(made(ServicePort(30081, "a"), ServicePort(80, "b", "TCP", 30081), external_ips=[NODE]))
    assert servers(fragment, NODE, 30081) == {real("10.0.0.1"), real("10.0.0.2")}
    assert servers(fragment, "192.0.2.9", 30081) == {real("10.0.0.1", 9090), real("10.0.0.2", 9090)}
    assert [one.where for one in fragment.omissions] == [f"service default/web port b node-port {NODE}:30081/TCP"]


@pytest.mark.parametrize(
    ("external_ips", "ingress"),
    [([CLUSTER_IP], []), ([], [CLUSTER_IP]), ([f"::ffff:{CLUSTER_IP}", CLUSTER_IP], [CLUSTER_IP])],
)
def test_an_outside_address_that_is_the_cluster_ip_is_served_as_cluster_ip(
    external_ips: list[str], ingress: list[str]
) -> None:
    fragment = planned(made(ServicePort(80, "a"), external_ips=external_ips, status=ingress))
    assert fragment.virtual_servers[virtual(CLUSTER_IP)][1] is Reason.CLUSTER_IP
    assert {one.reason for one in fragment.omissions} == {Reason.DUPLICATE_PORT}


def test_an_address_that_is_external_ip_and_ingress_is_one_virtual_server_of_both_kinds() -> None:
    fragment = planned(
        made(ServicePort(80, "a"), external_ips=[OUTSIDE, OUTSIDE, f"::ffff:{OUTSIDE}"], status=[OUTSIDE])
    )
    assert not fragment.omissions
    assert {name_of(role) for role, entry in fragment.entries if entry.address == packed(OUTSIDE)} == {
        "KUBE-EXTERNAL-IP",
        "KUBE-LOAD-BALANCER",
        "KUBE-IPVS-IPS",
    }


@pytest.mark.parametrize("ports", [(A,), (ServicePort(80, "a"), B)])
def test_a_health_check_at_a_node_port_of_its_own_service_is_left_out(ports: tuple[ServicePort, ...]) -> None:
    """The virtual server would take the probes: they would reach a pod, which knows nothing of the others."""
    fragment = planned(made(*ports, type="LoadBalancer", external_traffic_policy="Local", health_check_node_port=30080))
    assert not fragment.health_checks
    assert not [entry for role, entry in fragment.entries if role is HEALTH_CHECK_NODE_PORT[role.family]]
    assert Reason.DUPLICATE_HEALTH_CHECK_PORT in {one.reason for one in fragment.omissions}


def test_a_health_check_may_have_the_number_of_a_udp_node_port() -> None:
    udp = ServicePort(80, "b", "UDP", 30080)
    fragment = planned(made(udp, type="LoadBalancer", external_traffic_policy="Local", health_check_node_port=30080))
    assert [one.port for one in fragment.health_checks.values()] == [30080]


# Few values, so that claims meet.
numbers = st.sampled_from([80, 81, 30080, 30081])
ports = st.builds(
    ServicePort,
    port=numbers,
    name=st.sampled_from(["a", "b"]),
    protocol=st.sampled_from(["TCP", "TCP", "UDP", "SCTP"]),
    node_port=st.sampled_from([0, 80, 30080, 30081]),
)
addresses = st.lists(
    st.sampled_from(
        [CLUSTER_IP, f"::ffff:{CLUSTER_IP}", OUTSIDE, f"::ffff:{OUTSIDE}", f" {OUTSIDE}", NODE, "2001:db8::1"]
    ),
    max_size=4,
)
claims = st.fixed_dictionaries(
    {
        "ports": st.lists(ports, min_size=1, max_size=4),
        "cluster_ip": st.sampled_from([CLUSTER_IP, "10.96.0.11", OUTSIDE, NODE]),
        "type": st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]),
        "ip_families": st.sampled_from([None, ["IPv4"], ["IPv4", "IPv6"], ["IPv4", "IPv4"]]),
        "cluster_ips": st.sampled_from([None, [CLUSTER_IP, CLUSTER_IP], [OUTSIDE, "fd00:96::1"]]),
        "external_ips": addresses,
        "status": addresses,
        "session_affinity": st.sampled_from(["None", "ClientIP"]),
        "external_traffic_policy": st.sampled_from([None, "Local", "Cluster"]),
        "internal_traffic_policy": st.sampled_from([None, "Local"]),
        "health_check_node_port": st.sampled_from([0, 30080, 32000]),
        "load_balancer_source_ranges": st.sampled_from(
            [[], ["198.51.100.0/24", "::ffff:198.51.100.0/120"], ["198.51.100.7/32", "198.51.100.7/24"]]
        ),
    }
)


@given(wishes=st.lists(claims, min_size=1, max_size=3), compatible=st.booleans())
@example(wishes=[{"ports": [A, B], "external_traffic_policy": "Local"}], compatible=False)
@settings(deadline=None, max_examples=300)
def test_what_services_ask_for_can_be_written_and_is_what_the_kernel_then_holds(
    wishes: list[dict[str, Any]], *, compatible: bool
) -> None:
    desired, kernel, marks = DesiredTables(), FakeKernel(), Marks()
    for number, wish in enumerate(wishes):
        wanted = made(*wish["ports"], **{key: value for key, value in wish.items() if key != "ports"})
        wanted = structs.replace(wanted, metadata=structs.replace(wanted.metadata, name=f"web-{number}"))
        context = HERE._replace(compatible=compatible)
        fragment = plan_service(wanted, SLICES, context, marks)
        again = plan_service(wanted, SLICES, context, marks)
        assert again.virtual_servers == fragment.virtual_servers, "a second plan is another"
        assert again.entries == fragment.entries, "a second plan is another"
        desired.replace(fragment.name, fragment)
    first = kernel.read()
    for operation in round_of(desired, first, everything(desired, first)):
        assert kernel.apply(operation) == 0, f"the kernel refuses {operation}"
    found = kernel.read()
    assert round_of(desired, found, everything(desired, found)) == [], "an audit right after writes"
