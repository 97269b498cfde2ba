"""Reads all rules of iptables on a node, those of others with ours, in whichever variant they are."""

from __future__ import annotations

from contextlib import suppress

from ipvs_proxy.kernel.filter.iptables.programs import (
    NF_TABLES,
    MissingNfTables,
    has_legacy_tables,
    installed_variants,
)
from ipvs_proxy.plan.tables import Family


def read_all_rules(family: Family) -> dict[str, str]:
    """Read the rules of a family in all variants, as ``iptables-save`` prints them, by the variant's name.

    Raises:
        Unusable: if they cannot be read.

    """
    found: dict[str, str] = {}
    for variant in installed_variants():
        if variant.backend == NF_TABLES or has_legacy_tables():
            with suppress(MissingNfTables):
                found[variant.backend] = variant.save(family)
    return found
