"""Tables of nf_tables as wholes: ours, and those of kube-proxy's nftables mode, of which each family has one.

They are found and deleted over netlink, as the host may have no ``nft``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from errno import ENOENT
from typing import Final

from ipvs_proxy.kernel.filter.nftables import codec
from ipvs_proxy.kernel.filter.nftables.names import TABLE
from ipvs_proxy.kernel.filter.nftables.render import NAT_PRIORITIES
from ipvs_proxy.netlink.socket import NETLINK_NETFILTER, NetlinkSocket
from ipvs_proxy.netlink.wire import Request
from ipvs_proxy.plan.tables import Family

KUBE_PROXY: Final = "kube-proxy"
#: The families of IP, and their hooks, by the kernel's numbers (linux/netfilter.h).
_FAMILIES: Final = {1: "inet", 2: "ip", 10: "ip6"}
_HOOKS: Final = ("prerouting", "input", "forward", "output", "postrouting")
#: NFPROTO_INET of linux/netfilter.h: both families in one table.
_INET: Final = 1


def has_kube_proxy_table(family: Family) -> bool:
    """Return whether a family has the table of nftables mode."""
    return _has_table(family, KUBE_PROXY)


def delete_kube_proxy_table(family: Family) -> None:
    """Delete the table of nftables mode.

    Raises:
        OSError: if the kernel refuses.

    """
    _delete([codec.encode_delete_table(family, KUBE_PROXY)], f"the nftables table {KUBE_PROXY} of {family.label}")


def has_own_table() -> bool:
    """Return whether there is a table of ours."""
    return _has_table(_INET, TABLE)


def delete_own_table() -> None:
    """Delete our table with all that is in it.

    Raises:
        OSError: if the kernel refuses.

    """
    _delete([codec.encode_delete_table(_INET, TABLE)], f"the nftables table {TABLE}")


def delete_own_chains() -> int:
    """Delete the chains of our table, whose sets stay; return how many there were.

    Raises:
        OSError: if the kernel refuses.

    """
    with NetlinkSocket(NETLINK_NETFILTER) as socket:
        chains = [chain.name for chain in map(codec.decode_chain, socket.dump(codec.GET_CHAINS)) if _is_ours(chain)]
    if chains:
        deletions = [codec.DELETE_RULES, *map(codec.encode_delete_chain, chains)]
        _delete(deletions, f"the chains of the nftables table {TABLE}")
    return len(chains)


def chains_before_ours(chains: Iterable[codec.Chain]) -> list[str]:
    """Say which chains of others decide before ours do, a line for each.

    A chain of the type nat that is asked before ours may lead connections to Services elsewhere; one whose policy is to
    drop has to let them in.
    """
    return [
        f"table {_FAMILIES[chain.family]} {chain.table}: chain {chain.name} "
        f"({chain.type} hook {_HOOKS[chain.hook]} priority {chain.priority}{', policy drop' * chain.drops})"
        for chain in chains
        if chain.hook is not None
        and chain.hook < len(_HOOKS)
        and chain.family in _FAMILIES
        and not _is_ours(chain)
        and (chain.drops or (chain.type == "nat" and chain.priority < NAT_PRIORITIES.get(_HOOKS[chain.hook], -400)))
    ]


def read_chains_before_ours() -> list[str]:
    """Read which chains of others decide before ours do, a line for each.

    Raises:
        OSError: if the kernel refuses.

    """
    with NetlinkSocket(NETLINK_NETFILTER) as socket:
        return chains_before_ours(map(codec.decode_chain, socket.dump(codec.GET_CHAINS)))


def _is_ours(chain: codec.Chain) -> bool:
    return (chain.family, chain.table) == (_INET, TABLE)


def _has_table(family: int, name: str) -> bool:
    with NetlinkSocket(NETLINK_NETFILTER) as socket:
        try:
            socket.ask(codec.encode_get_table(family, name))
        except OSError:  # no such table, or no nf_tables at all
            return False
    return True


def _delete(requests: list[Request], what: str) -> None:
    with NetlinkSocket(NETLINK_NETFILTER) as socket:
        failures = socket.transact(requests, opening=codec.OPENING[:1], end=codec.END).failures
    for failure in failures.values():
        if failure.error != ENOENT:
            raise OSError(failure.error, f"{what} cannot be deleted: {os.strerror(max(0, failure.error))}")
