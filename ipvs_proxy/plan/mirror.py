"""What the kernel holds, as far as it is ours: read from it once, then kept up to date with what is written.

**The invariant: the mirror is what a read of the kernel would find, but for what others have written since the last
one.** So only operations that the kernel has carried out are recorded, and what failed is read again. Whoever finds the
two to differ corrects the mirror, never the other way round: the difference to what is desired does the rest.

Where the kernel has come to what is desired, the mirror holds the very objects that are (``share``), which never
change: only what is its own does, a copy from the first change on.

One thing the kernel holds in no form of its own, so it is noted here: which virtual servers drain although nobody wants
them. A start finds it out again from the members of sets that name them (see ``draining``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NewType, TypeVar

from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.draining import DrainingVirtualServers, drains, is_external, ledger_entry, remains_of
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import (
    AddressOperation,
    Operation,
    RealServer,
    RealServerKey,
    RealServerOperation,
    Role,
    SetEntry,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
)

T = TypeVar("T")

#: Keys with all that stays or goes along with virtual servers that nobody wants: ``KernelTables.note_draining`` makes
#: them. Without that, ``difference`` would delete a virtual server that has connections to finish.
CompleteKeys = NewType("CompleteKeys", TableKeys)


@dataclass(slots=True)
class KernelTables:
    """The kernel's tables, and which virtual servers in them drain although nobody wants them.

    ``entries`` has the members of sets by their role; ``addresses`` are those of our link, packed. ``own`` are the
    virtual servers whose real servers are in a dictionary that nobody else has.
    """

    virtual_servers: dict[VirtualServerKey, VirtualServer] = field(default_factory=dict)
    addresses: set[bytes] = field(default_factory=set)
    entries: dict[Role, set[SetEntry]] = field(default_factory=dict)
    draining: DrainingVirtualServers = field(default_factory=DrainingVirtualServers, compare=False)
    own: set[VirtualServerKey] = field(default_factory=set, compare=False)

    def record(self, operations: Iterable[Operation]) -> None:
        """Take in operations that the kernel has carried out, in their order."""
        named: VirtualServerKey | None = None
        real_servers: dict[RealServerKey, RealServer] | None = None
        for operation in operations:
            if isinstance(operation, RealServerOperation):
                verb, virtual_server = operation.verb, operation.virtual_server
                # Those of one virtual server follow one another.
                if virtual_server is not named:
                    known, named = self.virtual_servers.get(virtual_server), virtual_server
                    # Absent if the virtual server went in the meantime: then its real servers went with it.
                    real_servers = None if known is None else self._changeable(known)
                if real_servers is not None and verb is not Verb.DELETE:
                    real_servers[operation.key] = operation.real_server
                elif real_servers is not None:
                    real_servers.pop(operation.key, None)
                continue
            named = None
            if isinstance(operation, VirtualServerOperation):
                named = operation.virtual_server.key
                real_servers = self._record_virtual_server(operation.verb, operation.virtual_server)
            elif isinstance(operation, AddressOperation):
                _record_member(self.addresses, operation.verb, operation.address)
            else:
                _record_member(self.entries.setdefault(operation.role, set()), operation.verb, operation.entry)

    def note_draining(self, desired: DesiredTables, keys: TableKeys) -> CompleteKeys:
        """Note which virtual servers of ``keys`` drain from now on, and which no longer do.

        Returns the keys with those of what has to stay for them or may go with them; ``keys`` itself is left as it is.
        An external or load balancer address that goes takes the virtual servers along that drain at it.
        """
        more = TableKeys()
        # A set minus the keys of a dictionary would walk through the whole dictionary.
        for key in [key for key in keys.virtual_servers if key not in desired.virtual_servers]:
            self._note_unwanted(key, desired, more)
        for key in [key for key in self.draining.keys() & keys.virtual_servers if key in desired.virtual_servers]:
            self._note_wanted(key, more)
        for address in [address for address in keys.addresses | more.addresses if address not in desired.addresses]:
            for key in self.draining.external_at(address) - keys.virtual_servers:
                more.virtual_servers.add(key)
                # One that is wanted again, and is written in another round, no longer drains.
                if key in desired.virtual_servers:
                    self._note_wanted(key, more)
                else:
                    self._note_unwanted(key, desired, more)
        if not more:
            return CompleteKeys(keys)
        more.add(keys)
        return CompleteKeys(more)

    def _note_wanted(self, key: VirtualServerKey, more: TableKeys) -> None:
        more.entries.add(ledger_entry(key))
        self.draining.release(key)

    def _note_unwanted(self, key: VirtualServerKey, desired: DesiredTables, more: TableKeys) -> None:
        more.add(remains_of(key))
        more.entries.add(ledger_entry(key))
        known = self.virtual_servers.get(key)
        external = key in self.draining.external_at(key.address) or is_external(key, self.entries)
        goes_with_address = external and key.address in self.addresses and key.address not in desired.addresses
        if known is not None and drains(known) and not goes_with_address:
            self.draining.hold(key, external=external)
        else:
            self.draining.release(key)

    def share(self, desired: Mapping[VirtualServerKey, VirtualServer], keys: Iterable[VirtualServerKey]) -> None:
        """Take the desired objects for those virtual servers of ``keys`` that are as desired.

        That saves 320 bytes of each with two real servers, and the same object needs no comparison.
        """
        for key in keys:
            wanted, known = desired.get(key), self.virtual_servers.get(key)
            if wanted is not None and known is not wanted and is_same(wanted, known):
                self.virtual_servers[key] = wanted
                self.own.discard(key)

    def _record_virtual_server(self, verb: Verb, server: VirtualServer) -> dict[RealServerKey, RealServer] | None:
        """Record an operation; return the real servers, to which others may be added."""
        if verb is Verb.DELETE:
            self.virtual_servers.pop(server.key, None)
            self.own.discard(server.key)
            self.draining.release(server.key)
            return None
        known = self.virtual_servers.get(server.key)
        real_servers = {} if known is None or verb is Verb.ADD else self._changeable(known)
        return self._put(server, real_servers)

    def _changeable(self, known: VirtualServer) -> dict[RealServerKey, RealServer]:
        """Return the real servers of a virtual server, to be changed in place: a copy the first time."""
        if known.key in self.own:
            return known.real_servers
        return self._put(known, known.real_servers.copy())

    def _put(
        self, server: VirtualServer, real_servers: dict[RealServerKey, RealServer]
    ) -> dict[RealServerKey, RealServer]:
        self.virtual_servers[server.key] = VirtualServer(server.key, *server.settings, real_servers)
        self.own.add(server.key)
        return real_servers


def _record_member(members: set[T], verb: Verb, member: T) -> None:
    if verb is Verb.DELETE:
        members.discard(member)
    else:
        members.add(member)


def is_same(one: VirtualServer | None, other: VirtualServer | None) -> bool:
    """Return whether two virtual servers are the same in all that the kernel holds."""
    if one is None or other is None or one is other:
        return one is other
    return one.settings == other.settings and one.real_servers == other.real_servers
