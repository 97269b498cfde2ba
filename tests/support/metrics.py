"""All metrics that the agent can expose, and ``docs/metrics.md`` from them.

python -m tests.support.metrics     writes the document anew
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.agent.observe.service_traffic import ServiceTraffic
from ipvs_proxy.agent.reload import Outcome
from ipvs_proxy.kernel.ipvs.table import Activity, Balanced, Connections, Counters, Observation
from ipvs_proxy.kube.reflector import Interruption
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Context, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.tables import Family, Verb, VirtualServer, VirtualServerKey
from ipvs_proxy.settings.values import ServiceMetrics
from tests.support.objects import endpoint, endpoint_slice, service

DOCUMENT = Path(__file__).parents[2] / "docs/metrics.md"
BEGIN, END = "<!-- begin: tables -->\n", "<!-- end: tables -->\n"
#: Labels that come with the format, not from us.
_FORMAT = {"le", "quantile"}
_SOME = Balanced(Counters(1, 1, 1, 1, 1), Counters(1, 1, 1, 1, 1))
_GROUPS = {
    "kubeproxy_": "As kube-proxy's",
    "ipvs_proxy_service_": "Traffic of Services (`--service-metrics=all` and `endpoints`)",
    "ipvs_proxy_endpoint": "Traffic of the busiest endpoints (`--service-metrics=endpoints`)",
    "ipvs_proxy_": "Our own",
}


class Balancing:
    """A kernel that has what is desired, each virtual and real server with a little traffic."""

    def __init__(self, virtual_servers: Mapping[VirtualServerKey, VirtualServer]) -> None:
        self._virtual_servers = virtual_servers

    def read_counters(self) -> dict[VirtualServerKey, Counters]:
        return dict.fromkeys(self._virtual_servers, _SOME.total)

    def observe(self, key: VirtualServerKey) -> Observation:
        server = self._virtual_servers[key]
        found = {
            real: Activity(settings, Connections(1, 0, 0), _SOME) for real, settings in server.real_servers.items()
        }
        return Observation(server, _SOME, found)

    def close(self) -> None:
        """Nothing is open."""


def exposed() -> str:
    """What the agent exposes once everything has happened to it, as each labelled metric appears with its first use."""
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
    metrics.configuration_read(Outcome.APPLIED)
    metrics.malformed_request("healthz")
    metrics.connection_displaced("healthz", "connections")
    metrics.heard("Service")
    metrics.interrupted("Service", Interruption.SILENT)
    metrics.watch("watch_failing_seconds", lambda: 1, resource="Service")
    for state in ("serving", "draining"):
        metrics.watch("real_servers", lambda: 1, state=state)
    endpoints = [endpoint_slice(endpoint("10.244.0.1"))]
    desired.replace(ServiceName("ns", "web"), plan_service(service("web"), endpoints, Context("node"), Marks()))
    return metrics.render("")[0].decode()


def families() -> list[Metric]:
    """Return them parsed."""
    return list(text_string_to_metric_families(exposed()))


def tables() -> str:
    """Return one table of Markdown for each group."""
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


def current() -> str:
    """Return the document with the tables that follow from the code."""
    text = DOCUMENT.read_text()
    return text.partition(BEGIN)[0] + BEGIN + tables() + END + text.partition(END)[2]


if __name__ == "__main__":
    DOCUMENT.write_text(current())
