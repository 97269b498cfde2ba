"""What is exposed of each Service's traffic."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import prometheus_client.openmetrics.parser as openmetrics_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.agent.observe.service_traffic import ENDPOINTS, ServiceTraffic
from ipvs_proxy.kernel.ipvs.records import Activity, Balanced, Connections, Counters, Observation
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Context, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.tables import ACTIVE, Family, RealServerKey, VirtualServer, VirtualServerKey
from ipvs_proxy.settings.values import ServiceMetrics
from tests.support.objects import endpoint, endpoint_slice, real, service, virtual

VIP = virtual("10.96.0.10")
NOTHING = Counters(0, 0, 0, 0, 0)


class Kernel:
    def __init__(self) -> None:
        self.counters: dict[VirtualServerKey, Counters] = {}
        self.endpoints: dict[VirtualServerKey, dict[RealServerKey, int]] = {}
        self.fault: Exception | None = None
        self.observed: list[VirtualServerKey] = []

    def read_counters(self) -> Mapping[VirtualServerKey, Counters]:
        if self.fault is not None:
            raise self.fault
        return self.counters

    def observe(self, key: VirtualServerKey) -> Observation | None:
        self.observed.append(key)
        if key not in self.endpoints:
            return None
        found = {
            server: Activity(ACTIVE, Connections(0, 0, 0), Balanced(Counters(number, 2, 3, 4, 5), NOTHING))
            for server, number in self.endpoints[key].items()
        }
        return Observation(VirtualServer(key, "rr"), Balanced(self.counters[key], NOTHING), found)

    def close(self) -> None:
        pass


@pytest.fixture
def desired() -> DesiredTables:
    tables = DesiredTables()
    plan = plan_service(service("web"), [endpoint_slice(endpoint("10.244.0.1"))], Context("node"), Marks())
    tables.replace(ServiceName("default", "web"), plan)
    return tables


def exposed(traffic: ServiceTraffic) -> dict[str, float]:
    """Return the series as a parser of Prometheus' reads them."""
    families = text_string_to_metric_families(traffic.expose(openmetrics=False))
    return {
        sample.name.removeprefix("ipvs_proxy_service_")
        + "{"
        + ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
        + "}": sample.value
        for family in families
        for sample in family.samples
    }


def labels(desired: DesiredTables, *, direction: str = "") -> str:
    ((_, owner),) = desired.owners.items()
    inner = f'kind="ClusterIP",namespace="{owner.namespace}",port="80",service="web"'
    return "{" + (f'direction="{direction}",' if direction else "") + inner + "}"


def test_counters_of_a_service_have_its_name_port_and_kind(desired: DesiredTables) -> None:
    kernel = Kernel()
    kernel.counters = {VIP: Counters(3, 20, 10, 2_000, 9_000), virtual("192.0.2.1"): Counters(9, 9, 9, 9, 9)}
    assert exposed(ServiceTraffic(desired, lambda: kernel, detail=ServiceMetrics.ALL)) == {
        f"connections_total{labels(desired)}": 3,
        f"packets_total{labels(desired, direction='in')}": 20,
        f"packets_total{labels(desired, direction='out')}": 10,
        f"bytes_total{labels(desired, direction='in')}": 2_000,
        f"bytes_total{labels(desired, direction='out')}": 9_000,
    }


def test_names_that_are_none_are_escaped(desired: DesiredTables) -> None:
    name = ServiceName('a"b\\c', "d\ne")
    desired.owners[VIP] = name
    kernel = Kernel()
    kernel.counters = {VIP: Counters(1, 1, 1, 1, 1)}
    text = ServiceTraffic(desired, lambda: kernel, detail=ServiceMetrics.ALL).expose(openmetrics=False)
    (family, *_) = text_string_to_metric_families(text)
    assert (family.samples[0].labels["namespace"], family.samples[0].labels["service"]) == name


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_both_formats_are_whole_with_the_traffic_in_them(desired: DesiredTables, accept: str) -> None:
    kernel = Kernel()
    kernel.counters = {VIP: Counters(1, 2, 3, 4, 5)}
    kernel.endpoints = {VIP: {real("10.244.0.1"): 1}}
    traffic = ServiceTraffic(desired, lambda: kernel, detail=ServiceMetrics.ENDPOINTS)
    metrics = Metrics(tuple(Family), service_traffic=traffic.expose)
    body, content_type = metrics.render(accept)
    parse = openmetrics_parser.text_string_to_metric_families if accept else text_string_to_metric_families
    families = {family.name: family for family in parse(body.decode())}
    assert ("openmetrics" in content_type) == bool(accept)
    assert families["ipvs_proxy_service_connections"].type == "counter"
    assert [sample.value for sample in families["ipvs_proxy_service_bytes"].samples] == [4, 5]
    assert [sample.value for sample in families["ipvs_proxy_endpoint_packets"].samples] == [2, 3]
    assert "ipvs_proxy_virtual_servers" in families


def test_nothing_is_read_or_exposed_while_it_is_off(desired: DesiredTables) -> None:
    kernel = Kernel()
    kernel.fault = AssertionError("read")
    assert exposed(ServiceTraffic(desired, lambda: kernel, detail=ServiceMetrics.OFF)) == {}


def endpoint_samples(traffic: ServiceTraffic) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return the labels and values of each metric of endpoints."""
    families = text_string_to_metric_families(traffic.expose(openmetrics=False))
    return {
        family.name.removeprefix("ipvs_proxy_"): [(sample.labels, sample.value) for sample in family.samples]
        for family in families
        if family.name.startswith("ipvs_proxy_endpoint")
    }


def test_endpoints_have_the_counters_of_each_virtual_server(desired: DesiredTables) -> None:
    kernel = Kernel()
    kernel.counters = {VIP: Counters(7, 0, 0, 0, 0)}
    kernel.endpoints = {VIP: {real("10.244.0.1"): 7}}
    labels = {
        "namespace": "default",
        "service": "web",
        "virtual_server": "10.96.0.10:80/TCP",
        "endpoint": "10.244.0.1:8080",
    }
    assert endpoint_samples(ServiceTraffic(desired, lambda: kernel, detail=ServiceMetrics.ENDPOINTS)) == {
        "endpoint_connections": [(labels, 7)],
        "endpoint_packets": [(labels | {"direction": "in"}, 2), (labels | {"direction": "out"}, 3)],
        "endpoint_bytes": [(labels | {"direction": "in"}, 4), (labels | {"direction": "out"}, 5)],
        "endpoints_not_exposed": [({}, 0)],
    }
    kernel.observed.clear()
    assert endpoint_samples(ServiceTraffic(desired, lambda: kernel, detail=ServiceMetrics.ALL)) == {}
    assert kernel.observed == []


def test_endpoints_are_bounded_and_those_of_the_busiest_come_first() -> None:
    tables, kernel = DesiredTables(), Kernel()
    sizes = {"10.96.0.1": 600, "10.96.0.2": 600, "10.96.0.3": 600}
    busy = {"10.96.0.1": 1, "10.96.0.2": 50_000, "10.96.0.3": 2_000}
    for number, (address, size) in enumerate(sizes.items()):
        pods = [f"10.{200 + number}.{pod // 250}.{pod % 250 + 1}" for pod in range(size)]
        slices = [endpoint_slice(*(endpoint(pod) for pod in pods))]
        plan = plan_service(service("web", cluster_ip=address), slices, Context("node"), Marks())
        tables.replace(ServiceName("ns", f"s{number}"), plan)
        kernel.counters[virtual(address)] = Counters(busy[address], 0, 0, 0, 0)
        kernel.endpoints[virtual(address)] = {real(pod): index for index, pod in enumerate(pods)}
    found = endpoint_samples(ServiceTraffic(tables, lambda: kernel, detail=ServiceMetrics.ENDPOINTS))
    exposed = [(labels["service"], value) for labels, value in found["endpoint_connections"]]
    assert len(exposed) == ENDPOINTS
    assert [value for name, value in exposed if name == "s1"] == list(range(599, -1, -1))
    assert [value for name, value in exposed if name == "s2"] == list(range(599, 199, -1))
    assert found["endpoints_not_exposed"] == [({}, 800)]
    assert kernel.observed == [virtual("10.96.0.2"), virtual("10.96.0.3")]


def test_sums_never_fall_when_a_virtual_server_is_made_anew(desired: DesiredTables) -> None:
    kernel = Kernel()
    traffic = ServiceTraffic(desired, lambda: kernel, detail=ServiceMetrics.ALL)
    seen = []
    for counters in (
        Counters(5, 0, 0, 0, 0),
        Counters(7, 0, 0, 0, 0),
        Counters(2, 0, 0, 0, 0),
        Counters(3, 0, 0, 0, 0),
    ):
        kernel.counters = {VIP: counters}
        seen.append(exposed(traffic)[f"connections_total{labels(desired)}"])
    assert seen == [5, 7, 9, 10]


def test_virtual_servers_of_both_families_add_up() -> None:
    tables = DesiredTables()
    both = service("web", cluster_ips=["10.96.0.10", "fd00::10"], families=["IPv4", "IPv6"])
    tables.replace(ServiceName("ns", "web"), plan_service(both, [], Context("node"), Marks()))
    kernel = Kernel()
    kernel.counters = {key: Counters(1, 2, 3, 4, 5) for key in tables.virtual_servers}
    assert len(kernel.counters) == 2
    assert (
        exposed(ServiceTraffic(tables, lambda: kernel, detail=ServiceMetrics.ALL))[
            f"connections_total{labels_of('ns')}"
        ]
        == 2
    )


def labels_of(namespace: str) -> str:
    return f'{{kind="ClusterIP",namespace="{namespace}",port="80",service="web"}}'


def test_service_that_is_gone_is_not_exposed(desired: DesiredTables) -> None:
    kernel = Kernel()
    kernel.counters = {VIP: Counters(1, 1, 1, 1, 1)}
    traffic = ServiceTraffic(desired, lambda: kernel, detail=ServiceMetrics.ALL)
    assert exposed(traffic)
    desired.replace(ServiceName("default", "web"), None)
    assert exposed(traffic) == {}


def test_fault_of_the_kernel_leaves_the_other_metrics_alone(desired: DesiredTables) -> None:
    kernel = Kernel()
    kernel.fault = OSError("no")
    with capture_logs() as logs:
        assert exposed(ServiceTraffic(desired, lambda: kernel, detail=ServiceMetrics.ALL)) == {}
    assert [line["event"] for line in logs] == ["service_traffic_not_read"]


def test_tables_may_change_while_they_are_read(desired: DesiredTables) -> None:
    kernel = Kernel()
    kernel.counters = {VIP: Counters(1, 1, 1, 1, 1)}
    traffic = ServiceTraffic(desired, lambda: kernel, detail=ServiceMetrics.ALL)
    plan = plan_service(service("web"), [], Context("node"), Marks())
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for number in range(50):
                desired.replace(ServiceName("other", f"s{number}"), plan)

    thread = threading.Thread(target=churn)
    thread.start()
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        assert exposed(traffic)
    stop.set()
    thread.join()
