"""All keys of both tables: the long way to what differs, as an oracle for the short ones."""

from __future__ import annotations

from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.table_keys import TableKeys


def everything(desired: DesiredTables, actual: KernelTables) -> TableKeys:
    """Return every key of both sides."""
    return TableKeys(
        desired.virtual_servers.keys() | actual.virtual_servers.keys(),
        desired.addresses.keys() | actual.addresses,
        desired.entries.keys() | {(name, entry) for name, entries in actual.entries.items() for entry in entries},
    )
