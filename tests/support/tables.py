"""A round of the agent on tables, and all keys of both: the long way to what differs, as an oracle for short ones."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import structs

from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.difference import difference
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Operation, RealServer, RealServerKey, VirtualServer, VirtualServerKey


def everything(desired: DesiredTables, actual: KernelTables) -> TableKeys:
    """Return every key of both sides."""
    return TableKeys(
        desired.virtual_servers.keys() | actual.virtual_servers.keys(),
        desired.addresses.keys() | actual.addresses,
        desired.entries.keys() | {(name, entry) for name, entries in actual.entries.items() for entry in entries},
    )


def round_of(desired: DesiredTables, actual: KernelTables, keys: TableKeys) -> list[Operation]:
    """Note what drains and return the operations of a round for these keys."""
    return difference(desired, actual, actual.note_draining(desired, keys))


def hold(
    virtual_servers: dict[VirtualServerKey, VirtualServer],
    key: VirtualServerKey,
    real_servers: Mapping[RealServerKey, RealServer | None],
) -> None:
    """Have a virtual server hold these real servers, too, or not any more if it is ``None``."""
    known = virtual_servers[key]
    changed = {
        one: settings for one, settings in {**known.real_servers, **real_servers}.items() if settings is not None
    }
    virtual_servers[key] = structs.replace(known, real_servers=changed)
