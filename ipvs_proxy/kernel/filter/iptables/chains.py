"""Our chains, and the jumps that lead to them: kube-proxy's of its IPVS mode, and our own (``IPVS-PROXY-...``).

There are two layouts. ``ALONE`` is for a node without kube-proxy, where we take over what its IPVS mode has left. In
``BESIDE``, kube-proxy runs in iptables or nftables mode, and some of its chains have the names of that mode, in the
same tables; it empties and deletes them as it likes. So all chains are our own there. Nor may its rules come first:
its chain of node ports looks at the port of whatever goes to an address of the node, and those on our link are.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

NAT: Final = "nat"
FILTER: Final = "filter"
MANGLE: Final = "mangle"
RAW: Final = "raw"
#: In the order in which they are written: what takes marks off before what gives them.
TABLES: Final = (RAW, NAT, FILTER, MANGLE)

SERVICES: Final = "KUBE-SERVICES"
POSTROUTING: Final = "KUBE-POSTROUTING"
NODE_PORT: Final = "KUBE-NODE-PORT"
LOAD_BALANCER: Final = "KUBE-LOAD-BALANCER"
MARK_MASQUERADE: Final = "KUBE-MARK-MASQ"
FORWARD: Final = "KUBE-FORWARD"
FIREWALL: Final = "KUBE-PROXY-FIREWALL"
SOURCE_RANGES: Final = "KUBE-SOURCE-RANGES-FIREWALL"
IPVS_FILTER: Final = "KUBE-IPVS-FILTER"
IPVS_OUT_FILTER: Final = "KUBE-IPVS-OUT-FILTER"
OWN_INPUT: Final = "IPVS-PROXY-INPUT"
OWN_OUTPUT: Final = "IPVS-PROXY-OUTPUT"
OWN_POSTROUTING: Final = "IPVS-PROXY-POSTROUTING"
OWN_SOURCES: Final = "IPVS-PROXY-SOURCES"


class Chain(NamedTuple):
    """A chain of a table."""

    table: str
    name: str


class Jump(NamedTuple):
    """A rule that leads from a chain that is not ours to one that is."""

    table: str
    source: str
    target: str
    comment: str

    @property
    def text(self) -> str:
        """The rule as ``iptables-save`` prints it."""
        return f'-A {self.source} -m comment --comment "{self.comment}" -j {self.target}'


CHAINS: Final = (
    Chain(RAW, OWN_OUTPUT),
    *(Chain(NAT, name) for name in (SERVICES, POSTROUTING, NODE_PORT, LOAD_BALANCER, MARK_MASQUERADE)),
    *(Chain(NAT, name) for name in (OWN_INPUT, OWN_OUTPUT)),
    *(Chain(FILTER, name) for name in (FORWARD, NODE_PORT, FIREWALL, SOURCE_RANGES, IPVS_FILTER, IPVS_OUT_FILTER)),
    *(Chain(MANGLE, name) for name in (OWN_INPUT, OWN_OUTPUT, OWN_POSTROUTING, OWN_SOURCES)),
)
#: Chains of earlier versions: they are emptied, and no built-in chain leads there any more.
FORMER_CHAINS: Final = (Chain(MANGLE, "IPVS-PROXY-PREROUTING"),)
#: What the chains of kube-proxy's IPVS mode are called beside another mode of it.
_NAMES_BESIDE: Final = MappingProxyType(
    {
        SERVICES: "IPVS-PROXY-SERVICES",
        POSTROUTING: "IPVS-PROXY-MASQUERADE",
        NODE_PORT: "IPVS-PROXY-NODE-PORT",
        LOAD_BALANCER: "IPVS-PROXY-LOAD-BALANCER",
        MARK_MASQUERADE: "IPVS-PROXY-MARK-MASQ",
        FORWARD: "IPVS-PROXY-FORWARD",
        FIREWALL: "IPVS-PROXY-FIREWALL",
        SOURCE_RANGES: "IPVS-PROXY-SOURCE-RANGES",
        IPVS_FILTER: "IPVS-PROXY-IPVS-FILTER",
        IPVS_OUT_FILTER: "IPVS-PROXY-IPVS-OUT-FILTER",
    }
)
SERVICES_BESIDE: Final = _NAMES_BESIDE[SERVICES]
IPVS_FILTER_BESIDE: Final = _NAMES_BESIDE[IPVS_FILTER]

#: In the order in which they are inserted, each before all rules of its chain.
JUMPS: Final = (
    Jump(RAW, "OUTPUT", OWN_OUTPUT, "ipvs-proxy marks after IPVS"),
    Jump(NAT, "OUTPUT", SERVICES, "kubernetes service portals"),
    Jump(NAT, "PREROUTING", SERVICES, "kubernetes service portals"),
    Jump(NAT, "POSTROUTING", POSTROUTING, "kubernetes postrouting rules"),
    Jump(NAT, "INPUT", OWN_INPUT, "ipvs-proxy marks after IPVS"),
    Jump(NAT, "OUTPUT", OWN_OUTPUT, "ipvs-proxy clients on the node"),
    Jump(FILTER, "FORWARD", FORWARD, "kubernetes forwarding rules"),
    Jump(FILTER, "INPUT", NODE_PORT, "kubernetes health check rules"),
    Jump(FILTER, "INPUT", FIREWALL, "kube-proxy firewall rules"),
    Jump(FILTER, "FORWARD", FIREWALL, "kube-proxy firewall rules"),
    Jump(FILTER, "INPUT", IPVS_FILTER, "kubernetes ipvs access filter"),
    Jump(FILTER, "OUTPUT", IPVS_OUT_FILTER, "kubernetes ipvs access filter"),
    Jump(MANGLE, "INPUT", OWN_INPUT, "ipvs-proxy clients in the cluster"),
    Jump(MANGLE, "OUTPUT", OWN_OUTPUT, "ipvs-proxy clients on the node"),
    Jump(MANGLE, "POSTROUTING", OWN_POSTROUTING, "ipvs-proxy marks after IPVS"),
)


class Layout(NamedTuple):
    """Which chains and jumps are ours.

    ``former`` are chains of earlier versions and of the other layout, which are emptied. ``names`` has those chains
    that are called otherwise than in ``ALONE``. With ``goes_first`` our jumps have to come before all that lead to
    chains of kube-proxy.
    """

    chains: tuple[Chain, ...]
    jumps: tuple[Jump, ...]
    former: tuple[Chain, ...]
    names: Mapping[str, str] = MappingProxyType({})
    goes_first: bool = False


def _beside(jump: Jump) -> Jump:
    comment = jump.comment.removeprefix("kubernetes ").removeprefix("kube-proxy ").removeprefix("ipvs-proxy ")
    return jump._replace(target=_NAMES_BESIDE.get(jump.target, jump.target), comment=f"ipvs-proxy {comment}")


CHAINS_BESIDE: Final = tuple(Chain(chain.table, _NAMES_BESIDE.get(chain.name, chain.name)) for chain in CHAINS)
ALONE: Final = Layout(CHAINS, JUMPS, (*FORMER_CHAINS, *(chain for chain in CHAINS_BESIDE if chain not in CHAINS)))
BESIDE: Final = Layout(CHAINS_BESIDE, tuple(map(_beside, JUMPS)), FORMER_CHAINS, _NAMES_BESIDE, goes_first=True)
