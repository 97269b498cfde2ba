"""The sets and the map of our table: a name, a layout and a comment for each role, in both families.

All are in one table of the family ``inet``. A set of IPv6 has the name of IPv4's with ``-6`` behind it. The comments
are what ``nft list table inet ipvs-proxy`` shows.

This is the only place that knows which set of nf_tables a role has (``plan.roles``). A mark needs no roles for its bits
here: the map gives it whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from ipvs_proxy.plan import roles
from ipvs_proxy.plan.roles import Roles
from ipvs_proxy.plan.tables import Family, Role

TABLE: Final = "ipvs-proxy"
#: How nft and its users call the table.
TABLE_NAME: Final = f"inet {TABLE}"


class Layout(NamedTuple):
    """What the keys of a set consist of, in the words of ``nft``, where an address is that of the set's family.

    ``networks``: the last part is a network, and there is a set for each length of a prefix that is in use. One set of
    intervals (``nft_set_pipapo``) could hold all of them; but it takes no network inside another, and a change of one
    among 10,000 takes it 70 ms, and 10 s to forget them all, where sets without intervals take what they always take.
    ``marks``: each key is mapped to a packet mark.
    """

    parts: tuple[str, ...]
    networks: bool = False
    marks: bool = False


ADDRESS: Final = "address"
_PORT: Final = Layout(("inet_service",))
_ADDRESS: Final = Layout((ADDRESS,))
_ADDRESS_PORT: Final = Layout((ADDRESS, "inet_proto", "inet_service"))
_ADDRESS_PORT_SOURCE: Final = Layout((*_ADDRESS_PORT.parts, ADDRESS))
_ADDRESS_PORT_NETWORK: Final = _ADDRESS_PORT_SOURCE._replace(networks=True)
_ADDRESS_PORT_MARK: Final = _ADDRESS_PORT._replace(marks=True)


class SetDefinition(NamedTuple):
    """The set or map of a role: its name in our table, its layout, and a comment for whoever lists the table."""

    role: Role
    name: str
    layout: Layout
    comment: str

    @property
    def expression(self) -> str:
        """What the set is asked for, as rules say it.

        ``nft`` reads the type from it (``typeof``). Where nft 1.1 has made a set by the name of a type (``type``), nft
        1.0.6 crashes as soon as it lists it, and with it whoever else calls it on the host.
        """
        ip = "ip" if self.role.family is Family.IPV4 else "ip6"
        words = {ADDRESS: f"{ip} daddr", "inet_proto": "meta l4proto", "inet_service": "th dport"}
        first, *others = self.layout.parts
        key = " . ".join([words[first], *(f"{ip} saddr" if part is ADDRESS else words[part] for part in others)])
        return f"{key} : meta mark" if self.layout.marks else key


_ROWS: Final[tuple[tuple[Roles, Layout, str], ...]] = (
    (roles.LOOP_BACK, _ADDRESS_PORT_SOURCE, "endpoints on this node, each with itself as the client (hairpin)"),
    (roles.CLUSTER_IP, _ADDRESS_PORT, "cluster IPs"),
    (roles.EXTERNAL_IP, _ADDRESS_PORT, "external IPs"),
    (roles.EXTERNAL_IP_LOCAL, _ADDRESS_PORT, "external IPs with the policy Local"),
    (roles.LOAD_BALANCER, _ADDRESS_PORT, "load balancer addresses"),
    (roles.LOAD_BALANCER_LOCAL, _ADDRESS_PORT, "those of them with the policy Local"),
    (roles.LOAD_BALANCER_FW, _ADDRESS_PORT, "those of them that only source ranges may reach"),
    (roles.LOAD_BALANCER_SOURCE_CIDR, _ADDRESS_PORT_NETWORK, "the source ranges of this length"),
    (roles.LOAD_BALANCER_SOURCE_IP, _ADDRESS_PORT_SOURCE, "source ranges that allow this node itself"),
    (roles.NODE_PORT_TCP, _PORT, "node ports of TCP"),
    (roles.NODE_PORT_LOCAL_TCP, _PORT, "those of them with the policy Local"),
    (roles.NODE_PORT_UDP, _PORT, "node ports of UDP"),
    (roles.NODE_PORT_LOCAL_UDP, _PORT, "those of them with the policy Local"),
    (roles.NODE_PORT_SCTP, _ADDRESS_PORT, "node ports of SCTP"),
    (roles.NODE_PORT_LOCAL_SCTP, _ADDRESS_PORT, "those of them with the policy Local"),
    (roles.HEALTH_CHECK_NODE_PORT, _PORT, "ports of this node that answer health checks of load balancers"),
    (roles.IPVS_IPS, _ADDRESS, "the addresses on kube-ipvs0"),
    (roles.INTERNAL, _ADDRESS_PORT_MARK, "policy Local: the mark that leads clients in the cluster to all endpoints"),
    (roles.NO_LOCAL, _ADDRESS_PORT, "policy Local without an endpoint on this node"),
    (roles.NO_ENDPOINT, _ADDRESS_PORT, "Services without any endpoint"),
    (roles.LEAVING, _ADDRESS_PORT, "deleted Services whose connections are ending"),
)


def _definitions(family: Family) -> list[SetDefinition]:
    suffix = "" if family is Family.IPV4 else "-6"
    return [
        SetDefinition(both[family], f"{both[family].purpose}{suffix}", layout, comment)
        for both, layout, comment in _ROWS
    ]


_BY_ROLE: Final = {definition.role: definition for family in Family for definition in _definitions(family)}


def definitions(families: Iterable[Family] = Family) -> list[SetDefinition]:
    """Return the sets of all roles in some families, in the order in which they are made."""
    wanted = frozenset(families)
    return [definition for role, definition in _BY_ROLE.items() if role.family in wanted]


def set_name(definition: SetDefinition, length: int | None) -> str:
    """Return the name of a set of a role: that for a length of a prefix is called ``load-balancer-source-cidr/24``."""
    return definition.name if length is None else f"{definition.name}/{length}"


def length_in(name: str, definition: SetDefinition) -> int | None:
    """Return for which length of a prefix a set of a role is; ``None`` if it is no such set."""
    base, _, length = name.partition("/")
    longest = 32 if definition.role.family is Family.IPV4 else 128
    # Whoever made it: only what we would write ourselves, and no number that fills the memory.
    known = base == definition.name and length in map(str, range(longest + 1))
    return int(length) if known else None


def name_of(role: Role) -> str:
    """Return the name of a role's set in our table, such as ``cluster-ip-6``; of a bit of a mark, what it is for."""
    found = _BY_ROLE.get(role)
    return role.purpose if found is None else found.name
