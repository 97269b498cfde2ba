"""Histories of a few Services that share addresses and ports: strategies, and the objects that they stand for."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st
from msgspec import structs

from ipvs_proxy.kube.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Service,
    ServicePort,
    ServiceStatus,
)
from ipvs_proxy.plan.fragment import ServiceName
from ipvs_proxy.plan.tables import (
    AddressOperation,
    Protocol,
    SetEntry,
    SetEntryOperation,
    Verb,
    VirtualServer,
    VirtualServerOperation,
)
from tests.support.objects import annotated_slice, endpoint, endpoint_slice, packed, service, virtual
from tests.support.roles import role

Conditions = tuple[bool | None, bool | None, bool | None]
#: Whether IPv6; the pods with conditions and whether local; the ports; the annotations.
Piece = tuple[bool, list[tuple[int, Conditions, bool]], set[int], dict[str, str]]

# Few names, addresses and ports, so that Services meet.
NAMES = [ServiceName("default", name) for name in ("api", "dns", "web")]
SERVICE_PORTS = [
    ServicePort(80, "http", "TCP"),
    ServicePort(53, "dns", "UDP"),
    ServicePort(53, "dns-tcp", "TCP"),
    ServicePort(80, "diameter", "SCTP"),
    ServicePort(80, "http", "UDP"),
]
SLICE_PORTS = [
    EndpointPort("http", 8080, "TCP"),
    EndpointPort("http", 8080, "UDP"),
    EndpointPort("dns", 5353, "UDP"),
    EndpointPort("dns-tcp", 5353, "TCP"),
    EndpointPort("diameter", 3868, "SCTP"),
]
IPV4 = ["10.96.0.1", "10.96.0.2"]
IPV6 = ["fd00:96::1"]
names = st.sampled_from(NAMES)


class Wish(NamedTuple):
    """The parts of a Service that vary."""

    families: int
    ipv4: int
    ports: frozenset[int]
    sticky: bool
    local: bool
    age: int
    kind: str
    node_port: int = 0
    ingress: tuple[int, ...] = ()
    external: tuple[int, ...] = ()
    external_local: bool = False
    ranges: tuple[int, ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()


#: What is in an annotation of a Service, and of an EndpointSlice: some of it cannot be read, or does not fit.
SERVICE_ANNOTATIONS = [
    ("ipvs-proxy.io/scheduler", ["lc", "sh", "mh", "wrr", "nq", "none", ""]),
    ("ipvs-proxy.io/scheduler-flags", ["sh-port", "mh-fallback,mh-port", "", "all"]),
    ("ipvs-proxy.io/one-packet", ["true", "false", "yes"]),
    ("ipvs-proxy.io/max-connections", ["7", "0", "-1"]),
    ("ipvs-proxy.io/min-connections", ["5", "9", "few"]),
    ("ipvs-proxy.io/weights", ["*:1", "local:0", "node=there:3, local:5", "zone=a:2, zone=a:3", "*:65535"]),
    ("ipvs-proxy.io/slow-start", ["10s", "0s", "soon"]),
    ("ipvs-proxy.io/drain-timeout", ["5s", "long"]),
]
SLICE_ANNOTATIONS = [
    ("ipvs-proxy.io/weight", ["0", "1", "90", "much"]),
    ("service.cilium.io/weight", ["10", "65535", "65536"]),
]


def annotations_from(table: list[tuple[str, list[str]]]) -> st.SearchStrategy[dict[str, str]]:
    """Return a strategy for annotations: mostly none, sometimes several."""
    one = st.sampled_from(table).flatmap(lambda row: st.tuples(st.just(row[0]), st.sampled_from(row[1])))
    return st.just({}) | st.lists(one, max_size=3).map(dict)


wishes = st.builds(
    Wish,
    families=st.sampled_from([0, 1, 2, 2]),
    ipv4=st.integers(0, len(IPV4) - 1),
    ports=st.frozensets(st.integers(0, len(SERVICE_PORTS) - 1), min_size=2, max_size=4),
    sticky=st.booleans(),
    local=st.booleans(),
    age=st.integers(0, 1),
    kind=st.sampled_from(["ClusterIP"] * 3 + ["NodePort", "LoadBalancer"] * 2 + ["ExternalName"]),
    node_port=st.sampled_from([0, 0, 30080, 30081]),
    ingress=st.sampled_from([(), (), (0,), (1, 2)]),
    external=st.sampled_from([(), (), (0,), (3, 1)]),
    external_local=st.booleans(),
    ranges=st.sampled_from([(), (), (0,), (0, 1), (2,)]),
    annotations=annotations_from(SERVICE_ANNOTATIONS).map(lambda found: tuple(found.items())),
)
#: The last one is an address of the node itself.
OUTSIDE = ["203.0.113.1", "203.0.113.2", "2001:db8::1", "192.0.2.1"]
NODE_ADDRESSES = ["192.0.2.1", "fd00:2::1"]
RANGES = ["198.51.100.0/24", "192.0.2.1/32", "2001:db8:1::/64"]

#: ready, serving, terminating: the conditions of a pod's life.
CONDITIONS = [(True, True, False), (False, False, False), (False, True, True), (False, False, True), (None, None, None)]
pods = st.tuples(st.integers(1, 4), st.sampled_from([*CONDITIONS[:1] * 4, *CONDITIONS]), st.booleans())
pieces = st.tuples(
    st.sampled_from([False, False, True]),
    st.lists(pods, min_size=1, max_size=4),
    st.sets(st.sampled_from(range(5)), min_size=4),
    annotations_from(SLICE_ANNOTATIONS),
)


foreign_servers = st.builds(
    VirtualServer,
    st.builds(
        virtual,
        st.sampled_from([*IPV4, *IPV6, "10.96.0.9"]),
        st.sampled_from([53, 80]),
        st.sampled_from(Protocol),
    ),
    st.sampled_from(["rr", "lc"]),
    st.sampled_from([0, 1]),
    st.sampled_from([0, 600]),
)
members = st.sampled_from([*IPV4, "10.96.0.9"]).map(packed)
come_or_go = st.sampled_from([Verb.ADD, Verb.DELETE])
#: What other programs do to the kernel, if it accepts it.
foreign_operations = st.one_of(
    st.builds(VirtualServerOperation, st.sampled_from(Verb), foreign_servers),
    st.builds(AddressOperation, come_or_go, members),
    st.builds(SetEntryOperation, come_or_go, st.just(role("KUBE-IPVS-IPS")), members.map(SetEntry)),
    st.builds(
        SetEntryOperation,
        come_or_go,
        st.just(role("KUBE-CLUSTER-IP")),
        st.builds(SetEntry, members, st.sampled_from(Protocol), st.sampled_from([53, 80])),
    ),
)


def make_service(name: ServiceName, wish: Wish) -> Service:
    addresses = [[IPV4[wish.ipv4]], IPV6, [IPV4[wish.ipv4], *IPV6]][wish.families]
    made = service(
        name.name,
        cluster_ip=addresses[0],
        cluster_ips=addresses,
        families=[["IPv4"], ["IPv6"], ["IPv4", "IPv6"]][wish.families],
        ports=[
            structs.replace(SERVICE_PORTS[number], node_port=wish.node_port + number if wish.node_port else 0)
            for number in sorted(wish.ports)
        ],
        affinity="ClientIP" if wish.sticky else "None",
        internal="Local" if wish.local else None,
        age=wish.age,
        kind=wish.kind,
    )
    return structs.replace(
        made,
        metadata=structs.replace(made.metadata, annotations=dict(wish.annotations) or None),
        spec=structs.replace(
            made.spec,
            external_ips=[OUTSIDE[number] for number in wish.external],
            external_traffic_policy="Local" if wish.external_local else None,
            load_balancer_source_ranges=[RANGES[number] for number in wish.ranges],
            health_check_node_port=32000 if wish.external_local else 0,
        ),
        status=ServiceStatus(LoadBalancerStatus([LoadBalancerIngress(OUTSIDE[number]) for number in wish.ingress])),
    )


def make_slice(of: ServiceName, number: int, piece: Piece) -> EndpointSlice:
    ipv6, members, ports, annotations = piece
    made = endpoint_slice(
        *(make_endpoint(member, ipv6=ipv6) for member in members),
        name=f"{of.name}-{number}",
        of=of.name,
        ports=[SLICE_PORTS[port] for port in sorted(ports)],
        address_type="IPv6" if ipv6 else "IPv4",
    )
    return annotated_slice(made, annotations)


def make_endpoint(member: tuple[int, Conditions, bool], *, ipv6: bool) -> Endpoint:
    number, (ready, serving, terminating), local = member
    return endpoint(
        f"fd00::{number}" if ipv6 else f"10.0.0.{number}",
        ready=ready,
        serving=serving,
        terminating=terminating,
        node="here" if local else "there",
    )
