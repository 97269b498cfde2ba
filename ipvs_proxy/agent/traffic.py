"""What each Service balances, from the kernel's own counters: read when somebody scrapes, in the thread that renders.

One dump gives the counters of all virtual servers; real servers are not asked. Several virtual servers of a Service can
have the same labels (one for each family, one for each address of a load balancer, one that a packet mark leads to):
their traffic is added up. The kernel counts from when it added a virtual server, so what is exposed are sums of
increases: they do not fall when one of several virtual servers goes or is made anew. What went between two scrapes is
lost with it. A Service that is gone is not exposed any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import add
from typing import Final, NamedTuple

import structlog

from ipvs_proxy.kernel.errors import Unusable
from ipvs_proxy.kernel.ipvs import Counters
from ipvs_proxy.plan import sets
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import ServiceName
from ipvs_proxy.plan.tables import SetEntry, VirtualServerKey, family_of

log = structlog.get_logger(__name__)

_CONNECTIONS: Final = "ipvs_proxy_service_connections"
_PACKETS: Final = "ipvs_proxy_service_packets"
#: Name and help of each metric. The kernel's counters are up to two seconds old.
_METRICS: Final = {
    _CONNECTIONS: "Connections that a Service's virtual servers have balanced",
    _PACKETS: "Packets of a Service's connections, to its endpoints (in) and back (out)",
    "ipvs_proxy_service_bytes": "Bytes of a Service's connections, to its endpoints (in) and back (out)",
}
#: The sets that tell how a virtual server is reached; what is in none of them is a node port.
_KINDS: Final = (
    (sets.CLUSTER_IP, "ClusterIP"),
    (sets.LOAD_BALANCER, "LoadBalancer"),
    (sets.EXTERNAL_IP, "ExternalIP"),
    (sets.EXTERNAL_IP_LOCAL, "ExternalIP"),
)
_NODE_PORT: Final = "NodePort"
_NOTHING: Final = Counters(0, 0, 0, 0, 0)


class Labels(NamedTuple):
    """Whose traffic it is, and how it was reached."""

    namespace: str
    service: str
    port: str
    kind: str

    @property
    def text(self) -> str:
        """The labels as they are exposed, without braces."""
        return (
            f'namespace="{_escaped(self.namespace)}",service="{_escaped(self.service)}",'
            f'port="{self.port}",kind="{self.kind}"'
        )


class ServiceTraffic:
    """The metrics of each Service; ``enabled`` turns them on and off."""

    def __init__(
        self, desired: DesiredTables, read: Callable[[], Mapping[VirtualServerKey, Counters]], *, enabled: bool
    ) -> None:
        """Take the desired tables, which say whose a virtual server is, and what reads the kernel's counters."""
        self.enabled = enabled
        self._desired = desired
        self._read = read
        self._last: dict[VirtualServerKey, Counters] = {}
        self._sums: dict[Labels, Counters] = {}

    def expose(self, *, openmetrics: bool) -> str:
        """Read the counters; give the metrics as text, none if they are off or cannot be read.

        The two formats are Prometheus' 0.0.4 and OpenMetrics 1.0, without its end mark. Written here and not by the
        library, which took 1.2 s for 10,000 Services, where this takes 0.1 s.
        """
        if not self.enabled:
            return ""
        try:
            found = self._read()
        except (OSError, ValueError, Unusable) as error:
            log.warning("service_traffic_not_read", error=str(error))
            return ""
        self._add_up(found)
        series = [(labels.text, sums) for labels, sums in self._sums.items()]
        lines: list[str] = []
        for name, text in _METRICS.items():
            described = name if openmetrics else f"{name}_total"
            lines += [f"# HELP {described} {text}\n", f"# TYPE {described} counter\n"]
            if name == _CONNECTIONS:
                lines += [f"{name}_total{{{labels}}} {sums.connections}\n" for labels, sums in series]
            elif name == _PACKETS:
                lines += [_both(name, labels, sums.packets_in, sums.packets_out) for labels, sums in series]
            else:
                lines += [_both(name, labels, sums.bytes_in, sums.bytes_out) for labels, sums in series]
        return "".join(lines)

    def _add_up(self, found: Mapping[VirtualServerKey, Counters]) -> None:
        """Add what each virtual server has balanced since the last time to the sum of its labels."""
        # Copies, each made in one step: the event loop goes on changing the tables.
        owners, servers = self._desired.owners.copy(), self._desired.virtual_servers.copy()
        stand_ins = {server.internal: key for key, server in servers.items() if server.internal is not None}
        sums: dict[Labels, Counters] = {}
        last: dict[VirtualServerKey, Counters] = {}
        for key, counters in found.items():
            owner = owners.get(key)
            if owner is None:
                continue
            labels = self._labels(stand_ins.get(key, key), owner)
            before = self._last.get(key, _NOTHING)
            if any(now < then for now, then in zip(counters, before, strict=True)):
                before = _NOTHING  # it was made anew
            increase = (now - then for now, then in zip(counters, before, strict=True))
            total = sums.get(labels) or self._sums.get(labels, _NOTHING)
            sums[labels] = Counters(*map(add, total, increase))
            last[key] = counters
        self._sums, self._last = sums, last

    def _labels(self, key: VirtualServerKey, owner: ServiceName) -> Labels:
        entry, names = SetEntry(*key[:3]), sets.names(family_of(key.address))
        members = self._desired.entries
        kind = next((kind for base, kind in _KINDS if (names[base], entry) in members), _NODE_PORT)
        return Labels(owner.namespace, owner.name, str(key.port), kind)


def _both(name: str, labels: str, incoming: int, outgoing: int) -> str:
    """Give the lines of both directions."""
    return f'{name}_total{{{labels},direction="in"}} {incoming}\n{name}_total{{{labels},direction="out"}} {outgoing}\n'


def _escaped(value: str) -> str:
    """Write a label's value as both formats want it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
