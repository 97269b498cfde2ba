"""The metrics by their names: dashboards of kube-proxy have to go on working."""

from __future__ import annotations

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.kube.sinks import Interruption
from ipvs_proxy.plan.tables import Family, Verb


@pytest.fixture
def metrics() -> Metrics:
    return Metrics((Family.IPV4,))


def text(metrics: Metrics) -> str:
    return metrics.render("text/plain")[0].decode()


@pytest.mark.parametrize(
    "accept",
    [
        'application/openmetrics-text;version="1.0.0"',
        "application/openmetrics-text; version=..",
        "text/plain;version=x",
    ],
)
def test_a_version_that_is_none_gets_the_plain_form(metrics: Metrics, accept: str) -> None:
    assert metrics.render(accept)[1] == metrics.render("")[1] == "text/plain; version=0.0.4; charset=utf-8"


def test_names_and_labels_are_those_of_kube_proxy(metrics: Metrics) -> None:
    metrics.changed("Service", 1, pending=3)
    metrics.changed("EndpointSlice", 1, pending=2)
    metrics.changed("Node", 1, pending=0)
    metrics.queued()
    metrics.no_local_endpoints({("internal", Family.IPV4): 4, ("external", Family.IPV6): 5})
    metrics.programmed(seconds_since_trigger=0.7)
    found = text(metrics)
    prefix = "kubeproxy_sync_proxy_rules"
    for line in (
        f"{prefix}_service_changes_total 1.0",
        f"{prefix}_service_changes_pending 3.0",
        f"{prefix}_endpoint_changes_total 1.0",
        f"{prefix}_endpoint_changes_pending 2.0",
        f'{prefix}_no_local_endpoints_total{{ip_family="IPv4",traffic_policy="internal"}} 4.0',
        'kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="0.5"} 0.0',
        'kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="1.0"} 1.0',
    ):
        assert line in found
    assert f'{prefix}_last_queued_timestamp_seconds{{ip_family="IPv4"}}' in found
    assert "IPv6" not in found


def test_buckets_are_those_of_kube_proxy(metrics: Metrics) -> None:
    metrics.synced(seconds=0.003, complete=True)
    metrics.programmed(seconds_since_trigger=1.0)
    lines = text(metrics).splitlines()
    sync = [line for line in lines if line.startswith("kubeproxy_sync_proxy_rules_duration_seconds_bucket")]
    latency = [line for line in lines if line.startswith("kubeproxy_network_programming_duration_seconds_bucket")]
    assert len(sync) == 15 + 1
    assert 'le="16.384"' in sync[-2]
    assert len(latency) == 80 + 1
    assert 'le="300.0"' in latency[-2]


def test_labelled_metric_appears_with_its_first_use(metrics: Metrics) -> None:
    assert "kubeproxy_proxy_healthz_total{" not in text(metrics)
    metrics.health_answered("healthz", 200)
    assert 'kubeproxy_proxy_healthz_total{code="200"} 1.0' in text(metrics)


def test_timestamp_of_the_last_sync_moves_only_when_all_is_done(metrics: Metrics) -> None:
    metrics.synced(seconds=0.1, complete=False)
    assert "kubeproxy_sync_proxy_rules_last_timestamp_seconds{" not in text(metrics)
    metrics.synced(seconds=0.1, complete=True)
    assert "kubeproxy_sync_proxy_rules_last_timestamp_seconds{" in text(metrics)


def test_api_server_that_is_heard_or_not_shows_by_resource(metrics: Metrics) -> None:
    before = time.time()
    metrics.heard("Service")
    metrics.interrupted("EndpointSlice", Interruption.EXPIRED)
    found = {
        sample.name: sample for family in text_string_to_metric_families(text(metrics)) for sample in family.samples
    }
    heard = found["ipvs_proxy_watch_last_event_timestamp_seconds"]
    assert heard.labels == {"resource": "Service"}
    assert before <= heard.value <= time.time()
    interrupted = found["ipvs_proxy_watch_interruptions_total"]
    assert (interrupted.labels, interrupted.value) == ({"resource": "EndpointSlice", "cause": "expired"}, 1)


def test_own_metrics_count_by_table_and_read_gauges_when_scraped(metrics: Metrics) -> None:
    metrics.operations("ipvs", Verb.ADD, 2, True)
    metrics.operations("ipvs", Verb.ADD, 1, False)
    metrics.repaired("sets", 3)
    metrics.drain_finished("idle")
    size = [1]
    metrics.watch("virtual_servers", lambda: size[0])
    metrics.watch("real_servers", lambda: 3 * size[0], state="serving")
    size[0] = 7
    found = text(metrics)
    for line in (
        'ipvs_proxy_operations_total{result="success",table="ipvs",verb="add"} 2.0',
        'ipvs_proxy_operations_total{result="failure",table="ipvs",verb="add"} 1.0',
        'ipvs_proxy_drift_repairs_total{table="sets"} 3.0',
        'ipvs_proxy_drains_finished_total{outcome="idle"} 1.0',
        "ipvs_proxy_virtual_servers 7.0",
        'ipvs_proxy_real_servers{state="serving"} 21.0',
        'ipvs_proxy_build_info{version="',
    ):
        assert line in found
