"""An in-memory kernel that is as strict as the real one, for tests of what writes to it.

It shares nothing with the code under test but the nouns and the list of sets. Every operation is answered with the
errno of Linux:

* IPVS (``net/netfilter/ipvs/ip_vs_ctl.c``): EEXIST for an ADD of what exists, ESRCH for a missing virtual server,
  ENOENT for a missing real server or an unknown scheduler, ERANGE for a negative weight, EINVAL for the other family;
  real servers are added only by their own operations, and deleting a virtual server takes its real servers along;
* addresses (``net/ipv4/devinet.c``): EEXIST, EADDRNOTAVAIL;
* sets (``linux/netfilter/ipset/ip_set.h``, with ``NLM_F_EXCL``): ENOENT for a missing set, 4103 for a member that is
  there already or missing, 4097 for a member that is not of the set's type.

``refuse`` makes operations fail that the kernel would carry out; ``log`` has every operation with its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EADDRNOTAVAIL, EEXIST, EINVAL, ENOENT, ERANGE, ESRCH
from typing import Final

from msgspec.structs import replace

from ipvs_proxy.kernel.filter.ipset.names import SetDefinition, SetType, definitions, name_of
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.tables import (
    AddressOperation,
    Family,
    Operation,
    RealServer,
    RealServerKey,
    RealServerOperation,
    Role,
    SetEntry,
    SetEntryOperation,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
)

#: ``IPSET_ERR_PROTOCOL`` and ``IPSET_ERR_EXIST``.
IPSET_PROTOCOL: Final = 4097
IPSET_EXIST: Final = 4103
SCHEDULERS: Final = frozenset(
    ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos")
)

_HASHED: Final = 0x2
_ADDRESS_LENGTH: Final = {Family.IPV4: 4, Family.IPV6: 16}


class FakeKernel:
    """The tables of one network namespace with the link and all sets in place."""

    def __init__(self, refuse: Callable[[Operation], int] | None = None) -> None:
        self.virtual_servers: dict[VirtualServerKey, VirtualServer] = {}
        self.addresses: set[bytes] = set()
        self.sets: dict[str, set[SetEntry]] = {}
        self.refuse = refuse
        self.log: list[tuple[Operation, int]] = []
        self._definitions: dict[Role, SetDefinition] = {}
        self.create_sets()

    def create_sets(self) -> None:
        """Create the sets that are missing, empty."""
        for definition in definitions():
            self._definitions[definition.role] = definition
            self.sets.setdefault(definition.name, set())

    def apply(self, operation: Operation) -> int:
        """Carry an operation out; gives 0 or the error."""
        code = (self.refuse(operation) if self.refuse else 0) or self._carry_out(operation)
        self.log.append((operation, code))
        return code

    def read(self) -> KernelTables:
        """Return a copy of everything, as a dump would."""
        servers = self.virtual_servers.items()
        return KernelTables(
            {key: replace(server, real_servers=dict(server.real_servers)) for key, server in servers},
            set(self.addresses),
            self.entries(),
        )

    def entries(self) -> dict[Role, set[SetEntry]]:
        """Return a copy of the members by role; of sets that are there."""
        return {
            role: set(self.sets[definition.name])
            for role, definition in self._definitions.items()
            if definition.name in self.sets
        }

    def _carry_out(self, operation: Operation) -> int:
        match operation:
            case VirtualServerOperation(verb, server):
                return self._virtual_server(verb, server)
            case RealServerOperation(verb, key, server, settings):
                return self._real_server(verb, key, server, settings)
            case AddressOperation(verb, address):
                return self._address(verb, address)
            case SetEntryOperation(verb, role, entry):
                return self._entry(verb, role, entry)

    def _virtual_server(self, verb: Verb, server: VirtualServer) -> int:
        known = self.virtual_servers.get(server.key)
        if verb is Verb.ADD and known is not None:
            return EEXIST
        if verb is not Verb.ADD and known is None:
            return ESRCH
        if verb is Verb.DELETE:
            del self.virtual_servers[server.key]
            return 0
        if server.scheduler not in SCHEDULERS:
            return ENOENT
        if server.flags & _HASHED or len(server.key.address) not in {4, 16}:
            return EINVAL
        if not server.key.mark and not 0 < server.key.port < 65536:
            return EINVAL
        self.virtual_servers[server.key] = VirtualServer(
            server.key,
            server.scheduler,
            server.flags,
            server.timeout,
            server.netmask,
            {} if known is None else known.real_servers,
        )
        return 0

    def _real_server(self, verb: Verb, key: VirtualServerKey, server: RealServerKey, settings: RealServer) -> int:
        known = self.virtual_servers.get(key)
        if known is None:
            return ESRCH
        if verb is not Verb.DELETE:
            if settings.weight < 0:
                return ERANGE
            if len(server.address) != len(key.address) or not 0 < server.port < 65536:
                return EINVAL
        if verb is Verb.ADD and server in known.real_servers:
            return EEXIST
        if verb is not Verb.ADD and server not in known.real_servers:
            return ENOENT
        if verb is Verb.DELETE:
            del known.real_servers[server]
        else:
            known.real_servers[server] = settings
        return 0

    def _address(self, verb: Verb, address: bytes) -> int:
        if verb is Verb.SET or len(address) not in {4, 16}:
            return EINVAL
        if verb is Verb.DELETE:
            if address not in self.addresses:
                return EADDRNOTAVAIL
            self.addresses.remove(address)
            return 0
        if address in self.addresses:
            return EEXIST
        self.addresses.add(address)
        return 0

    def _entry(self, verb: Verb, role: Role, entry: SetEntry) -> int:
        members = self.sets.get(name_of(role))
        if members is None:
            return ENOENT
        if verb is Verb.SET or not _fits(entry, self._definitions[role]):
            return IPSET_PROTOCOL
        # The mark is what a member leads to, not what it is.
        same = (
            {member for member in members if member._replace(mark=0) == entry._replace(mark=0)}
            if entry.mark
            else {entry}
        )
        if (verb is Verb.ADD) == bool(same & members):
            return IPSET_EXIST
        members -= same
        if verb is Verb.ADD:
            members.add(entry)
        return 0


def _fits(entry: SetEntry, definition: SetDefinition) -> bool:
    """Return whether a member has exactly the parts that the set's type has."""
    length = _ADDRESS_LENGTH[definition.family]
    address, source = len(entry.address) == length, len(entry.source) == length
    flow = address and bool(entry.protocol) and 0 < entry.port < 65536
    no_source = not entry.source and entry.prefix_length is None
    match definition.type:
        case SetType.BITMAP_PORT:
            return not entry.address and not entry.protocol and 0 <= entry.port < 65536 and no_source
        case SetType.HASH_IP:
            return address and not entry.protocol and not entry.port and no_source
        case SetType.HASH_IP_PORT:
            return flow and no_source and bool(entry.mark) == definition.marks
        case SetType.HASH_IP_PORT_IP:
            return flow and source and entry.prefix_length is None
        case SetType.HASH_IP_PORT_NET:
            return flow and source and entry.prefix_length is not None and 0 < entry.prefix_length <= length * 8
