"""The difference between what is desired and what the kernel holds, as operations in a safe order.

The order within one round: what makes a connection work comes first and the address that attracts connections last. A
local endpoint is in the hairpin set before it is a real server, because the first packet decides whether a connection
is masqueraded; a virtual server is there before the filter chains let its port pass. For removals the members of the
sets go first, so that the filter chains refuse new connections to an address (and never let them reach a port of the
node itself) while the virtual server and the address go. A virtual server goes before its address, so what a crash
leaves in between is either known as ours by its address or attracts no connections.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from ipvs_proxy.plan.desired import DesiredTables, Touched
from ipvs_proxy.plan.sets import IPVS_IPS, LOOP_BACK, set_name
from ipvs_proxy.plan.tables import (
    DRAINING,
    AddressOperation,
    Family,
    IpvsOperation,
    Operation,
    Protocol,
    RealServerOperation,
    SetEntry,
    SetEntryOperation,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
)

T = TypeVar("T")

_ADDRESS_SETS = frozenset(set_name(IPVS_IPS, family) for family in Family)
_HAIRPIN_SETS = frozenset(set_name(LOOP_BACK, family) for family in Family)


@dataclass(slots=True)
class KernelTables:
    """What the kernel holds, as far as it is ours.

    First read from the kernel, then kept up to date with every operation that succeeded.
    """

    virtual_servers: dict[VirtualServerKey, VirtualServer] = field(default_factory=dict)
    addresses: set[bytes] = field(default_factory=set)
    entries: dict[str, set[SetEntry]] = field(default_factory=dict)

    def record(self, operation: Operation) -> None:
        """Take note of an operation that the kernel has carried out."""
        match operation:
            case RealServerOperation(verb, key, server, settings):
                # Absent if the virtual server went in the meantime: then its real servers went with it.
                known = self.virtual_servers.get(key)
                if known is None:
                    return
                if verb is Verb.DELETE:
                    known.real_servers.pop(server, None)
                else:
                    known.real_servers[server] = settings
            case VirtualServerOperation(verb, server):
                self._record_virtual_server(verb, server)
            case AddressOperation(verb, address):
                _record_member(self.addresses, verb, address)
            case SetEntryOperation(verb, name, entry):
                _record_member(self.entries.setdefault(name, set()), verb, entry)

    def _record_virtual_server(self, verb: Verb, server: VirtualServer) -> None:
        if verb is Verb.DELETE:
            self.virtual_servers.pop(server.key, None)
            return
        known = self.virtual_servers.get(server.key)
        # A dictionary of its own: the desired one is another object, and real servers have operations of their own.
        real_servers = {} if known is None or verb is Verb.ADD else known.real_servers
        self.virtual_servers[server.key] = VirtualServer(server.key, *server.settings, real_servers)


def _record_member(members: set[T], verb: Verb, member: T) -> None:
    if verb is Verb.DELETE:
        members.discard(member)
    else:
        members.add(member)


def difference(desired: DesiredTables, actual: KernelTables, touched: Touched) -> list[Operation]:
    """Give the operations that bring the touched objects from ``actual`` to ``desired``, in a safe order."""
    ipvs = [
        operation
        for key in touched.virtual_servers
        for operation in virtual_server_difference(desired.virtual_servers.get(key), actual.virtual_servers.get(key))
    ]
    entries = list(_entry_difference(desired, actual, touched.entries))
    addresses = list(_address_difference(desired, actual, touched.addresses))
    return [
        *(operation for operation in entries if operation.verb is Verb.ADD and _names_hairpin(operation)),
        *(operation for operation in ipvs if not _removes_virtual_server(operation)),
        *(operation for operation in entries if operation.verb is Verb.ADD and not _names_hairpin(operation)),
        *(operation for operation in addresses if operation.verb is Verb.ADD),
        *(operation for operation in entries if operation.verb is Verb.DELETE and not _names_address(operation)),
        *(operation for operation in ipvs if _removes_virtual_server(operation)),
        *(operation for operation in addresses if operation.verb is Verb.DELETE),
        *(operation for operation in entries if operation.verb is Verb.DELETE and _names_address(operation)),
    ]


def virtual_server_difference(desired: VirtualServer | None, actual: VirtualServer | None) -> list[IpvsOperation]:
    """Give the operations for one virtual server and its real servers.

    A real server that is no longer wanted is set to weight 0 and so drains: existing connections go on, new ones go
    elsewhere. At once goes only one of UDP that no longer answers: UDP has no end of a connection, and a client that
    goes on sending would be kept on a dead endpoint for ever. One that comes back gets its weight with one SET;
    deleting and adding would cut its connections.
    """
    if desired is None:
        return [] if actual is None else [VirtualServerOperation(Verb.DELETE, actual)]
    operations: list[IpvsOperation] = []
    present = {} if actual is None else actual.real_servers
    if actual is None:
        operations.append(VirtualServerOperation(Verb.ADD, desired))
    elif actual.settings != desired.settings:
        operations.append(VirtualServerOperation(Verb.SET, desired))
    for key, server in desired.real_servers.items():
        found = present.get(key)
        if found is None:
            operations.append(RealServerOperation(Verb.ADD, desired.key, key, server))
        elif found != server:
            operations.append(RealServerOperation(Verb.SET, desired.key, key, server))
    for key, found in present.items():
        if key in desired.real_servers:
            continue
        if desired.key.protocol == Protocol.UDP and key not in desired.lingering:
            operations.append(RealServerOperation(Verb.DELETE, desired.key, key, found))
        elif found.weight:
            operations.append(RealServerOperation(Verb.SET, desired.key, key, DRAINING))
    return operations


def touch(operations: Iterable[Operation]) -> Touched:
    """Give the keys that operations are about: to look at them again after a failure."""
    touched = Touched()
    for operation in operations:
        match operation:
            case RealServerOperation(_, key, _, _):
                touched.virtual_servers.add(key)
            case VirtualServerOperation(_, server):
                touched.virtual_servers.add(server.key)
            case AddressOperation(_, address):
                touched.addresses.add(address)
            case SetEntryOperation(_, name, entry):
                touched.entries.add((name, entry))
    return touched


def everything(desired: DesiredTables, actual: KernelTables) -> Touched:
    """Give every key of both sides."""
    return Touched(
        desired.virtual_servers.keys() | actual.virtual_servers.keys(),
        desired.addresses.keys() | actual.addresses,
        desired.entries.keys() | {(name, entry) for name, entries in actual.entries.items() for entry in entries},
    )


def _removes_virtual_server(operation: IpvsOperation) -> bool:
    return isinstance(operation, VirtualServerOperation) and operation.verb is Verb.DELETE


def _names_address(operation: SetEntryOperation) -> bool:
    return operation.set_name in _ADDRESS_SETS


def _names_hairpin(operation: SetEntryOperation) -> bool:
    return operation.set_name in _HAIRPIN_SETS


def _entry_difference(
    desired: DesiredTables, actual: KernelTables, keys: Iterable[tuple[str, SetEntry]]
) -> Iterable[SetEntryOperation]:
    for name, entry in keys:
        wanted, present = (name, entry) in desired.entries, entry in actual.entries.get(name, ())
        if wanted != present:
            yield SetEntryOperation(Verb.ADD if wanted else Verb.DELETE, name, entry)


def _address_difference(
    desired: DesiredTables, actual: KernelTables, keys: Iterable[bytes]
) -> Iterable[AddressOperation]:
    for address in keys:
        wanted, present = address in desired.addresses, address in actual.addresses
        if wanted != present:
            yield AddressOperation(Verb.ADD if wanted else Verb.DELETE, address)
