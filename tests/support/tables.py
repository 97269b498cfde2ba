"""All keys of both tables: the slow way to find differences, as an oracle for the fast ones."""

from __future__ import annotations

from ipvs_proxy.plan.desired import DesiredTables, Touched
from ipvs_proxy.plan.difference import KernelTables


def everything(desired: DesiredTables, actual: KernelTables) -> Touched:
    """Return every key of both sides."""
    return Touched(
        desired.virtual_servers.keys() | actual.virtual_servers.keys(),
        desired.addresses.keys() | actual.addresses,
        desired.entries.keys() | {(name, entry) for name, entries in actual.entries.items() for entry in entries},
    )
