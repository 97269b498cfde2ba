"""What each Service balances, from the kernel's own counters: read when somebody scrapes, in the thread that renders.

One dump gives the counters of all virtual servers. Several virtual servers of a Service can
have the same labels (one for each family, one for each address of a load balancer, one that a packet mark leads to):
their traffic is added up. The kernel counts from when it added a virtual server, so what is exposed are sums of
increases: they do not fall when one of several virtual servers goes or is made anew. What went between two scrapes is
lost with it. A Service that is gone is not exposed any more.

Endpoints cost one dump for each virtual server and five series for each endpoint, so only a limited number is exposed:
those of the virtual servers with the most connections. They have the kernel's own counters, one virtual server
and endpoint each, which begin again with the real server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from heapq import nlargest
from operator import add
from typing import Final, NamedTuple, Protocol

import structlog

from ipvs_proxy.kernel.ipvs.records import Counters, Observation
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.plan import roles
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.fragment import ServiceName
from ipvs_proxy.plan.tables import RealServerKey, SetEntry, VirtualServerKey, family_of
from ipvs_proxy.settings.values import ServiceMetrics
from ipvs_proxy.snapshots import snapshot

log = structlog.get_logger(__name__)

#: Endpoints that are exposed at most, in 5,000 series.
ENDPOINTS: Final = 1_000
#: The help of connections, packets and bytes. The kernel's counters are up to two seconds old.
_OF_SERVICES: Final = (
    "Connections that a Service's virtual servers have balanced",
    "Packets of a Service's connections, to its endpoints (in) and back (out)",
    "Bytes of a Service's connections, to its endpoints (in) and back (out)",
)
_OF_ENDPOINTS: Final = (
    "Connections that a virtual server gave to an endpoint",
    "Packets that a virtual server sent to an endpoint (in), and those back (out)",
    "Bytes that a virtual server sent to an endpoint (in), and those back (out)",
)
_NOT_EXPOSED: Final = "ipvs_proxy_endpoints_not_exposed"
#: The roles that tell how a virtual server is reached; what has none of them is a node port.
_KINDS: Final = (
    (roles.CLUSTER_IP, "ClusterIP"),
    (roles.LOAD_BALANCER, "LoadBalancer"),
    (roles.EXTERNAL_IP, "ExternalIP"),
    (roles.EXTERNAL_IP_LOCAL, "ExternalIP"),
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


class Table(Protocol):
    """What is read of the kernel; see ``kernel.ipvs.table.Ipvs``."""

    def read_counters(self) -> Mapping[VirtualServerKey, Counters]:
        """Read what each virtual server has balanced."""

    def observe(self, key: VirtualServerKey) -> Observation | None:
        """Read one virtual server with what each real server does."""

    def close(self) -> None:
        """Stop reading."""


class _Endpoint(NamedTuple):
    """What one virtual server gave to one endpoint."""

    labels: str
    counters: Counters


class ServiceTraffic:
    """The metrics of each Service; ``detail`` says whose are wanted."""

    def __init__(
        self, desired: DesiredTables, open_table: Callable[[], Table] = Ipvs, *, detail: ServiceMetrics
    ) -> None:
        """Take the desired tables, which say whose a virtual server is, and what opens the kernel's."""
        self.detail = detail
        self._desired = desired
        self._open_table = open_table
        self._last: dict[VirtualServerKey, Counters] = {}
        self._sums: dict[Labels, Counters] = {}

    def expose(self, *, openmetrics: bool) -> str:
        """Read the counters; return the metrics as text, none if they are off or cannot be read.

        The two formats are Prometheus' 0.0.4 and OpenMetrics 1.0, without its end mark. Written here and not by the
        library, which took 1.2 s for 10,000 Services, where this takes 0.1 s.
        """
        detail = self.detail
        if detail is ServiceMetrics.OFF:
            return ""
        endpoints: list[_Endpoint] = []
        left_out = 0
        try:
            with closing(self._open_table()) as table:
                found = table.read_counters()
                if detail is ServiceMetrics.ENDPOINTS:
                    endpoints, left_out = self._endpoints(table, found)
        except (OSError, ValueError, Unusable) as error:
            log.warning("service_traffic_not_read", error=str(error))
            return ""
        self._add_up(found)
        series = [(labels.text, sums) for labels, sums in self._sums.items()]
        lines = [*_described("ipvs_proxy_service", _OF_SERVICES, series, openmetrics=openmetrics)]
        if detail is ServiceMetrics.ENDPOINTS:
            lines += _described("ipvs_proxy_endpoint", _OF_ENDPOINTS, endpoints, openmetrics=openmetrics)
            text = "Endpoints whose traffic is not exposed, as those of busier virtual servers are"
            lines.append(f"# HELP {_NOT_EXPOSED} {text}\n# TYPE {_NOT_EXPOSED} gauge\n{_NOT_EXPOSED} {left_out}\n")
        return "".join(lines)

    def _endpoints(self, table: Table, found: Mapping[VirtualServerKey, Counters]) -> tuple[list[_Endpoint], int]:
        """Return the endpoints of the virtual servers with most connections, and how many there was no room for."""
        owners, servers = snapshot(self._desired.owners), snapshot(self._desired.virtual_servers)
        ours = {key: len(servers[key].real_servers) for key in found if key in owners and key in servers}
        exposed: list[_Endpoint] = []
        # Not sorted: that would keep Python from the event loop for as long as it takes.
        for key in nlargest(ENDPOINTS, filter(ours.get, ours), key=lambda key: found[key].connections):
            room = ENDPOINTS - len(exposed)
            if not room:
                break
            observed = table.observe(key)
            if observed is None:
                ours[key] = 0  # it has just gone
                continue
            counted = {server: activity.traffic.total for server, activity in observed.real_servers.items()}
            busiest = nlargest(room, counted, key=lambda server: counted[server].connections)
            ours[key] = len(counted) - len(busiest)
            exposed += [_Endpoint(_endpoint_labels(owners[key], key, server), counted[server]) for server in busiest]
        left_out = sum(ours.values())
        return exposed, left_out

    def _add_up(self, found: Mapping[VirtualServerKey, Counters]) -> None:
        """Add what each virtual server has balanced since the last time to the sum of its labels."""
        owners, servers = snapshot(self._desired.owners), snapshot(self._desired.virtual_servers)
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
        entry, family = SetEntry(*key[:3]), family_of(key.address)
        members = self._desired.entries
        kind = next((kind for role, kind in _KINDS if (role[family], entry) in members), _NODE_PORT)
        return Labels(owner.namespace, owner.name, str(key.port), kind)


def _endpoint_labels(owner: ServiceName, key: VirtualServerKey, server: RealServerKey) -> str:
    return (
        f'namespace="{_escaped(owner.namespace)}",service="{_escaped(owner.name)}",'
        f'virtual_server="{key}",endpoint="{server}"'
    )


def _described(
    prefix: str, helps: tuple[str, str, str], series: Sequence[tuple[str, Counters]], *, openmetrics: bool
) -> Iterator[str]:
    """Return the lines of three metrics: connections, packets and bytes, the latter two in both directions."""
    for quantity, text in zip(("connections", "packets", "bytes"), helps, strict=True):
        name = f"{prefix}_{quantity}"
        described = name if openmetrics else f"{name}_total"
        yield f"# HELP {described} {text}\n# TYPE {described} counter\n"
        if quantity == "connections":
            yield from [f"{name}_total{{{labels}}} {sums.connections}\n" for labels, sums in series]
        elif quantity == "packets":
            yield from [_both(name, labels, sums.packets_in, sums.packets_out) for labels, sums in series]
        else:
            yield from [_both(name, labels, sums.bytes_in, sums.bytes_out) for labels, sums in series]


def _both(name: str, labels: str, incoming: int, outgoing: int) -> str:
    """Return the lines of both directions."""
    return f'{name}_total{{{labels},direction="in"}} {incoming}\n{name}_total{{{labels},direction="out"}} {outgoing}\n'


def _escaped(value: str) -> str:
    """Write a label's value as both formats want it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
