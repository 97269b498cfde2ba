"""What the kernel holds, as far as it is ours and we know: read once, then kept up to date with what succeeded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from ipvs_proxy.plan.draining import DrainingVirtualServers
from ipvs_proxy.plan.tables import (
    AddressOperation,
    Operation,
    RealServer,
    RealServerKey,
    RealServerOperation,
    SetEntry,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
)

T = TypeVar("T")


@dataclass(slots=True)
class KernelTables:
    """What the kernel holds, as far as it is ours, and which virtual servers of it are leaving.

    First read from the kernel, then kept up to date with every operation that succeeded.
    """

    virtual_servers: dict[VirtualServerKey, VirtualServer] = field(default_factory=dict)
    addresses: set[bytes] = field(default_factory=set)
    entries: dict[str, set[SetEntry]] = field(default_factory=dict)
    draining: DrainingVirtualServers = field(default_factory=DrainingVirtualServers, compare=False)

    def record(self, operations: Iterable[Operation]) -> None:
        """Take note of operations that the kernel has carried out, in their order."""
        named: VirtualServerKey | None = None
        real_servers: dict[RealServerKey, RealServer] | None = None
        for operation in operations:
            if isinstance(operation, RealServerOperation):
                verb, virtual_server, key, settings = operation
                # Those of one virtual server follow one another.
                if virtual_server is not named:
                    known, named = self.virtual_servers.get(virtual_server), virtual_server
                    # Absent if the virtual server went in the meantime: then its real servers went with it.
                    real_servers = None if known is None else known.real_servers
                if real_servers is not None and verb is not Verb.DELETE:
                    real_servers[key] = settings
                elif real_servers is not None:
                    real_servers.pop(key, None)
                continue
            named = None
            if isinstance(operation, VirtualServerOperation):
                self._record_virtual_server(*operation)
            elif isinstance(operation, AddressOperation):
                _record_member(self.addresses, *operation)
            else:
                verb, name, entry = operation
                _record_member(self.entries.setdefault(name, set()), verb, entry)

    def _record_virtual_server(self, verb: Verb, server: VirtualServer) -> None:
        if verb is Verb.DELETE:
            self.virtual_servers.pop(server.key, None)
            self.draining.release(server.key)
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


def is_same(one: VirtualServer | None, other: VirtualServer | None) -> bool:
    """Return whether two virtual servers are the same in all that the kernel holds."""
    if one is None or other is None or one is other:
        return one is other
    return one.settings == other.settings and one.real_servers == other.real_servers
