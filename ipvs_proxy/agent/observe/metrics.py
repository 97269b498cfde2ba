"""What Prometheus sees: kube-proxy's metrics where they have a meaning here, and ours under ``ipvs_proxy_``.

Names, labels and buckets of the first kind are kube-proxy's, so dashboards carry over; a labelled one appears with its
first use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from ipvs_proxy import __version__
from ipvs_proxy.kube.sinks import Interruption
from ipvs_proxy.plan.tables import Family, Verb
from ipvs_proxy.settings.live import Reload

# The library's times of creation would be a third of all lines; kube-proxy has none.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SYNC_BUCKETS = tuple(0.001 * 2**power for power in range(15))
_PROGRAMMING_BUCKETS = (0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))
_LABEL = "ip_family"


#: What OpenMetrics ends with.
_END = b"# EOF\n"


class ServiceTrafficText(Protocol):
    """Returns the metrics of each Service as text, in one of two formats, without an end mark."""

    def __call__(self, *, openmetrics: bool) -> str:
        """Return the text."""


def _no_traffic(*, openmetrics: bool) -> str:  # noqa: ARG001
    return ""


class _Totals:
    """Counters that are kept elsewhere and read when they are scraped, in another thread."""

    def __init__(self, described: dict[str, str]) -> None:
        self.reads: dict[str, Callable[[], float]] = {}
        self._described = described

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Return those that somebody counts, as a registry asks for them."""
        for name, read in self.reads.items():
            yield CounterMetricFamily(f"ipvs_proxy_{name}", self._described[name], value=read())


class _BySchedulers:
    """How many virtual servers each scheduler has, counted when that is scraped, in another thread."""

    def __init__(self) -> None:
        self.count: Callable[[], Mapping[str, int]] = dict

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return one series for each scheduler that is in use."""
        text = "Virtual servers of ours in the kernel, by scheduler"
        found = GaugeMetricFamily("ipvs_proxy_scheduler_virtual_servers", text, labels=["scheduler"])
        for scheduler, number in self.count().items():
            found.add_metric([scheduler], number)
        yield found


class Metrics:
    """One registry and the events that change it; ``service_traffic`` returns the metrics of each Service."""

    def __init__(self, families: Sequence[Family], service_traffic: ServiceTrafficText = _no_traffic) -> None:
        self.registry = CollectorRegistry()
        self._service_traffic = service_traffic
        self._families = [family.label for family in families]
        self._kube_proxy()
        self._add_counters()
        self._add_gauges()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def _kube_proxy(self) -> None:
        registry, sync = self.registry, "kubeproxy_sync_proxy_rules"
        self._duration = Histogram(
            f"{sync}_duration_seconds",
            "Seconds that it took to plan and program changed Services",
            [_LABEL],
            buckets=_SYNC_BUCKETS,
            registry=registry,
        )
        self._last_queued = Gauge(
            f"{sync}_last_queued_timestamp_seconds", "When a change was last queued", [_LABEL], registry=registry
        )
        self._last_sync = Gauge(
            f"{sync}_last_timestamp_seconds", "When all changes were last in the kernel", [_LABEL], registry=registry
        )
        self._latency = Histogram(
            "kubeproxy_network_programming_duration_seconds",
            "Seconds from a change of endpoints in the cluster until it is in the kernel",
            [_LABEL],
            buckets=_PROGRAMMING_BUCKETS,
            registry=registry,
        )
        self._changes = {
            kind: Counter(f"{sync}_{name}_changes", f"{kind} changes seen", registry=registry)
            for kind, name in (("Service", "service"), ("EndpointSlice", "endpoint"))
        }
        self._pending = {
            kind: Gauge(f"{sync}_{name}_changes_pending", "Services that wait to be programmed", registry=registry)
            for kind, name in (("Service", "service"), ("EndpointSlice", "endpoint"))
        }
        self._no_local = Gauge(
            f"{sync}_no_local_endpoints_total",
            "Services with a Local traffic policy and endpoints, but none on this node",
            ["traffic_policy", _LABEL],
            registry=registry,
        )
        self._cleaning = Histogram(
            "kubeproxy_conntrack_reconciler_sync_duration_seconds",
            "Seconds that looking for stale flows took",
            [_LABEL],
            buckets=_SYNC_BUCKETS,
            registry=registry,
        )
        self._cleaned = Counter(
            "kubeproxy_conntrack_reconciler_deleted_entries", "Stale flows deleted", [_LABEL], registry=registry
        )
        self._answers = {
            path: Counter(f"kubeproxy_proxy_{path}", f"Answers of /{path}", ["code"], registry=registry)
            for path in ("healthz", "livez")
        }

    def _add_counters(self) -> None:
        registry = self.registry
        self._operations = Counter(
            "ipvs_proxy_operations", "Operations on kernel tables", ["table", "verb", "result"], registry=registry
        )
        self._repairs = Counter(
            "ipvs_proxy_drift_repairs", "Differences found in the kernel and repaired", ["table"], registry=registry
        )
        self._skipped = Counter(
            "ipvs_proxy_skipped_objects", "Objects that could not be decoded", ["kind"], registry=registry
        )
        self._left_out = Counter(
            "ipvs_proxy_left_out",
            "Parts of Services and EndpointSlices that could not be served as written",
            ["reason"],
            registry=registry,
        )
        self._drained = Counter(
            "ipvs_proxy_drains_finished", "Drains of real servers that ended", ["outcome"], registry=registry
        )
        self._loop_delay = Histogram(
            "ipvs_proxy_event_loop_delay_seconds",
            "Seconds that the event loop was kept from its work",
            buckets=(0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0),
            registry=registry,
        )
        self._configurations = Counter(
            "ipvs_proxy_configuration_reads",
            "Changes of the configuration file, by what became of them",
            ["outcome"],
            registry=registry,
        )
        self._malformed = Counter(
            "ipvs_proxy_malformed_requests",
            "Requests that could not be read, by the server that got them",
            ["server"],
            registry=registry,
        )
        self._displaced = Counter(
            "ipvs_proxy_connections_displaced",
            "Connections closed in favour of newer ones, by server, and by what there were too many of",
            ["server", "reason"],
            registry=registry,
        )
        self._interruptions = Counter(
            "ipvs_proxy_watch_interruptions",
            "Watches and lists that broke off",
            ["resource", "cause"],
            registry=registry,
        )

    def _add_gauges(self) -> None:
        registry = self.registry
        self._conflicts = Gauge(
            "ipvs_proxy_conflicts", "Claims to virtual servers that older Services have", registry=registry
        )
        self._configured = Gauge(
            "ipvs_proxy_configuration_last_success_timestamp_seconds",
            "When a changed configuration file was last in use as a whole",
            registry=registry,
        )
        self._heard = Gauge(
            "ipvs_proxy_watch_last_event_timestamp_seconds",
            "When the API server last sent an event, a bookmark or a list",
            ["resource"],
            registry=registry,
        )
        self._gauges = {
            name: Gauge(f"ipvs_proxy_{name}", text, labels, registry=registry)
            for name, text, labels in (
                ("virtual_servers", "Virtual servers of ours in the kernel", ()),
                ("real_servers", "Real servers of ours in the kernel, by whether they get new connections", ("state",)),
                ("warming_endpoints", "Endpoints that have not yet reached their full weight, by slow start", ()),
                ("foreign_virtual_servers", "Virtual servers in the kernel that are not ours", ()),
                (
                    "watch_failing_seconds",
                    "Seconds for which lists and watches have failed, with nothing heard; 0 if they work",
                    ("resource",),
                ),
            )
        }
        self._totals = _Totals(
            {
                "events_dropped": "Events that were not written to the API",
                "kernel_writes": "Messages and rule sets written to the kernel",
                "log_lines_dropped": "Lines of the log that nobody read in time",
            }
        )
        registry.register(self._totals)
        self._by_schedulers = _BySchedulers()
        registry.register(self._by_schedulers)
        Gauge("ipvs_proxy_build_info", "1, with the version", ["version"], registry=registry).labels(__version__).set(1)

    def changed(self, kind: str, number: int, *, pending: int) -> None:
        """Count changes of objects."""
        if kind in self._changes:
            self._changes[kind].inc(number)
            self._pending[kind].set(pending)

    def skipped(self, kind: str) -> None:
        """Count an object that could not be decoded."""
        self._skipped.labels(kind).inc()

    def heard(self, kind: str) -> None:
        """Note that the API server sent something about a resource."""
        self._heard.labels(kind).set_to_current_time()

    def interrupted(self, kind: str, cause: Interruption) -> None:
        """Count a watch or list that broke off."""
        self._interruptions.labels(kind, cause.value).inc()

    def configuration_read(self, outcome: Reload) -> None:
        """Count a change of the configuration file."""
        self._configurations.labels(outcome.value).inc()
        if outcome in {Reload.APPLIED, Reload.UNCHANGED}:
            self._configured.set(time.time())

    def queued(self) -> None:
        """Note that there is work."""
        for family in self._families:
            self._last_queued.labels(family).set(time.time())

    def synced(self, *, seconds: float, complete: bool) -> None:
        """Note that the work is done; ``complete`` if nothing waits for a retry."""
        for family in self._families:
            self._duration.labels(family).observe(seconds)
            if complete:
                self._last_sync.labels(family).set(time.time())
        for pending in self._pending.values():
            pending.set(0)

    def programmed(self, *, seconds_since_trigger: float) -> None:
        """Observe the latency of a change of endpoints."""
        for family in self._families:
            self._latency.labels(family).observe(seconds_since_trigger)

    def no_local_endpoints(self, services: dict[tuple[str, Family], int]) -> None:
        """Set the number of Services whose Local policy (internal, external) finds no endpoint here."""
        for (policy, family), number in services.items():
            if family.label in self._families:
                self._no_local.labels(policy, family.label).set(number)

    def left_out(self, reason: str) -> None:
        """Count something that could not be served as written."""
        self._left_out.labels(reason).inc()

    def conflicts(self, number: int) -> None:
        """Set the number of claims that were lost."""
        self._conflicts.set(number)

    def cleaned(self, family: Family, deleted: int, seconds: float) -> None:
        """Note that stale flows of a family were looked for."""
        if family.label in self._families:
            self._cleaning.labels(family.label).observe(seconds)
            self._cleaned.labels(family.label).inc(deleted)

    def operations(self, table: str, verb: Verb, number: int, succeeded: bool) -> None:
        """Count operations on a kernel table."""
        self._operations.labels(table, verb.value, "success" if succeeded else "failure").inc(number)

    def repaired(self, table: str, count: int) -> None:
        """Count repairs of drift."""
        self._repairs.labels(table).inc(count)

    def drain_finished(self, outcome: str) -> None:
        """Count a drain that ended."""
        self._drained.labels(outcome).inc()

    def loop_delay(self, seconds: float) -> None:
        """Observe how long the event loop was kept."""
        self._loop_delay.observe(seconds)

    def health_answered(self, path: str, code: int) -> None:
        """Count an answer of ``healthz`` or ``livez``."""
        self._answers[path].labels(str(code)).inc()

    def malformed_request(self, server: str) -> None:
        """Count a request that could not be read."""
        self._malformed.labels(server).inc()

    def connection_displaced(self, server: str, reason: str) -> None:
        """Count a connection that was closed in favour of a newer one."""
        self._displaced.labels(server, reason).inc()

    def watch(self, name: str, read: Callable[[], float], **labels: str) -> None:
        """Have one of our gauges read when it is scraped. ``read`` is called in another thread."""
        gauge = self._gauges[name]
        (gauge.labels(**labels) if labels else gauge).set_function(read)

    def watch_total(self, name: str, read: Callable[[], float]) -> None:
        """Have one of our counters read when it is scraped. ``read`` is called in another thread."""
        self._totals.reads[name] = read

    def watch_schedulers(self, count: Callable[[], Mapping[str, int]]) -> None:
        """Have virtual servers counted by scheduler when that is scraped. ``count`` is called in another thread."""
        self._by_schedulers.count = count

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the form that a scraper accepts, and its content type."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is none
            encode, content_type = choose_encoder("")
        body = encode(self.registry)
        openmetrics = content_type.startswith("application/openmetrics-text")
        traffic = self._service_traffic(openmetrics=openmetrics).encode()
        return (body.removesuffix(_END) + traffic + _END if openmetrics else body + traffic), content_type
