"""The ipsets: kube-proxy's names, types and comments, for both families; and some of our own.

The table is that of kube-proxy's IPVS mode, so that a node can be taken over in place and tools that look at the sets
go on working. IPv6 names start with ``KUBE-6-`` and are cut at 31 characters, as ipset allows no more
(``IPSET_MAXNAMELEN`` of linux/netfilter/ipset/ip_set.h is 32 with the final zero). The names of our own sets start with
``IPVS-PROXY-``, so that nobody takes them for kube-proxy's.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from ipvs_proxy.plan.tables import Family, Protocol, SetDefinition, SetType

LOOP_BACK: Final = "LOOP-BACK"
CLUSTER_IP: Final = "CLUSTER-IP"
EXTERNAL_IP: Final = "EXTERNAL-IP"
EXTERNAL_IP_LOCAL: Final = "EXTERNAL-IP-LOCAL"
LOAD_BALANCER: Final = "LOAD-BALANCER"
LOAD_BALANCER_FW: Final = "LOAD-BALANCER-FW"
LOAD_BALANCER_LOCAL: Final = "LOAD-BALANCER-LOCAL"
LOAD_BALANCER_SOURCE_IP: Final = "LOAD-BALANCER-SOURCE-IP"
LOAD_BALANCER_SOURCE_CIDR: Final = "LOAD-BALANCER-SOURCE-CIDR"
NODE_PORT_TCP: Final = "NODE-PORT-TCP"
NODE_PORT_LOCAL_TCP: Final = "NODE-PORT-LOCAL-TCP"
NODE_PORT_UDP: Final = "NODE-PORT-UDP"
NODE_PORT_LOCAL_UDP: Final = "NODE-PORT-LOCAL-UDP"
NODE_PORT_SCTP: Final = "NODE-PORT-SCTP-HASH"
NODE_PORT_LOCAL_SCTP: Final = "NODE-PORT-LOCAL-SCTP-HASH"
HEALTH_CHECK_NODE_PORT: Final = "HEALTH-CHECK-NODE-PORT"
IPVS_IPS: Final = "IPVS-IPS"

#: Addresses and ports where clients in the cluster get another virtual server, and its mark (see ``marks``).
INTERNAL: Final = "INTERNAL"
#: The same addresses and ports again, once for each bit of the mark's number: the node's own packets get it bit by bit.
MARK_BITS: Final = {1 << bit: f"MARK-{1 << bit:#x}" for bit in range(2, 13)}
#: Addresses and ports with the policy Local where clients outside the cluster find no endpoint on this node.
NO_LOCAL: Final = "NO-LOCAL"
#: Addresses and ports of Services without any endpoint.
NO_ENDPOINT: Final = "NO-ENDPOINT"
#: Addresses and ports that no Service wants any more while their virtual servers drain (see ``leaving``).
LEAVING: Final = "LEAVING"

#: The set of each protocol's node ports, and that of those with the policy Local.
NODE_PORT_SETS: Final = {
    Protocol.TCP: NODE_PORT_TCP,
    Protocol.UDP: NODE_PORT_UDP,
    Protocol.SCTP: NODE_PORT_SCTP,
}
LOCAL_NODE_PORT_SETS: Final = {
    Protocol.TCP: NODE_PORT_LOCAL_TCP,
    Protocol.UDP: NODE_PORT_LOCAL_UDP,
    Protocol.SCTP: NODE_PORT_LOCAL_SCTP,
}

_SETS: Final = (
    (LOOP_BACK, SetType.HASH_IP_PORT_IP, "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose"),
    (CLUSTER_IP, SetType.HASH_IP_PORT, "Kubernetes service cluster ip + port for masquerade purpose"),
    (EXTERNAL_IP, SetType.HASH_IP_PORT, "Kubernetes service external ip + port for masquerade and filter purpose"),
    (EXTERNAL_IP_LOCAL, SetType.HASH_IP_PORT, "Kubernetes service external ip + port with externalTrafficPolicy=local"),
    (LOAD_BALANCER, SetType.HASH_IP_PORT, "Kubernetes service lb portal"),
    (
        LOAD_BALANCER_FW,
        SetType.HASH_IP_PORT,
        "Kubernetes service load balancer ip + port for load balancer with sourceRange",
    ),
    (
        LOAD_BALANCER_LOCAL,
        SetType.HASH_IP_PORT,
        "Kubernetes service load balancer ip + port with externalTrafficPolicy=local",
    ),
    (
        LOAD_BALANCER_SOURCE_IP,
        SetType.HASH_IP_PORT_IP,
        "Kubernetes service load balancer ip + port + source IP for packet filter purpose",
    ),
    (
        LOAD_BALANCER_SOURCE_CIDR,
        SetType.HASH_IP_PORT_NET,
        "Kubernetes service load balancer ip + port + source cidr for packet filter purpose",
    ),
    (NODE_PORT_TCP, SetType.BITMAP_PORT, "Kubernetes nodeport TCP port for masquerade purpose"),
    (NODE_PORT_LOCAL_TCP, SetType.BITMAP_PORT, "Kubernetes nodeport TCP port with externalTrafficPolicy=local"),
    (NODE_PORT_UDP, SetType.BITMAP_PORT, "Kubernetes nodeport UDP port for masquerade purpose"),
    (NODE_PORT_LOCAL_UDP, SetType.BITMAP_PORT, "Kubernetes nodeport UDP port with externalTrafficPolicy=local"),
    (
        NODE_PORT_SCTP,
        SetType.HASH_IP_PORT,
        "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'",
    ),
    (
        NODE_PORT_LOCAL_SCTP,
        SetType.HASH_IP_PORT,
        "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'",
    ),
    (HEALTH_CHECK_NODE_PORT, SetType.BITMAP_PORT, "Kubernetes health check node port"),
    (IPVS_IPS, SetType.HASH_IP, "Addresses on the ipvs interface"),
)
_OWN_SETS: Final = (
    (INTERNAL, SetType.HASH_IP_PORT, "local policy, for clients in the cluster"),
    *((base, SetType.HASH_IP_PORT, f"local policy, mark {bit:#x}") for bit, base in MARK_BITS.items()),
    (NO_LOCAL, SetType.HASH_IP_PORT, "local policy without local endpoint"),
    (NO_ENDPOINT, SetType.HASH_IP_PORT, "service without endpoint"),
    (LEAVING, SetType.HASH_IP_PORT, "deleted service that drains"),
)
_OWN: Final = frozenset(base for base, _, _ in _OWN_SETS)


def set_name(base: str, family: Family) -> str:
    """Return the kernel's name of a set: ``KUBE-CLUSTER-IP``, ``KUBE-6-CLUSTER-IP``, ``IPVS-PROXY-6-INTERNAL``."""
    prefix = "IPVS-PROXY-" if base in _OWN else "KUBE-"
    return f"{prefix}{base}" if family is Family.IPV4 else f"{prefix}6-{base}"[:31]


def definitions(family: Family) -> dict[str, SetDefinition]:
    """Return all sets of one family by the name without its prefix (``CLUSTER-IP``)."""
    return {
        base: SetDefinition(set_name(base, family), kind, family, comment, marks=base == INTERNAL)
        for base, kind, comment in (*_SETS, *_OWN_SETS)
    }


@cache
def names(family: Family) -> dict[str, str]:
    """Return the kernel's names of all sets of one family by the name without its prefix."""
    return {base: definition.name for base, definition in definitions(family).items()}
