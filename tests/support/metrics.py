"""All metrics that the agent can expose, and ``docs/metrics.md`` from them.

python -m tests.support.metrics     writes the document anew
"""

from __future__ import annotations

from pathlib import Path

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from ipvs_proxy.agent.metrics import Metrics
from ipvs_proxy.agent.reload import Outcome
from ipvs_proxy.agent.traffic import ServiceTraffic
from ipvs_proxy.kernel.ipvs import Counters
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import Context, ServiceName
from ipvs_proxy.plan.marks import Marks
from ipvs_proxy.plan.services import plan_service
from ipvs_proxy.plan.tables import Family, Verb
from tests.support.objects import service

DOCUMENT = Path(__file__).parents[2] / "docs/metrics.md"
BEGIN, END = "<!-- begin: tables -->\n", "<!-- end: tables -->\n"
#: Labels that come with the format, not from us.
_FORMAT = {"le", "quantile"}
_GROUPS = {
    "kubeproxy_": "As kube-proxy's",
    "ipvs_proxy_service_": "Traffic of Services (`--service-metrics=all`)",
    "ipvs_proxy_": "Our own",
}


def exposed() -> str:
    """What the agent exposes once everything has happened to it, as each labelled metric appears with its first use."""
    metrics = Metrics((Family.IPV4, Family.IPV6))
    metrics.changed("Service", pending=1)
    metrics.changed("EndpointSlice", pending=1)
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
    for name in ("events_dropped", "kernel_writes"):
        metrics.watch_total(name, lambda: 1)
    metrics.loop_delay(0.1)
    for path in ("healthz", "livez"):
        for code in (200, 503):
            metrics.health_answered(path, code)
    metrics.configuration_read(Outcome.APPLIED)
    desired = DesiredTables()
    desired.replace(ServiceName("ns", "web"), plan_service(service("web"), [], Context("node"), Marks()))
    counters = dict.fromkeys(desired.virtual_servers, Counters(1, 1, 1, 1, 1))
    metrics.service_traffic = ServiceTraffic(desired, lambda: counters, enabled=True).expose
    return metrics.render("")[0].decode()


def families() -> list[Metric]:
    """Give them parsed."""
    return list(text_string_to_metric_families(exposed()))


def tables() -> str:
    """Give one table of Markdown for each group."""
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
    """Give the document with the tables that follow from the code."""
    text = DOCUMENT.read_text()
    return text.partition(BEGIN)[0] + BEGIN + tables() + END + text.partition(END)[2]


if __name__ == "__main__":
    DOCUMENT.write_text(current())
