"""The ipsets: kube-proxy's names, types and comments, for both families; and some of our own.

The table is that of kube-proxy's IPVS mode, so that a node can be taken over in place and tools that look at the sets
go on working. IPv6 names start with ``KUBE-6-`` and are cut at 31 characters, as ipset allows no more
(``IPSET_MAXNAMELEN`` of linux/netfilter/ipset/ip_set.h is 32 with the final zero). The names of our own sets start with
``IPVS-PROXY-``, so that nobody takes them for kube-proxy's.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final, NamedTuple

from ipvs_proxy.plan import roles
from ipvs_proxy.plan.roles import Roles
from ipvs_proxy.plan.tables import Family, Role

_LONGEST: Final = 31


class SetType(Enum):
    """The ipset types in use, with the kernel's names."""

    HASH_IP = "hash:ip"
    HASH_IP_PORT = "hash:ip,port"
    HASH_IP_PORT_IP = "hash:ip,port,ip"
    HASH_IP_PORT_NET = "hash:ip,port,net"
    BITMAP_PORT = "bitmap:port"


class SetDefinition(NamedTuple):
    """The ipset of a role: its name (at most 31 characters) and type, and the comment of the rules that refer to it.

    ``marks``: every member has a packet mark (``skbinfo`` in ipset's words).
    """

    role: Role
    name: str
    type: SetType
    comment: str
    marks: bool = False

    @property
    def family(self) -> Family:
        """The family of the members' addresses; a set of ports has one, too, though the kernel keeps none for it."""
        return self.role.family


#: The role, the name without its prefix, the type, and the comment.
_Row = tuple[Roles, str, SetType, str]

_KUBE_PROXY_SETS: Final[tuple[_Row, ...]] = (
    (
        roles.LOOP_BACK,
        "LOOP-BACK",
        SetType.HASH_IP_PORT_IP,
        "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
    ),
    (
        roles.CLUSTER_IP,
        "CLUSTER-IP",
        SetType.HASH_IP_PORT,
        "Kubernetes service cluster ip + port for masquerade purpose",
    ),
    (
        roles.EXTERNAL_IP,
        "EXTERNAL-IP",
        SetType.HASH_IP_PORT,
        "Kubernetes service external ip + port for masquerade and filter purpose",
    ),
    (
        roles.EXTERNAL_IP_LOCAL,
        "EXTERNAL-IP-LOCAL",
        SetType.HASH_IP_PORT,
        "Kubernetes service external ip + port with externalTrafficPolicy=local",
    ),
    (roles.LOAD_BALANCER, "LOAD-BALANCER", SetType.HASH_IP_PORT, "Kubernetes service lb portal"),
    (
        roles.LOAD_BALANCER_FW,
        "LOAD-BALANCER-FW",
        SetType.HASH_IP_PORT,
        "Kubernetes service load balancer ip + port for load balancer with sourceRange",
    ),
    (
        roles.LOAD_BALANCER_LOCAL,
        "LOAD-BALANCER-LOCAL",
        SetType.HASH_IP_PORT,
        "Kubernetes service load balancer ip + port with externalTrafficPolicy=local",
    ),
    (
        roles.LOAD_BALANCER_SOURCE_IP,
        "LOAD-BALANCER-SOURCE-IP",
        SetType.HASH_IP_PORT_IP,
        "Kubernetes service load balancer ip + port + source IP for packet filter purpose",
    ),
    (
        roles.LOAD_BALANCER_SOURCE_CIDR,
        "LOAD-BALANCER-SOURCE-CIDR",
        SetType.HASH_IP_PORT_NET,
        "Kubernetes service load balancer ip + port + source cidr for packet filter purpose",
    ),
    (roles.NODE_PORT_TCP, "NODE-PORT-TCP", SetType.BITMAP_PORT, "Kubernetes nodeport TCP port for masquerade purpose"),
    (
        roles.NODE_PORT_LOCAL_TCP,
        "NODE-PORT-LOCAL-TCP",
        SetType.BITMAP_PORT,
        "Kubernetes nodeport TCP port with externalTrafficPolicy=local",
    ),
    (roles.NODE_PORT_UDP, "NODE-PORT-UDP", SetType.BITMAP_PORT, "Kubernetes nodeport UDP port for masquerade purpose"),
    (
        roles.NODE_PORT_LOCAL_UDP,
        "NODE-PORT-LOCAL-UDP",
        SetType.BITMAP_PORT,
        "Kubernetes nodeport UDP port with externalTrafficPolicy=local",
    ),
    (
        roles.NODE_PORT_SCTP,
        "NODE-PORT-SCTP-HASH",
        SetType.HASH_IP_PORT,
        "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'",
    ),
    (
        roles.NODE_PORT_LOCAL_SCTP,
        "NODE-PORT-LOCAL-SCTP-HASH",
        SetType.HASH_IP_PORT,
        "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'",
    ),
    (roles.HEALTH_CHECK_NODE_PORT, "HEALTH-CHECK-NODE-PORT", SetType.BITMAP_PORT, "Kubernetes health check node port"),
    (roles.IPVS_IPS, "IPVS-IPS", SetType.HASH_IP, "Addresses on the ipvs interface"),
)
_OWN_SETS: Final[tuple[_Row, ...]] = (
    (roles.INTERNAL, "INTERNAL", SetType.HASH_IP_PORT, "local policy, for clients in the cluster"),
    *(
        (role, f"MARK-{bit:#x}", SetType.HASH_IP_PORT, f"local policy, mark {bit:#x}")
        for bit, role in roles.MARK_BITS.items()
    ),
    (roles.NO_LOCAL, "NO-LOCAL", SetType.HASH_IP_PORT, "local policy without local endpoint"),
    (roles.NO_ENDPOINT, "NO-ENDPOINT", SetType.HASH_IP_PORT, "service without endpoint"),
    (roles.LEAVING, "LEAVING", SetType.HASH_IP_PORT, "deleted service that drains"),
)


def _definitions(family: Family) -> list[SetDefinition]:
    prefixes = ("KUBE-", "IPVS-PROXY-") if family is Family.IPV4 else ("KUBE-6-", "IPVS-PROXY-6-")
    return [
        SetDefinition(role[family], f"{prefix}{base}"[:_LONGEST], kind, comment, marks=role is roles.INTERNAL)
        for prefix, rows in zip(prefixes, (_KUBE_PROXY_SETS, _OWN_SETS), strict=True)
        for role, base, kind, comment in rows
    ]


_BY_ROLE: Final = {definition.role: definition for family in Family for definition in _definitions(family)}


def definitions(families: Iterable[Family] = Family) -> list[SetDefinition]:
    """Return the sets of all roles in some families, in the order in which they are made."""
    wanted = frozenset(families)
    return [definition for role, definition in _BY_ROLE.items() if role.family in wanted]


def definition_of(role: Role) -> SetDefinition:
    """Return the set of a role."""
    return _BY_ROLE[role]


def name_of(role: Role) -> str:
    """Return the kernel's name of a role's set, such as ``KUBE-6-CLUSTER-IP`` or ``IPVS-PROXY-INTERNAL``."""
    return _BY_ROLE[role].name
