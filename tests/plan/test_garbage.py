"""Garbage in any field of any object: nothing is raised, and what is well next to it stays well.

The structs are built without the decoder's checks, so this holds whatever the API server lets through.
"""

from __future__ import annotations

from datetime import UTC

from hypothesis import given, settings
from hypothesis import strategies as st

from ipvs_proxy.kube.objects import (
    ClientIPConfig,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SessionAffinityConfig,
    SliceAnnotations,
    SliceLabels,
    SliceMeta,
)
from ipvs_proxy.plan.annotations import DRAIN_TIMEOUT
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Context
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.services import plan_service
from tests.support.fake_kernel import FakeKernel
from tests.support.objects import endpoint, endpoint_slice, packed, service, virtual
from tests.support.tables import everything, round_of

NODE_ADDRESSES = (packed("192.0.2.1"), packed("fd00:2::1"))
HERE = Context(
    "node-a",
    node_port_addresses=NODE_ADDRESSES,
    host_addresses=frozenset(NODE_ADDRESSES),
    node_ips=NODE_ADDRESSES,
)
CLUSTER_IP = "10.96.0.10"
KEY = virtual(CLUSTER_IP)
LOCAL = endpoint("10.0.0.1", node="node-a")
REMOTE = endpoint("10.0.0.2", node="node-b")
DRAINING = endpoint("10.0.0.4", ready=False, serving=True, terminating=True, node="node-a")

words = st.text(max_size=12) | st.sampled_from(
    [
        "",
        "None",
        "IPv4",
        "IPv6",
        "TCP",
        "UDP",
        "SCTP",
        "http",
        "Local",
        "ClientIP",
        "NodePort",
        "LoadBalancer",
        "VIP",
        "5m",
    ]
)
addresses = words | st.sampled_from(
    [
        CLUSTER_IP,
        "fd00:96::10",
        "10.0.0.1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "0.0.0.0",
        "ff02::1",
        "127.0.0.1",
        "192.0.2.1",
    ]
)
ranges = words | st.sampled_from(
    [
        "10.0.0.0/8",
        "0.0.0.0/0",
        "fd00::/16",
        "::/0",
        "10.1.2.3/8",
        "10.0.0.0",
        "10.0.0.0/33",
        "::ffff:10.0.0.0/100",
        " 10.0.0.0/8 ",
    ]
)
numbers = st.integers(0, 65535)
maybe = st.none() | st.booleans()
moments = st.none() | st.datetimes() | st.datetimes(timezones=st.just(UTC))
bad_ports = st.builds(ServicePort, port=numbers, name=words, protocol=words, node_port=numbers).filter(
    lambda port: port.port != 80 and port.name != "good"
)
affinities = st.none() | st.builds(
    SessionAffinityConfig, st.none() | st.builds(ClientIPConfig, st.none() | st.integers())
)
specs = st.fixed_dictionaries(
    {
        "type": words,
        "cluster_ip": addresses,
        "cluster_ips": st.none() | st.lists(addresses, max_size=3),
        "ip_families": st.none() | st.lists(words, max_size=3),
        "session_affinity": words,
        "session_affinity_config": affinities,
        "internal_traffic_policy": st.none() | words,
        "external_traffic_policy": st.none() | words,
        "external_ips": st.none() | st.lists(addresses, max_size=3),
        "load_balancer_source_ranges": st.none() | st.lists(ranges, max_size=3),
        "health_check_node_port": numbers,
    }
)
statuses = st.builds(
    ServiceStatus,
    st.builds(
        LoadBalancerStatus,
        st.none() | st.lists(st.builds(LoadBalancerIngress, ip=addresses, ip_mode=st.none() | words), max_size=3),
    ),
)
metas = st.builds(
    ObjectMeta,
    name=words,
    namespace=words,
    creation_timestamp=moments,
    labels=st.none() | st.dictionaries(words, words, max_size=2),
    annotations=st.none() | st.dictionaries(st.just(DRAIN_TIMEOUT) | words, words, max_size=2),
)
slice_metas = st.builds(
    SliceMeta,
    name=words,
    namespace=words,
    labels=st.none() | st.builds(SliceLabels, st.none() | words),
    annotations=st.none() | st.builds(SliceAnnotations, *[st.none() | words] * 3),
)
slice_ports = st.builds(
    EndpointPort, name=st.none() | words.filter(lambda name: name != "good"), port=st.none() | numbers, protocol=words
)
endpoints = st.builds(
    Endpoint,
    addresses=st.lists(addresses, max_size=2),
    conditions=st.builds(EndpointConditions, maybe, maybe, maybe),
    node_name=st.none() | words | st.just("node-a"),
)
slices = st.builds(
    EndpointSlice,
    metadata=slice_metas,
    address_type=words,
    endpoints=st.none() | st.lists(endpoints, max_size=4),
    ports=st.none() | st.lists(slice_ports, max_size=4),
)


@settings(deadline=None)
@given(metas, specs, statuses, st.none() | st.lists(bad_ports, max_size=4), st.lists(slices, max_size=3))
def test_garbage_never_raises_and_asks_for_nothing_that_the_kernel_refuses(
    meta: ObjectMeta,
    spec: dict[str, object],
    status: ServiceStatus,
    ports: list[ServicePort] | None,
    pieces: list[EndpointSlice],
) -> None:
    wanted = Service(meta, ServiceSpec(ports=ports, **spec), status)  # type: ignore[arg-type]
    fragment = plan_service(wanted, pieces, HERE, Marks())
    rival = plan_service(service(), [endpoint_slice(REMOTE)], HERE, Marks())
    tables = DesiredTables()
    tables.replace(fragment.name, fragment)
    tables.replace(rival.name, rival)
    kernel = FakeKernel()
    actual = kernel.read()
    for operation in round_of(tables, actual, everything(tables, actual)):
        assert kernel.apply(operation) == 0, operation
        actual.record([operation])
    assert round_of(tables, actual, everything(tables, actual)) == []
    assert all(omission.where for omission in fragment.omissions)


@settings(deadline=None)
@given(st.lists(bad_ports, max_size=5), st.integers(0, 5), st.lists(slices, max_size=3))
def test_garbage_never_harms_the_other_ports(
    ports: list[ServicePort], position: int, pieces: list[EndpointSlice]
) -> None:
    good = ServicePort(80, "good")
    piece = endpoint_slice(LOCAL, REMOTE, DRAINING, ports=[EndpointPort("good", 8080)])
    alone = plan_service(service(ports=[good]), [piece], HERE, Marks())
    crowd = plan_service(service(ports=[*ports[:position], good, *ports[position:]]), [*pieces, piece], HERE, Marks())
    assert crowd.virtual_servers[KEY] == alone.virtual_servers[KEY]
    assert list(crowd.choices[KEY]) == list(alone.choices[KEY])
    assert alone.entries.items() <= crowd.entries.items()
