"""Beside a kube-proxy that stays: what must not be there of its IPVS mode, and whether what there is of ours is so."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from ipvs_proxy.kernel.filter.iptables.chains import NAT, SERVICES_BESIDE, Chain
from ipvs_proxy.kernel.filter.iptables.iptables_mode import chains_of
from ipvs_proxy.kernel.filter.iptables.programs import LEGACY, Iptables, has_legacy_tables, installed_variants
from ipvs_proxy.kernel.filter.iptables.removal import are_beside_kube_proxy, is_of_ipvs_mode
from ipvs_proxy.kernel.filter.iptables.saved import Saved, SavedTable, parse
from ipvs_proxy.kernel.filter.nftables.iptables_chains import read_chains
from ipvs_proxy.kernel.filter.nftables.tables import has_kube_proxy_table, has_own_table
from ipvs_proxy.kernel.filter.predecessors import count_sets
from ipvs_proxy.netlink.errors import MissingPiece, Unusable
from ipvs_proxy.plan.tables import Family


def require_other_mode(iptables: Iptables | None, families: Iterable[Family]) -> list[str]:
    """Make sure that nothing of kube-proxy's IPVS mode is there, so that ours can be beside one in another mode.

    Without ``iptables``, what the kernel has of its variant nf_tables is looked at. Returns what an operator should
    know of that kube-proxy.

    Raises:
        Unusable: if there is, or if rules cannot be read.

    """
    has_chains = has_tables = False
    for family in families:
        saved = read_names(family) if iptables is None else parse(iptables.save(family))
        has_chains, has_tables = has_chains or bool(chains_of(saved)), has_tables or has_kube_proxy_table(family)
        found = [name for table in saved for name in saved[table].chains if is_of_ipvs_mode(Chain(table, name))]
        if found:
            raise Unusable(
                f"the {family.label} rules have the chain {found[0]} of kube-proxy's IPVS mode, or of an agent without "
                "--service-proxy-name, whose Services and sets have the same names as ours",
                "have kube-proxy run in iptables or nftables mode, and clean the node before it starts "
                "(ipvs-proxy cleanup)",
            )
    if has_tables:
        return ["in nftables mode it clears IPVS away at each of its starts, with all open connections"]
    return [] if has_chains else ["it has no rules of its iptables or nftables mode here"]


def read_names(family: Family) -> Saved:
    """Read the names of all chains of iptables' variant nf_tables in a family, without their rules and its programs."""
    tables: dict[str, SavedTable] = {}
    for chain in read_chains():
        if chain.family is family:
            table = tables.setdefault(chain.table, SavedTable())
            table.chains[chain.name] = []
            if chain.is_built_in:
                table.policies[chain.name] = ""
    return tables


def are_rules_beside_kube_proxy() -> bool:
    """Return whether there are rules of ours as they are beside a kube-proxy in another mode, which may then run.

    A table of nftables has no name that tells; it is so where nothing of IPVS mode is there.

    Raises:
        Unusable: if rules cannot be read.

    """
    chains = [Chain(chain.table, chain.name) for chain in read_chains()]
    if Chain(NAT, SERVICES_BESIDE) in chains or _has_legacy_beside():
        return True
    return has_own_table() and not count_sets() and not any(map(is_of_ipvs_mode, chains))


def _has_legacy_beside() -> bool:
    if not has_legacy_tables():
        return False
    with suppress(MissingPiece):
        variants = [variant for variant in installed_variants() if variant.backend == LEGACY]
        return any(are_beside_kube_proxy(parse(variant.save(family))) for variant in variants for family in Family)
    return False
