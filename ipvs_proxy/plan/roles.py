"""What the members of the packet filter's sets are for.

The plan says that an address and a port are a cluster IP, say, or that no endpoint of theirs is on this node. Each such
statement is a member (``SetEntry``) in a role; a virtual server may be named in several. What a role means for packets
(masquerade, drop, mark) is in the rules of the packet filter, which keeps the members of each role in each family as a
set of its own. How such a set is called, and of which type it is, only the packet filter knows.

The first 17 roles are those of kube-proxy's IPVS mode, the others are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ipvs_proxy.plan.tables import Family, Protocol, Role

#: One role in both families.
Roles = Mapping[Family, Role]


def _roles(purpose: str) -> Roles:
    return {family: Role(purpose, family) for family in Family}


#: Local endpoints with themselves as the source: their connections to their own Service are masqueraded (hairpin).
LOOP_BACK: Final = _roles("loop-back")
CLUSTER_IP: Final = _roles("cluster-ip")
EXTERNAL_IP: Final = _roles("external-ip")
EXTERNAL_IP_LOCAL: Final = _roles("external-ip-local")
LOAD_BALANCER: Final = _roles("load-balancer")
#: Load balancer addresses and ports that only the source ranges below may reach.
LOAD_BALANCER_FW: Final = _roles("load-balancer-fw")
#: Those of the load balancer addresses and ports that have the policy Local.
LOAD_BALANCER_LOCAL: Final = _roles("load-balancer-local")
LOAD_BALANCER_SOURCE_IP: Final = _roles("load-balancer-source-ip")
LOAD_BALANCER_SOURCE_CIDR: Final = _roles("load-balancer-source-cidr")
NODE_PORT_TCP: Final = _roles("node-port-tcp")
NODE_PORT_LOCAL_TCP: Final = _roles("node-port-local-tcp")
NODE_PORT_UDP: Final = _roles("node-port-udp")
NODE_PORT_LOCAL_UDP: Final = _roles("node-port-local-udp")
NODE_PORT_SCTP: Final = _roles("node-port-sctp")
NODE_PORT_LOCAL_SCTP: Final = _roles("node-port-local-sctp")
#: The node's own ports that answer health checks of load balancers.
HEALTH_CHECK_NODE_PORT: Final = _roles("health-check-node-port")
#: The addresses on our link.
IPVS_IPS: Final = _roles("ipvs-ips")

#: Addresses and ports where clients in the cluster get another virtual server, and its mark (see ``marks``).
INTERNAL: Final = _roles("internal")
#: The same addresses and ports again, once for each bit of the mark's number: where a packet filter cannot give a mark
#: whole to the node's own packets (``PacketFilter.spells_marks``), they get it bit by bit.
MARK_BITS: Final = {1 << bit: _roles(f"mark-{1 << bit:#x}") for bit in range(2, 13)}
#: Addresses and ports with the policy Local where clients outside the cluster find no endpoint on this node.
NO_LOCAL: Final = _roles("no-local")
#: Addresses and ports of Services without any endpoint.
NO_ENDPOINT: Final = _roles("no-endpoint")
#: Addresses and ports that no Service wants any more while their virtual servers drain (see ``draining``).
LEAVING: Final = _roles("leaving")

#: The role of each protocol's node ports, and that of those with the policy Local.
NODE_PORTS: Final = {
    Protocol.TCP: NODE_PORT_TCP,
    Protocol.UDP: NODE_PORT_UDP,
    Protocol.SCTP: NODE_PORT_SCTP,
}
LOCAL_NODE_PORTS: Final = {
    Protocol.TCP: NODE_PORT_LOCAL_TCP,
    Protocol.UDP: NODE_PORT_LOCAL_UDP,
    Protocol.SCTP: NODE_PORT_LOCAL_SCTP,
}
