"""What one packet filter finds of the other: of an earlier agent, or of kube-proxy, whose IPVS mode has our names.

A start with another packet filter than before is a takeover: the members are handed over at once, as they say which
virtual servers are ours, what is leaving and who has which mark. The old rules serve until the new ones are there, as
those of kube-proxy's other modes do, and then rules and sets go.

iptables' variant nf_tables is read and removed over netlink, so that neither programs nor CAP_NET_RAW are needed; only
for the legacy variant its programs are.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Final

from ipvs_proxy.kernel.filter.backend import counted
from ipvs_proxy.kernel.filter.ipset.names import definitions as ipset_definitions
from ipvs_proxy.kernel.filter.ipset.table import Sets as Ipsets
from ipvs_proxy.kernel.filter.ipset.table import describe_error
from ipvs_proxy.kernel.filter.iptables.chains import Chain
from ipvs_proxy.kernel.filter.iptables.iptables_mode import is_of_iptables_mode
from ipvs_proxy.kernel.filter.iptables.programs import LEGACY, Iptables, has_legacy_tables, installed_variants
from ipvs_proxy.kernel.filter.iptables.removal import Removal, is_ours, is_ours_beside_iptables_mode, removal
from ipvs_proxy.kernel.filter.iptables.saved import parse
from ipvs_proxy.kernel.filter.nftables.iptables_chains import read_chains, remove_chains
from ipvs_proxy.kernel.filter.nftables.names import TABLE_NAME, definitions
from ipvs_proxy.kernel.filter.nftables.sets import Sets
from ipvs_proxy.kernel.filter.nftables.tables import delete_own_table, has_own_table
from ipvs_proxy.netlink.errors import MissingPiece, Unusable
from ipvs_proxy.plan.tables import Family, Role, SetEntry

Members = dict[Role, set[SetEntry]]

#: Seconds before each attempt to destroy sets: the kernel forgets deleted rules, which refer to them, a moment later.
_PAUSES: Final = (0.0, 0.05, 0.1, 0.2, 0.4)


def find_table() -> list[str]:
    """Say what iptables and ipset find of nftables."""
    return [f"the nftables table {TABLE_NAME}"] if has_own_table() else []


def read_table() -> Members:
    """Read the members of our table by role; none if there is no table."""
    if not has_own_table():
        return {}
    with closing(Sets(definitions())) as sets:
        return sets.read()


def remove_table() -> None:
    """Remove our table.

    Raises:
        OSError: if the kernel refuses.

    """
    if has_own_table():
        delete_own_table()


def count_sets() -> int:
    """Return how many ipsets there are with our names, which are those of kube-proxy's IPVS mode."""
    try:
        with closing(Ipsets(ipset_definitions())) as sets:
            return len(sets.present())
    except MissingPiece:
        return 0


def has_chains() -> bool:
    """Return whether iptables' variant nf_tables has chains of ours or of kube-proxy."""
    goes = chosen(beside_kube_proxy=False)
    return any(goes(chain.table, chain.name) for chain in read_chains())


def chosen(*, beside_kube_proxy: bool) -> Callable[[str, str], bool]:
    """Return what tells which chains of iptables go: ours, and kube-proxy's unless they are in use."""

    def goes(table: str, name: str) -> bool:
        chain = Chain(table, name)
        if beside_kube_proxy:
            return is_ours_beside_iptables_mode(chain)
        return is_ours(chain) or is_of_iptables_mode(chain)

    return goes


def find_iptables(*, beside_kube_proxy: bool) -> list[str]:
    """Say what nftables finds of iptables and ipset, a line for each kind."""
    goes = chosen(beside_kube_proxy=beside_kube_proxy)
    chains = Counter(dict.fromkeys(Family, 0))
    chains.update(chain.family for chain in read_chains() if goes(chain.table, chain.name))
    with suppress(Unusable):
        for _, family, found in _find_legacy(goes):
            chains[family] += found.chains
    findings = [
        f"{family.label}: {counted(number, 'chain')} of iptables" for family, number in chains.items() if number
    ]
    sets = count_sets()
    return [*findings, counted(sets, "ipset")] if sets else findings


def read_ipsets() -> Members:
    """Read the members of our ipsets by role; none if the kernel has no ipset."""
    try:
        with closing(Ipsets(ipset_definitions())) as sets:
            return sets.read()
    except MissingPiece:
        return {}


def remove_iptables(*, beside_kube_proxy: bool) -> None:
    """Remove the chains and then the sets. A chain that a rule of somebody else leads to stays, empty.

    Raises:
        OSError: if something could not be removed; all else has been.

    """
    goes = chosen(beside_kube_proxy=beside_kube_proxy)
    for family in Family:
        remove_chains(family, goes)
    problems: list[str] = []
    try:
        for variant, family, found in _find_legacy(goes):
            variant.restore(family, found.text)
    except Unusable as error:
        problems.append(str(error))
    problems += _destroy_sets()
    if problems:
        raise OSError("; ".join(problems))


def _find_legacy(goes: Callable[[str, str], bool]) -> Iterator[tuple[Iptables, Family, Removal]]:
    """Return what goes of the legacy variant in each family, if anything does.

    Raises:
        Unusable: if there is such a variant, and its programs are missing or do not run.

    """
    if not has_legacy_tables():
        return
    for variant in installed_variants():
        for family in Family if variant.backend == LEGACY else ():
            found = removal(parse(variant.save(family)), lambda chain: goes(*chain))
            if found.text:
                yield variant, family, found


def _destroy_sets() -> list[str]:
    """Destroy our ipsets; say which could not be, and why."""
    try:
        sets = Ipsets(ipset_definitions())
    except MissingPiece:
        return []
    with closing(sets):
        names = sets.present()
        failed: dict[str, int] = {}
        for pause in _PAUSES:
            time.sleep(pause)
            codes = sets.destroy(names)
            failed = {name: code for name, code in zip(names, codes, strict=True) if code}
            names = list(failed)
            if not failed:
                break
    return [f"the set {name}: {describe_error(code)}" for name, code in failed.items()]
