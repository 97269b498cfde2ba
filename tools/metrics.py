"""All metrics that the agent can expose, and the tables in ``docs/metrics.md``."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.agent.observe.service_traffic import ServiceTraffic
from ipvs_proxy.kernel.ipvs.records import Activity, Balanced, Connections, Counters, Observation
from ipvs_proxy.kube.decode import convert_object
from ipvs_proxy.kube.objects import EndpointSlice, Service
from ipvs_proxy.kube.resources import ENDPOINT_SLICES, SERVICES
from ipvs_proxy.kube.sinks import Interruption
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Context, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.tables import Family, Verb, VirtualServer, VirtualServerKey
from ipvs_proxy.settings.live import Reload
from ipvs_proxy.settings.values import ServiceMetrics
from lab import manifests
from tools.documents import DOCS, Texts, filled

DOCUMENT = DOCS / "metrics.md"
#: Labels that come with the format, not from the agent.
_FORMAT = {"le", "quantile"}
_SOME = Balanced(Counters(1, 1, 1, 1, 1), Counters(1, 1, 1, 1, 1))
_GROUPS = {
    "kubeproxy_": "As kube-proxy's",
    "ipvs_proxy_service_": "Traffic of Services (`--service-metrics=all` and `endpoints`)",
    "ipvs_proxy_endpoint": "Traffic of the busiest endpoints (`--service-metrics=endpoints`)",
    "ipvs_proxy_": "Our own",
}


class Balancing:
    """A kernel that holds what is desired, with a little traffic at each virtual and real server."""

    def __init__(self, virtual_servers: Mapping[VirtualServerKey, VirtualServer]) -> None:
        self._virtual_servers = virtual_servers

    def read_counters(self) -> dict[VirtualServerKey, Counters]:
        """Return a little traffic for each virtual server."""
        return dict.fromkeys(self._virtual_servers, _SOME.total)

    def observe(self, key: VirtualServerKey) -> Observation:
        """Return a virtual server as it is desired, with a little traffic everywhere."""
        server = self._virtual_servers[key]
        found = {
            real: Activity(settings, Connections(1, 0, 0), _SOME) for real, settings in server.real_servers.items()
        }
        return Observation(server, _SOME, found)

    def close(self) -> None:
        """Nothing is open."""


def exposed() -> str:
    """Return what an agent exposes to which everything has happened: a labelled metric appears with its first use."""
    desired = DesiredTables()
    traffic = ServiceTraffic(desired, lambda: Balancing(desired.virtual_servers), detail=ServiceMetrics.ENDPOINTS)
    metrics = Metrics((Family.IPV4, Family.IPV6), service_traffic=traffic.expose)
    metrics.changed("Service", 1, pending=1)
    metrics.changed("EndpointSlice", 1, pending=1)
    metrics.skipped("Service")
    metrics.queued()
    metrics.synced(seconds=0.1, complete=True)
    metrics.programmed(seconds_since_trigger=1.0)
    metrics.no_local_endpoints({("internal", Family.IPV4): 1})
    metrics.left_out("reason")
    metrics.conflicts(1)
    metrics.cleaned(Family.IPV4, 1, 0.1)
    for succeeded in (True, False):
        metrics.operations("ipvs", Verb.ADD, 1, succeeded)
    metrics.repaired("ipvs", 1)
    metrics.drain_finished("idle")
    for name in ("events_dropped", "kernel_writes", "log_lines_dropped"):
        metrics.watch_total(name, lambda: 1)
    metrics.loop_delay(0.1)
    for path in ("healthz", "livez"):
        for code in (200, 503):
            metrics.health_answered(path, code)
    metrics.configuration_read(Reload.APPLIED)
    metrics.malformed_request("healthz")
    metrics.connection_displaced("healthz", "connections")
    metrics.heard("Service")
    metrics.interrupted("Service", Interruption.SILENT)
    metrics.watch("watch_failing_seconds", lambda: 1, resource="Service")
    for state in ("serving", "draining"):
        metrics.watch("real_servers", lambda: 1, state=state)
    metrics.watch_schedulers(lambda: {"rr": 1})
    service = convert_object(manifests.service("web", "10.96.0.10"), SERVICES)
    (slice_,) = manifests.slices("web", [manifests.endpoint("10.244.0.1")])
    endpoint_slice = convert_object(slice_, ENDPOINT_SLICES)
    assert isinstance(service, Service)
    assert isinstance(endpoint_slice, EndpointSlice)
    desired.replace(ServiceName("ring", "web"), plan_service(service, [endpoint_slice], Context("node"), Marks()))
    return metrics.render("")[0].decode()


def families() -> list[Metric]:
    """Return all metrics that the agent can expose."""
    return list(text_string_to_metric_families(exposed()))


def tables() -> str:
    """Return a Markdown table for each group of metrics."""
    lines = []
    rest = [family for family in families() if family.name.startswith(tuple(_GROUPS))]
    for prefix, title in _GROUPS.items():
        members = [family for family in rest if family.name.startswith(prefix)]
        rest = [family for family in rest if family not in members]
        lines += [f"### {title}", "", "| metric | type | labels | meaning |", "|---|---|---|---|"]
        for family in sorted(members, key=lambda family: family.name):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = dict.fromkeys(
                label for sample in family.samples for label in sample.labels if label not in _FORMAT
            )
            shown = ", ".join(f"`{label}`" for label in labels)
            lines.append(f"| `{name}` | {family.type} | {shown} | {family.documentation} |")
        lines.append("")
    return "\n".join(lines)


def written() -> Texts:
    """Return the document."""
    return {DOCUMENT: filled(DOCUMENT.read_text(), [("tables", tables())])}
