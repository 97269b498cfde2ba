"""What is exposed of each Service's traffic."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import prometheus_client.openmetrics.parser as openmetrics_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from ipvs_proxy.agent.metrics import Metrics
from ipvs_proxy.agent.traffic import ServiceTraffic
from ipvs_proxy.kernel.ipvs import Counters
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Context, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.tables import Family, VirtualServerKey
from tests.support.objects import endpoint, endpoint_slice, service, virtual

VIP = virtual("10.96.0.10")


class Kernel:
    def __init__(self) -> None:
        self.counters: dict[VirtualServerKey, Counters] = {}
        self.fault: Exception | None = None

    def read(self) -> Mapping[VirtualServerKey, Counters]:
        if self.fault is not None:
            raise self.fault
        return self.counters


@pytest.fixture
def desired() -> DesiredTables:
    tables = DesiredTables()
    plan = plan_service(service("web"), [endpoint_slice(endpoint("10.244.0.1"))], Context("node"), Marks())
    tables.replace(ServiceName("default", "web"), plan)
    return tables


def exposed(traffic: ServiceTraffic) -> dict[str, float]:
    """Give the series as a parser of Prometheus' reads them."""
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
    assert exposed(ServiceTraffic(desired, kernel.read, enabled=True)) == {
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
    text = ServiceTraffic(desired, kernel.read, enabled=True).expose(openmetrics=False)
    (family, *_) = text_string_to_metric_families(text)
    assert (family.samples[0].labels["namespace"], family.samples[0].labels["service"]) == name


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_both_formats_are_whole_with_the_traffic_in_them(desired: DesiredTables, accept: str) -> None:
    kernel = Kernel()
    kernel.counters = {VIP: Counters(1, 2, 3, 4, 5)}
    metrics = Metrics(tuple(Family))
    metrics.service_traffic = ServiceTraffic(desired, kernel.read, enabled=True).expose
    body, content_type = metrics.render(accept)
    parse = openmetrics_parser.text_string_to_metric_families if accept else text_string_to_metric_families
    families = {family.name: family for family in parse(body.decode())}
    assert ("openmetrics" in content_type) == bool(accept)
    assert families["ipvs_proxy_service_connections"].type == "counter"
    assert [sample.value for sample in families["ipvs_proxy_service_bytes"].samples] == [4, 5]
    assert "ipvs_proxy_virtual_servers" in families


def test_nothing_is_read_or_exposed_while_it_is_off(desired: DesiredTables) -> None:
    kernel = Kernel()
    kernel.fault = AssertionError("read")
    assert exposed(ServiceTraffic(desired, kernel.read, enabled=False)) == {}


def test_sums_never_fall_when_a_virtual_server_is_made_anew(desired: DesiredTables) -> None:
    kernel = Kernel()
    traffic = ServiceTraffic(desired, kernel.read, enabled=True)
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
    assert exposed(ServiceTraffic(tables, kernel.read, enabled=True))[f"connections_total{labels_of('ns')}"] == 2


def labels_of(namespace: str) -> str:
    return f'{{kind="ClusterIP",namespace="{namespace}",port="80",service="web"}}'


def test_service_that_is_gone_is_not_exposed(desired: DesiredTables) -> None:
    kernel = Kernel()
    kernel.counters = {VIP: Counters(1, 1, 1, 1, 1)}
    traffic = ServiceTraffic(desired, kernel.read, enabled=True)
    assert exposed(traffic)
    desired.replace(ServiceName("default", "web"), None)
    assert exposed(traffic) == {}


def test_fault_of_the_kernel_leaves_the_other_metrics_alone(desired: DesiredTables) -> None:
    kernel = Kernel()
    kernel.fault = OSError("no")
    with capture_logs() as logs:
        assert exposed(ServiceTraffic(desired, kernel.read, enabled=True)) == {}
    assert [line["event"] for line in logs] == ["service_traffic_not_read"]


def test_tables_may_change_while_they_are_read(desired: DesiredTables) -> None:
    kernel = Kernel()
    kernel.counters = {VIP: Counters(1, 1, 1, 1, 1)}
    traffic = ServiceTraffic(desired, kernel.read, enabled=True)
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
