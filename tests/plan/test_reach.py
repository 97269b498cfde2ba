"""No Service takes the way to the API server from the agent, and all else of it is served."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from ipvs_proxy.kube.objects import (
    EndpointPort,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Service,
    ServicePort,
    ServiceStatus,
)
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.fragment import Context, Fragment
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.reach import api_servers, concerned, reaches_outside
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.tables import Protocol, VirtualServerKey, text_of
from tests.support.objects import HTTP, endpoint, endpoint_slice, packed, service

CLUSTER_IP, OTHER = "10.96.0.10", "203.0.113.5"
API, API6 = "192.0.2.100", "2001:db8::100"
NODE = "192.0.2.1"
POD = endpoint("10.244.0.7", node="node")
#: The API server is reached at addresses of others, and at one of this node's own.
HERE = Context(
    "node",
    node_port_addresses=(packed(NODE), packed("192.0.2.2")),
    host_addresses=frozenset((packed(NODE), packed("192.0.2.2"))),
    api_servers={packed(address): frozenset((6443,)) for address in (API, API6, NODE)},
)


def make(*ports: ServicePort, ingress: tuple[str, ...] = (), cluster_ip: str = CLUSTER_IP, **spec: Any) -> Service:
    made = service(cluster_ip=cluster_ip, ports=ports or (HTTP,))
    status = ServiceStatus(LoadBalancerStatus([LoadBalancerIngress(address) for address in ingress]))
    return structs.replace(made, spec=structs.replace(made.spec, **spec), status=status)


def plan(wanted: Service, context: Context = HERE) -> Fragment:
    return plan_service(wanted, [endpoint_slice(POD)], context, Marks())


def served(fragment: Fragment) -> set[str]:
    return {str(key) for key in fragment.virtual_servers if not key.mark}


@pytest.mark.parametrize(
    ("wanted", "virtual_servers", "addresses", "told"),
    [
        # On our link the address would be the node's own, whatever the port and the protocol.
        (make(external_ips=[API, OTHER]), {OTHER + ":80/TCP"}, {OTHER}, [f"externalIPs {API}"]),
        (make(ServicePort(53, "http", "UDP"), external_ips=[API]), set(), set(), [f"externalIPs {API}"]),
        (make(ingress=(API,)), set(), set(), [f"ingress {API}"]),
        # Also at the very port: whoever may create a Service would answer for the API server.
        (make(ServicePort(6443, "http"), external_ips=[API]), set(), set(), [f"externalIPs {API}"]),
        (make(ServicePort(6443, "http"), ingress=(API,)), set(), set(), [f"ingress {API}"]),
        # However it is written.
        (make(external_ips=["192.000.002.100 "]), set(), set(), ["externalIPs 192.000.002.100 "]),
        # An address of this node's own is not put on our link; only the port matters.
        (make(external_ips=[NODE]), {NODE + ":80/TCP"}, set(), []),
        (
            make(ServicePort(6443, "http"), external_ips=[NODE]),
            set(),
            set(),
            [f"port http external-ip {NODE}:6443/TCP"],
        ),
        (make(ServicePort(6443, "http", "UDP"), external_ips=[NODE]), {NODE + ":6443/UDP"}, set(), []),
        (
            make(ServicePort(80, "http", node_port=6443), type="NodePort"),
            {"192.0.2.2:6443/TCP"},
            set(),
            [f"port http node-port {NODE}:6443/TCP"],
        ),
    ],
)
def test_external_addresses_of_the_api_server_are_left_out(
    wanted: Service, virtual_servers: set[str], addresses: set[str], told: list[str]
) -> None:
    fragment = plan(wanted)
    protocol = (wanted.spec.ports or [])[0]
    assert served(fragment) == virtual_servers | {f"{CLUSTER_IP}:{protocol.port}/{protocol.protocol}"}
    assert {text_of(address) for address in fragment.addresses} == addresses | {CLUSTER_IP}
    assert fragment.omissions == [Omission(f"service default/web {where}", Reason.API_SERVER_ADDRESS) for where in told]
    assert not {entry.address for _, entry in fragment.entries} & {packed(API), packed(API6)}


def test_the_other_family_has_the_same_rule() -> None:
    wanted = make(cluster_ip="fd00:96::10", external_ips=[API6, "2001:db8::5"])
    assert served(plan(wanted)) == {"[fd00:96::10]:80/TCP", "[2001:db8::5]:80/TCP"}


def test_with_the_policy_local_nothing_is_marked_for_what_is_left_out() -> None:
    wanted = make(
        external_ips=[API], external_traffic_policy="Local", type="LoadBalancer", health_check_node_port=32000
    )
    fragment = plan(wanted)
    assert [key for key in fragment.virtual_servers if key.mark] == []
    assert fragment.health_checks


def test_a_health_check_is_not_served_at_the_port_of_the_api_server_on_this_node() -> None:
    wanted = make(external_traffic_policy="Local", type="LoadBalancer", health_check_node_port=6443)
    fragment = plan(wanted)
    assert not fragment.health_checks
    assert fragment.omissions == [
        Omission("service default/web healthCheckNodePort 6443", Reason.API_SERVER_ADDRESS),
    ]
    elsewhere = HERE._replace(api_servers={packed(API): frozenset((6443,))})
    assert plan(wanted, elsewhere).health_checks


@pytest.mark.parametrize(
    ("ports", "is_served"),
    [
        # default/kubernetes: the agent reaches the API server through it.
        ((ServicePort(443, "https"),), True),
        ((ServicePort(80, "http"), ServicePort(443, "https")), True),
        # A cluster IP out of a range that overlaps with the network of the nodes.
        ((ServicePort(80, "http"),), False),
        ((ServicePort(443, "https", "UDP"),), False),
    ],
)
def test_a_cluster_ip_is_the_address_of_the_api_server_only_if_that_is_reached_through_it(
    ports: tuple[ServicePort, ...], is_served: bool
) -> None:
    context = HERE._replace(api_servers={packed(CLUSTER_IP): frozenset((443,))})
    fragment = plan(make(*ports), context)
    assert (packed(CLUSTER_IP) in fragment.addresses) is is_served
    assert bool(fragment.virtual_servers) is is_served
    told = Omission(f"service default/web clusterIP {CLUSTER_IP}", Reason.API_SERVER_ADDRESS)
    assert fragment.omissions == [told] * (not is_served)
    # Nobody else gets that address, not even at another port.
    thief = plan(make(ServicePort(443, "http"), cluster_ip="10.96.0.11", external_ips=[CLUSTER_IP]), context)
    assert served(thief) == {"10.96.0.11:443/TCP"}


def test_the_api_server_is_where_connections_lead_and_where_its_service_leads() -> None:
    pieces = [
        endpoint_slice(endpoint("192.0.2.7"), endpoint("192.0.2.8", ready=False), ports=[EndpointPort("https", 6443)]),
        endpoint_slice(endpoint("2001:db8::7"), name="six", address_type="IPv6", ports=[EndpointPort("https", 6443)]),
        endpoint_slice(endpoint("192.0.2.9"), name="udp", ports=[EndpointPort("quic", 443, "UDP")]),
    ]
    peers = [(packed("10.96.0.1"), 443), (packed("192.0.2.7"), 8443)]
    assert api_servers(peers, pieces) == {
        packed("10.96.0.1"): {443},
        packed("192.0.2.7"): {6443, 8443},
        packed("192.0.2.8"): {6443},
        packed("2001:db8::7"): {6443},
    }


def test_without_a_connection_there_is_nothing_to_lose() -> None:
    assert api_servers((), [endpoint_slice(endpoint("192.0.2.7"))]) == {}


@pytest.mark.parametrize(
    ("wanted", "is_concerned"),
    [
        (make(), False),
        (make(external_ips=[OTHER], ingress=(OTHER,)), False),
        (make(external_ips=[OTHER, API]), True),
        (make(external_ips=[f" {API}"]), True),
        (make(ingress=(API,)), True),
        (make(cluster_ip=API), True),
        (make(cluster_ip="fd00::1", cluster_ips=["fd00::1", API]), True),
        (make(ServicePort(80, "http", node_port=6443)), False),
    ],
)
def test_another_api_server_concerns_the_services_that_name_its_address(wanted: Service, is_concerned: bool) -> None:
    after = HERE._replace(api_servers={})
    before = HERE._replace(api_servers={packed(API): frozenset((6443,))})
    assert concerned(before, after)(wanted) is is_concerned
    assert concerned(after, before)(wanted) is is_concerned


def test_an_api_server_on_this_node_concerns_the_services_that_have_its_port_there() -> None:
    is_concerned = concerned(
        HERE._replace(api_servers={}), HERE._replace(api_servers={packed(NODE): frozenset((6443,))})
    )
    assert is_concerned(make(ServicePort(80, "http", node_port=6443)))
    assert is_concerned(make(health_check_node_port=6443))
    assert not is_concerned(make(ServicePort(80, "http", node_port=30443)))


@pytest.mark.parametrize(
    ("wanted", "outside"),
    [
        (make(ServicePort(80)), False),
        (make(), False),
        (make(ServicePort(80), external_ips=[OTHER]), True),
        (make(ServicePort(80), ingress=(OTHER,)), True),
        (make(ServicePort(80), health_check_node_port=32100), True),
        (make(ServicePort(80), ServicePort(81, "b", node_port=30081)), True),
    ],
)
def test_what_depends_on_the_addresses_of_the_node(wanted: Service, outside: bool) -> None:
    assert reaches_outside(wanted) is outside
    without_ports = structs.replace(wanted, spec=structs.replace(wanted.spec, ports=None))
    assert reaches_outside(without_ports) is (outside and not any(port.node_port for port in wanted.spec.ports or ()))


def test_a_new_address_of_the_node_concerns_what_is_reached_from_outside_and_a_new_zone_everything() -> None:
    moved = HERE._replace(host_addresses=frozenset((packed(API),)))
    assert concerned(HERE, moved)(make(external_ips=[OTHER]))
    assert concerned(HERE, moved)(
        make(type="LoadBalancer", external_traffic_policy="Local", health_check_node_port=6443)
    )
    assert not concerned(HERE, moved)(make())
    assert concerned(HERE, HERE._replace(zone="b"))(make())


@pytest.mark.parametrize("wanted", [make(external_ips=[NODE]), make(ingress=(NODE,))])
def test_an_address_of_the_node_is_served_and_told(wanted: Service) -> None:
    context = HERE._replace(node_addresses=frozenset((packed(NODE),)), api_servers={})
    fragment = plan(wanted, context)
    assert served(fragment) == {f"{CLUSTER_IP}:80/TCP", f"{NODE}:80/TCP"}
    assert [reason for _, reason in fragment.omissions] == [Reason.NODE_ADDRESS]
    # One that moves between nodes (keepalived, kube-vip) is on an interface too, and no Node's.
    assert plan(make(external_ips=["192.0.2.2"]), context).omissions == []


_ADDRESSES = st.sampled_from([API, NODE, OTHER, CLUSTER_IP])
_PORTS = st.sampled_from([80, 443, 6443])
_SERVICES = st.builds(
    lambda ports, ingress, spec: make(*ports, ingress=ingress, **spec),
    st.lists(
        st.builds(ServicePort, _PORTS, st.just("http"), st.sampled_from(["TCP", "UDP"]), node_port=_PORTS | st.just(0)),
        min_size=1,
        max_size=3,
    ),
    st.lists(_ADDRESSES, max_size=2).map(tuple),
    st.fixed_dictionaries(
        {
            "cluster_ip": _ADDRESSES,
            "external_ips": st.lists(_ADDRESSES, max_size=2),
            "type": st.sampled_from(["NodePort", "LoadBalancer"]),
            "external_traffic_policy": st.sampled_from(["Cluster", "Local"]),
            "health_check_node_port": _PORTS,
        }
    ),
)
_CONTEXTS = st.builds(
    lambda servers, host: HERE._replace(
        api_servers={packed(address): frozenset(ports) for address, ports in servers.items()},
        host_addresses=HERE.host_addresses | set(map(packed, host)),
    ),
    st.dictionaries(_ADDRESSES, st.sets(_PORTS, min_size=1), max_size=2),
    st.lists(_ADDRESSES, max_size=1),
)


@settings(max_examples=300, deadline=None)
@given(_SERVICES, _CONTEXTS)
def test_whatever_a_service_asks_for_the_api_server_is_reached_as_before(wanted: Service, context: Context) -> None:
    fragment = plan(wanted, context)
    given_out = packed(wanted.spec.cluster_ip)
    for address, ports in context.api_servers.items():
        if address in fragment.addresses and address not in context.host_addresses:
            assert address == given_out
            assert all(VirtualServerKey(address, Protocol.TCP, port) in fragment.virtual_servers for port in ports)
        for port in ports:
            server = fragment.virtual_servers.get(VirtualServerKey(address, Protocol.TCP, port))
            assert server is None or server[1] is Reason.CLUSTER_IP
            assert address not in context.host_addresses or port not in {
                check.port for check in fragment.health_checks.values()
            }


@settings(max_examples=300, deadline=None)
@given(_SERVICES, _CONTEXTS, _CONTEXTS)
def test_what_a_change_of_the_node_does_not_concern_is_planned_as_before(
    wanted: Service, before: Context, after: Context
) -> None:
    if not concerned(before, after)(wanted):
        old, new = plan(wanted, before), plan(wanted, after)
        assert (old.virtual_servers, old.addresses, old.entries, old.omissions, old.health_checks) == (
            (new.virtual_servers, new.addresses, new.entries, new.omissions, new.health_checks)
        )
