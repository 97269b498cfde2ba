"""Keys of the objects in the kernel's tables: which of them may have to change, or are about to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ipvs_proxy.plan.tables import (
    AddressOperation,
    Operation,
    RealServerKey,
    RealServerOperation,
    Role,
    SetEntry,
    SetEntryOperation,
    VirtualServerKey,
    VirtualServerOperation,
)


@dataclass(slots=True)
class TableKeys:
    """Keys of table objects that may have to change, whatever the change is.

    A key too many costs a comparison, a key too few is an error that stays. ``only`` has, for virtual servers of which
    that is known, the real servers that may have to change: all others are as they should be.
    """

    virtual_servers: set[VirtualServerKey] = field(default_factory=set)
    addresses: set[bytes] = field(default_factory=set)
    entries: set[tuple[Role, SetEntry]] = field(default_factory=set)
    only: dict[VirtualServerKey, frozenset[RealServerKey]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.virtual_servers or self.addresses or self.entries)

    def add(self, other: TableKeys) -> None:
        """Add the keys of another one; a virtual server stays in ``only`` if both know its real servers."""
        if self.only or other.only:
            for key in other.virtual_servers & self.virtual_servers:
                mine, theirs = self.only.pop(key, None), other.only.get(key)
                if mine is not None and theirs is not None:
                    self.only[key] = mine | theirs
            for key in other.only.keys() - self.virtual_servers:
                self.only[key] = other.only[key]
        self.virtual_servers |= other.virtual_servers
        self.addresses |= other.addresses
        self.entries |= other.entries


def keys_of(operations: Iterable[Operation]) -> TableKeys:
    """Return the keys that operations are about: to look at them again after a failure."""
    touched = TableKeys()
    for operation in operations:
        match operation:
            case RealServerOperation(_, key, _, _):
                touched.virtual_servers.add(key)
            case VirtualServerOperation(_, server):
                touched.virtual_servers.add(server.key)
            case AddressOperation(_, address):
                touched.addresses.add(address)
            case SetEntryOperation(_, role, entry):
                touched.entries.add((role, entry))
    return touched
