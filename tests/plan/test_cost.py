"""What planning one Service costs at most, whatever somebody wrote into it: time, size, and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvs_proxy.agent.sync.object_cache import ObjectCache
from ipvs_proxy.kube.decode import Skipped, convert_object
from ipvs_proxy.kube.objects import SERVICE_NAME, TRIGGER_TIME, EndpointSlice, Service
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, SERVICES, own_node
from ipvs_proxy.kube.texts import QUOTED
from ipvs_proxy.plan.annotations import DRAIN_TIMEOUT
from ipvs_proxy.plan.budget import MAX_RANGE_MEMBERS, MAX_REAL_SERVERS, MAX_VIRTUAL_SERVERS, takes_long
from ipvs_proxy.plan.durations import duration
from ipvs_proxy.plan.fragment import Context, Fragment
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.node_addresses import node_ips, pod_cidr
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.services import MAX_OMISSIONS, plan_service
from ipvs_proxy.plan.tables import Family
from tests.support.large_services import ADDRESSES, LARGE, ports, slices, wanted
from tests.support.objects import packed

CONTEXT = Context("node", node_port_addresses=(packed("192.0.2.1"), packed("2001:db8::1")))
#: What an object of the API can have of annotations, in characters.
ANNOTATIONS = 256 * 1024
LONG = ["9", "9s", ".", "9.", "a", " ", "-", "\n", "é", "\0", "1:", "::", "/", "255."]
#: Seconds of this process that nothing of an object may take: linear work takes a hundredth of it, quadratic far more.
PATIENCE = 0.5


def spent(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def plan(service: Service, pieces: list[EndpointSlice] | None = None) -> Fragment:
    return plan_service(service, pieces or [], CONTEXT, Marks())


#: Those that are served whole.
WHOLE = {
    "5,000 source ranges",
    "5,000 source ranges that are none",
    "100 slices of 1,000",
    "one slice of 30,000",
    "one slice of 60,000 ports",
    "100,000 external IPs that are none",
}


@pytest.mark.parametrize("name", LARGE)
def test_a_service_gets_no_more_than_its_share_and_is_told(name: str) -> None:
    service, pieces = LARGE[name]
    fragment = plan(service, pieces)
    servers = [server for server, _ in fragment.virtual_servers.values()]
    assert len(servers) <= MAX_VIRTUAL_SERVERS
    assert sum(len(server.real_servers) for server in servers) <= MAX_REAL_SERVERS
    ranges = [entry for _, entry in fragment.entries if entry.source and entry.prefix_length is not None]
    assert len(ranges) <= MAX_RANGE_MEMBERS
    assert len(fragment.omissions) <= MAX_OMISSIONS + 1
    told = any(omission.reason is Reason.TOO_MUCH for omission in fragment.omissions)
    assert told == (name not in WHOLE)


@pytest.mark.parametrize("name", LARGE)
def test_a_large_service_is_planned_in_a_few_seconds(name: str) -> None:
    service, pieces = LARGE[name]
    assert spent(lambda: plan(service, pieces)) < 3.0


@pytest.mark.parametrize("name", LARGE)
def test_what_takes_the_event_loop_is_short(name: str) -> None:
    """The goal is 50 ms; a machine of tests may be three times slower. What takes longer is planned in a thread."""
    service, pieces = LARGE[name]
    if not takes_long(service, pieces):
        assert min(spent(lambda: plan(service, pieces)) for _ in range(3)) < 0.15


def test_every_port_has_its_cluster_ip_before_any_has_the_others() -> None:
    fragment = plan(wanted(ports=ports(1000), externalIPs=ADDRESSES))
    inside = [reason for _, reason in fragment.virtual_servers.values() if reason is Reason.CLUSTER_IP]
    assert len(inside) == 2000


def test_a_large_service_of_people_is_served_whole() -> None:
    fragment = plan(wanted(ports=ports(700), ingress=["203.0.113.1", "2001:db8::7"]), slices(10, 1000))
    assert fragment.omissions == []
    assert len(fragment.virtual_servers) == 700 * 6


@pytest.mark.parametrize("piece", LONG)
def test_a_duration_of_any_length_is_read_in_linear_time(piece: str) -> None:
    text = (piece * ANNOTATIONS)[:ANNOTATIONS]

    def read() -> None:
        with pytest.raises(ValueError, match="not a duration") as caught:
            duration(text)
        assert len(str(caught.value)) < QUOTED * 5

    assert spent(read) < PATIENCE


@pytest.mark.parametrize("length", [16 * 1024, ANNOTATIONS])
def test_one_annotation_costs_nothing_and_is_quoted_in_part(length: int) -> None:
    service = wanted({DRAIN_TIMEOUT: "9" * length})
    assert spent(lambda: plan(service)) < PATIENCE / 5
    [omission] = plan(service).omissions
    assert omission.reason is Reason.INVALID_DRAIN_TIMEOUT
    assert len(omission.where) < QUOTED + 30
    prefix = f"service shop/web annotation {DRAIN_TIMEOUT} "
    assert omission.where.startswith(prefix)
    assert omission.where.endswith(f"({length + len(prefix):,} characters)")


def texts(limit: int) -> Iterator[str]:
    """Each text that is as long as a field may be."""
    for piece in LONG:
        yield (piece * limit)[:limit]


_INTEGERS = [0, -1, 1, 65535, 65536, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 10**400, 1e308, -0.5]
FIELDS: dict[str, list[Any]] = {
    "metadata.annotations": [
        {name: text} for name in (DRAIN_TIMEOUT, TRIGGER_TIME) for text in texts(ANNOTATIONS)
    ],
    "metadata.labels": [{f"{text[:60]}{number}": text[:63] for number in range(2000)} for text in texts(63)],
    "metadata.creationTimestamp": list(texts(1000)),
    "metadata.name": list(texts(253)),
    "metadata.namespace": list(texts(10_000)),
    "metadata.uid": list(texts(100_000)),
    "metadata.resourceVersion": list(texts(100_000)),
    "spec.externalTrafficPolicy": ["Local", *texts(100_000)],
    "spec.internalTrafficPolicy": ["Local", *texts(100_000)],
    "spec.taints": [[{"key": text}] * 1000 for text in texts(500)],
    "spec.type": list(texts(10_000)),
    "spec.clusterIP": list(texts(100_000)),
    "spec.clusterIPs": [[text] * 2 for text in texts(100_000)],
    "spec.ipFamilies": [[text] * 100 for text in texts(1000)] + [["IPv4"] * 10_000],
    "spec.externalIPs": [[text] * 100 for text in texts(10_000)],
    "spec.loadBalancerSourceRanges": [[f"{number}{text}" for number in range(5000)] for text in texts(200)],
    "spec.sessionAffinity": ["ClientIP", *texts(10_000)],
    "spec.sessionAffinityConfig": [{"clientIP": {"timeoutSeconds": number}} for number in _INTEGERS],
    "spec.healthCheckNodePort": _INTEGERS,
    "spec.ports": [
        [{"name": f"{number}{text}", "port": number % 65536, "protocol": text} for number in range(1000)]
        for text in texts(200)
    ]
    + [[{"port": number, "nodePort": number} for _ in range(1000)] for number in _INTEGERS],
    "status.loadBalancer": [{"ingress": [{"ip": text, "ipMode": text}] * 1000} for text in texts(500)],
    "addressType": list(texts(100_000)),
    "endpoints": [[{"addresses": [text], "nodeName": text, "hints": {"forZones": [{"name": text}] * 8}}] * 1000 for text in texts(253)],
    "ports": [[{"name": f"{number}{text}", "port": 80, "protocol": text} for number in range(100)] for text in texts(200)],
    "spec.podCIDRs": [[text] * 1000 for text in texts(500)],
    "status.addresses": [[{"type": "InternalIP", "address": text}] * 1000 for text in texts(500)],
}  # fmt: skip


def base() -> dict[str, Any]:
    """A Service, an EndpointSlice and a Node in one, as their fields do not meet."""
    mapping: dict[str, Any] = msgspec.to_builtins(wanted(externalIPs=["203.0.113.9"]))
    mapping["metadata"] |= {"labels": {SERVICE_NAME: "web"}}
    return mapping | {"addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.1"]}], "ports": [{"name": "http"}]}


def with_field(mapping: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    head, _, rest = path.partition(".")
    return mapping | {head: with_field(mapping.get(head, {}), rest, value) if rest else value}


def use(mapping: dict[str, Any]) -> None:
    """Read an object as each kind, and use it as the agent does."""
    raw = msgspec.json.encode(mapping)
    data = msgspec.json.decode(raw)
    service = convert_object(data, SERVICES)
    piece = convert_object(data, ENDPOINT_SLICES)
    node = convert_object(data, own_node("node"))
    cache = ObjectCache()
    for item in (service, piece, node):
        cache.change(None, None if isinstance(item, Skipped) else item)
    fragment = plan(
        service if isinstance(service, Service) else wanted(), [piece] if isinstance(piece, EndpointSlice) else []
    )
    assert sum(len(omission.where) for omission in fragment.omissions) < (MAX_OMISSIONS + 1) * (QUOTED + 30)
    if hasattr(node, "spec"):
        node_ips(node)
        for family in Family:
            pod_cidr(node, family)


@pytest.mark.parametrize("path", FIELDS)
def test_the_longest_value_of_each_field_is_read_and_planned_in_time(path: str) -> None:
    slow = {}
    for index, value in enumerate(FIELDS[path]):
        mapping = with_field(base(), path, value)
        try:
            seconds = spent(partial(use, mapping))
        except (OverflowError, msgspec.DecodeError):
            continue  # no JSON of msgspec's
        if seconds > PATIENCE:
            slow[index] = seconds
    assert not slow, f"seconds by the number of the value: {slow}"


_VALUES = st.one_of(
    st.sampled_from(LONG).flatmap(lambda piece: st.integers(0, 2000).map(lambda count: piece * count)),
    st.text(max_size=50),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.none(),
    st.booleans(),
    st.lists(st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), _VALUES, max_size=4))
def test_an_object_of_any_content_is_read_and_planned(fields: dict[str, Any]) -> None:
    mapping = base()
    for path, value in fields.items():
        mapping = with_field(mapping, path, value)
    assert spent(lambda: use(mapping)) < PATIENCE
