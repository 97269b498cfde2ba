"""Who answers at every kind of address, and which source address it sees; and whether that is so, with real packets.

``TABLE`` is the documentation: a row for each kind of address, traffic policy and place of the endpoints; a column for
each place that a client can be. ``pod2`` runs on the node, ``pod4`` on the peer.

=========  ===========================================================================================================
``a b``    these answer, and see the client's own address
``a b*``   these answer, and see an address of the node
dropped    no answer
refused    the connection is refused at once; only the node's own over IPv6 with its second SYN, a second later: IPVS is
           before the rules there, and its ICMP answer comes while the socket is busy connecting
=========  ===========================================================================================================

The policy ``Local`` is the external one, or for a cluster IP the internal one. Clients in the cluster reach all
endpoints of an external address whatever its policy (Kubernetes documentation, "Traffic policies"); ``pod`` keeps its
address then, while the node itself and a pod that is not certainly the node's cannot, as the answer has to come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from lab import manifests
from lab.manifests import PORTS, endpoint
from lab.topology import ADDRESSES, FAMILIES, Topology
from tests.ring.silence import Outcome, Request, outcomes, silence

CLIENTS = {"pod": "pod1", "node": "node", "remote pod": "pod4", "other node": "peer", "outside": "client"}
ENDPOINTS = {"here+there": ("pod2", "pod4"), "there": ("pod4",), "none": ()}

TABLE = """
kind          policy   endpoints   | pod         | node        | remote pod  | other node  | outside
ClusterIP     Cluster  here+there  | pod2 pod4   | pod2 pod4*  |             | pod2 pod4*  | pod2 pod4*
ClusterIP     Cluster  there       | pod4        | pod4*       |             | pod4*       | pod4*
ClusterIP     Cluster  none        | refused     | refused     | refused     | refused     | refused
ClusterIP     Local    here+there  | pod2        | pod2*       | pod2        | pod2*       | pod2*
ClusterIP     Local    there       | dropped     | dropped     | dropped     | dropped     | dropped
ClusterIP     Local    none        | refused     | refused     | refused     | refused     | refused
NodePort      Cluster  here+there  | pod2 pod4*  | pod2 pod4*  | pod2 pod4*  | pod2 pod4*  | pod2 pod4*
NodePort      Cluster  there       | pod4*       | pod4*       | pod4*       | pod4*       | pod4*
NodePort      Cluster  none        | refused     | refused     | refused     | refused     | refused
NodePort      Local    here+there  | pod2 pod4   | pod2 pod4*  | pod2 pod4*  | pod2        | pod2
NodePort      Local    there       | pod4        | pod4*       | pod4*       | dropped     | dropped
NodePort      Local    none        | refused     | refused     | refused     | refused     | refused
LoadBalancer  Cluster  here+there  | pod2 pod4*  | pod2 pod4*  | pod2 pod4*  | pod2 pod4*  | pod2 pod4*
LoadBalancer  Cluster  there       | pod4*       | pod4*       | pod4*       | pod4*       | pod4*
LoadBalancer  Cluster  none        | refused     | refused     | refused     | refused     | refused
LoadBalancer  Local    here+there  | pod2 pod4   | pod2 pod4*  | pod2 pod4*  | pod2        | pod2
LoadBalancer  Local    there       | pod4        | pod4*       | pod4*       | dropped     | dropped
LoadBalancer  Local    none        | refused     | refused     | refused     | refused     | refused
ExternalIP    Cluster  here+there  | pod2 pod4*  | pod2 pod4*  | pod2 pod4*  | pod2 pod4*  | pod2 pod4*
ExternalIP    Cluster  there       | pod4*       | pod4*       | pod4*       | pod4*       | pod4*
ExternalIP    Cluster  none        | refused     | refused     | refused     | refused     | refused
ExternalIP    Local    here+there  | pod2 pod4   | pod2 pod4*  | pod2 pod4*  | pod2        | pod2
ExternalIP    Local    there       | pod4        | pod4*       | pod4*       | dropped     | dropped
ExternalIP    Local    none        | refused     | refused     | refused     | refused     | refused
"""


class Row(NamedTuple):
    """What clients meet at one kind of address; ``number`` makes its addresses and ports its own."""

    number: int
    kind: str
    policy: str
    endpoints: str
    cells: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.policy}-{self.endpoints.replace('+', '-')}".lower()

    def address(self, family: str) -> str:
        """The address that clients use."""
        if self.kind == "NodePort":
            return ADDRESSES["node"][family]
        network = {
            "ClusterIP": {"IPv4": "10.96.1", "IPv6": "fd00:10:96::1"},
            "LoadBalancer": {"IPv4": "203.0.112", "IPv6": "fd00:1b:"},
            "ExternalIP": {"IPv4": "203.0.114", "IPv6": "fd00:e:"},
        }[self.kind][family]
        return f"{network}.{self.number}" if family == "IPv4" else f"{network}:{self.number:x}"

    def cluster_ip(self, family: str) -> str:
        return {"IPv4": f"10.96.1.{self.number}", "IPv6": f"fd00:10:96::1:{self.number:x}"}[family]

    def port(self, protocol: str) -> int:
        if self.kind != "NodePort":
            return PORTS[protocol]
        return 30000 + self.number

    def manifest(self) -> dict:
        addresses = [self.address(family) for family in FAMILIES]
        fields: dict = {"type": {"ExternalIP": "ClusterIP"}.get(self.kind, self.kind)}
        if self.kind == "ClusterIP":
            fields["internalTrafficPolicy"] = self.policy
        else:
            fields["externalTrafficPolicy"] = self.policy
        if self.kind == "ExternalIP":
            fields["externalIPs"] = addresses
        return manifests.service(
            self.name,
            *(self.cluster_ip(family) for family in FAMILIES),
            protocols=("TCP", "UDP", "SCTP"),
            node_ports=dict.fromkeys(PORTS, 30000 + self.number) if self.kind == "NodePort" else None,
            ingress=addresses if self.kind == "LoadBalancer" else (),
            **fields,
        )


def parse_table() -> list[Row]:
    heading, *lines = TABLE.strip().splitlines()
    columns = [column.strip() for column in heading.split("|")[1:]]
    rows = []
    for number, line in enumerate(lines, 10):
        first, *cells = line.split("|")
        rows.append(Row(number, *first.split(), dict(zip(columns, map(str.strip, cells), strict=True))))
    return rows


ROWS = parse_table()


def write_services(directory: Path) -> None:
    manifests.write(directory, "node", manifests.node())
    for row in ROWS:
        endpoints = [
            endpoint(ADDRESSES[pod][family], "peer" if pod == "pod4" else "node")
            for pod in ENDPOINTS[row.endpoints]
            for family in FAMILIES
        ]
        slices = manifests.slices(row.name, endpoints, ("TCP", "UDP", "SCTP"))
        manifests.write(directory, row.name, row.manifest(), *slices)


def request(row: Row, column: str, family: str) -> Request:
    return Request(CLIENTS[column], row.address(family), row.port("TCP"))


def check(net: Topology, row: Row, column: str, family: str, protocol: str = "TCP") -> None:
    """Have one client ask, who is to be answered or refused at once, and compare with its cell."""
    place, cell = CLIENTS[column], row.cells[column]
    address, port = row.address(family), row.port(protocol)
    if cell == "refused":
        with pytest.raises(OSError) as caught:
            # A SYN is sent again after a second.
            net.ask(place, address, port, protocol, timeout=0.9)
        assert not isinstance(caught.value, TimeoutError), "not refused at once"
        return
    pods = cell.rstrip("*").split()
    answers = [net.ask(place, address, port, protocol) for _ in range(2 * len(pods))]
    names = {name for name, _ in answers}
    assert names == set(pods), f"{names} answered"
    expected = ADDRESSES["node" if cell.endswith("*") else place][family]
    # A pod that answers itself sees the node, or it would answer past it.
    sources = {source for name, source in answers if name != place}
    assert sources <= {expected}, f"they saw {sources}"


def problems(
    net: Topology,
    row: Row,
    family: str,
    protocol: str = "TCP",
    columns: Iterable[str] = tuple(CLIENTS),
    refused_late: Mapping[Request, Outcome] | None = None,
) -> list[str]:
    """Have the clients ask; say where the answer is not that of the table.

    ``refused_late`` is what has become of requests that were made beforehand.
    """
    cells = {column: row.cells[column] for column in columns if row.cells[column]}
    dropped = [request(row, column, family) for column, cell in cells.items() if cell == "dropped"]
    assert not dropped or protocol == "TCP", "silence is only told of TCP"
    seen = {**(refused_late or {}), **(outcomes(net, dropped, silence(net)) if dropped else {})}
    found = []
    for column, cell in cells.items():
        where = f"{row.name} {family} {protocol}, {column}: {cell!r}, but"
        asked = request(row, column, family)
        if protocol == "TCP" and asked in seen:
            if seen[asked] != ("silent" if cell == "dropped" else cell):
                found.append(f"{where} {seen[asked]}")
            continue
        try:
            check(net, row, column, family, protocol)
        except (AssertionError, OSError, pytest.fail.Exception) as error:
            found.append(f"{where} {error!r}")
    return found
