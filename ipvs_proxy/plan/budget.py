"""What one Service may ask of a node, so that no single object keeps the agent from its work for all others.

Whoever may create Services decides on the products: ports by addresses, by source ranges, by endpoints. A hundred
external IPs at a thousand ports are a hundred thousand virtual servers in 30 KB of text. The bounds are far above what
real Services have. Beyond them, ports are not served at addresses outside the cluster, which is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ipvs_proxy.kube.objects import EndpointSlice, Service

#: Virtual servers of one Service, in both families. Planning each takes some 10 microseconds.
MAX_VIRTUAL_SERVERS: Final = 5_000
#: Real servers of all virtual servers of one Service.
MAX_REAL_SERVERS: Final = 500_000
#: Members of the sets of source ranges: ranges by ports by load balancer addresses.
MAX_RANGE_MEMBERS: Final = 5_000
#: Endpoints on this node by ports: a node has some hundred pods.
MAX_LOCAL_MEMBERS: Final = 20_000
#: Endpoints by ports that are read of one Service's EndpointSlices in one family.
MAX_ENDPOINT_PORTS: Final = 500_000

#: Steps of a plan that take some 10 milliseconds; a step reads or looks at one thing.
_MANY_STEPS: Final = 5_000


def takes_long(service: Service, slices: Sequence[EndpointSlice]) -> bool:
    """Return whether planning a Service may take longer than others should wait for it."""
    spec = service.spec
    listed = len(spec.external_ips or ()) + len(service.status.load_balancer.ingress or ())
    listed += len(spec.load_balancer_source_ranges or ())
    steps = (1 + len(spec.ports or ())) * (5 + listed)
    for piece in slices:
        steps += (1 + len(piece.endpoints or ())) * (1 + len(piece.ports or ()))
    return steps > _MANY_STEPS


class Budget:
    """What is left for a Service while its ports are planned; each port's cluster IP has its room set aside.

    ``left_out`` counts the ports, in each family, for which there was no room or not enough.
    """

    __slots__ = ("_inside", "_local", "_outside", "_range_members", "_real_servers", "left_out")

    def __init__(self, ports: int) -> None:
        self._inside = min(ports, MAX_VIRTUAL_SERVERS)
        self._outside = MAX_VIRTUAL_SERVERS - self._inside
        self._real_servers = MAX_REAL_SERVERS
        self._range_members = MAX_RANGE_MEMBERS
        self._local = MAX_LOCAL_MEMBERS
        self.left_out = 0

    @property
    def is_spent(self) -> bool:
        """Whether there is no room left outside the cluster."""
        return self._outside <= 0

    def take_inside(self, real_servers: int) -> bool:
        """Take room for the virtual server at a cluster IP; return whether there was enough."""
        if not self._inside or real_servers > self._real_servers:
            self.left_out += 1
            return False
        self._inside -= 1
        self._real_servers -= real_servers
        return True

    def take_outside(self, virtual_servers: int, real_servers: int, range_members: int) -> bool:
        """Take room for the virtual servers of a port outside the cluster, all or none of them.

        ``real_servers`` and ``range_members`` are those of all of them. Where one port has found no room, none that
        comes later finds any: which ones are served does not depend on how much each of them wants.
        """
        left = (
            self._outside - virtual_servers,
            self._real_servers - real_servers,
            self._range_members - range_members,
        )
        if min(left) < 0:
            self._outside = 0
            self.left_out += 1
            return False
        self._outside, self._real_servers, self._range_members = left
        return True

    def take_local(self, members: int) -> bool:
        """Take room for a port's local endpoints, which may be their own clients; return whether there was enough."""
        if members > self._local:
            self.left_out += 1
            return False
        self._local -= members
        return True
