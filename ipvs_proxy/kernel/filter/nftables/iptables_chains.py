"""The chains of iptables' variant nf_tables, as the kernel has them: found and removed without iptables' programs.

Chains are chosen by their names, as in ``iptables.removal``, and so are the jumps that go with them: rules in built-in
chains that have a comment of a proxy's. A chain that a rule of somebody else leads to stays, empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from errno import ENOENT
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.nftables import codec
from ipvs_proxy.netlink.errors import describe
from ipvs_proxy.netlink.socket import NETLINK_NETFILTER, NetlinkSocket
from ipvs_proxy.netlink.wire import Request
from ipvs_proxy.plan.tables import Family

#: Tables of iptables; nftables proper may have tables of these names, but no chains of ours or kube-proxy's in them.
TABLES: Final = ("raw", "mangle", "nat", "filter")
_COMMENT: Final = re.compile(rb"(kubernetes|kube-proxy|ipvs-proxy) ")
#: Messages in one transaction: some 100 KB.
_AT_ONCE: Final = 1000

#: Whether a chain of a table goes.
Goes = Callable[[str, str], bool]


class ChainName(NamedTuple):
    """A chain of a family's table; ``is_built_in`` if the kernel leads packets to it."""

    family: Family
    table: str
    name: str
    is_built_in: bool


def read_chains() -> list[ChainName]:
    """Read the names of all chains; none if the kernel has no nf_tables."""
    with NetlinkSocket(NETLINK_NETFILTER) as socket:
        try:
            replies = socket.dump(codec.GET_CHAINS)
        except OSError:
            return []
    chains = map(codec.decode_chain, replies)
    families: dict[int, Family] = {family.value: family for family in Family}
    return [
        ChainName(families[chain.family], chain.table, chain.name, chain.hook is not None)
        for chain in chains
        if chain.family in families and chain.table in TABLES
    ]


def remove_chains(family: Family, goes: Goes) -> None:
    """Remove the chains of a family that ``goes`` chooses, and the jumps to them.

    Raises:
        OSError: if the kernel refuses.

    """
    chains = [chain for chain in read_chains() if chain.family is family]
    going = {(chain.table, chain.name) for chain in chains if not chain.is_built_in and goes(chain.table, chain.name)}
    if not going:
        return
    built_in = {(chain.table, chain.name) for chain in chains if chain.is_built_in}
    with NetlinkSocket(NETLINK_NETFILTER) as socket:
        rules = map(codec.decode_rule, socket.dump(codec.encode_get_rules(family)))
        leading = [
            rule for rule in rules if (rule.table, rule.target) in going and (rule.table, rule.chain) not in going
        ]
        jumps = [rule for rule in leading if (rule.table, rule.chain) in built_in and _COMMENT.search(rule.content)]
        kept = {(rule.table, rule.target) for rule in leading if rule not in jumps}
        # First nothing leads to them any more, then they lead nowhere.
        _carry_out(socket, [codec.encode_delete_rules(family, *rule[:3]) for rule in jumps])
        _carry_out(socket, [codec.encode_delete_rules(family, *chain) for chain in sorted(going)])
        _carry_out(socket, [codec.encode_delete_chain_of(family, *chain) for chain in sorted(going - kept)])


def _carry_out(socket: NetlinkSocket, requests: Sequence[Request]) -> None:
    for piece in _pieces(requests):
        failures = socket.transact(piece, opening=codec.OPENING[:1], end=codec.END).failures
        for failure in failures.values():
            if failure.error != ENOENT:
                raise OSError(failure.error, f"chains of iptables cannot be removed: {describe(failure.error)}")


def _pieces(requests: Sequence[Request]) -> Iterable[Sequence[Request]]:
    return (requests[start : start + _AT_ONCE] for start in range(0, len(requests), _AT_ONCE))
