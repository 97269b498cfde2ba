"""Reads all rules of iptables on a node, those of others with ours, in whichever variant they are.

Where our rules are in nftables, connections to Services do not come to the nat table of iptables: our chain decides
about them before it. A host without iptables' programs has none of its rules.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Final

from ipvs_proxy.kernel.filter.iptables.programs import (
    NF_TABLES,
    MissingNfTables,
    has_legacy_tables,
    installed_variants,
)
from ipvs_proxy.kernel.filter.nftables.tables import has_own_table
from ipvs_proxy.netlink.errors import MissingPiece
from ipvs_proxy.plan.tables import Family

_NAT: Final = re.compile(r"^\*nat\n.*?^COMMIT\n", re.MULTILINE | re.DOTALL)


def read_all_rules(family: Family) -> dict[str, str]:
    """Read the rules of a family in all variants, as ``iptables-save`` prints them, by the variant's name.

    Raises:
        Unusable: if they cannot be read.

    """
    try:
        variants = installed_variants()
    except MissingPiece:
        return {}
    found: dict[str, str] = {}
    for variant in variants:
        if variant.backend == NF_TABLES or has_legacy_tables():
            with suppress(MissingNfTables):
                found[variant.backend] = variant.save(family)
    return {name: _NAT.sub("", saved) for name, saved in found.items()} if has_own_table() else found
