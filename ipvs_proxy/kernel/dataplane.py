"""The kernel's tables behind one door: IPVS, the addresses of our link, and the packet filter's sets and rules.

Operations go to their table in the order given, neighbours of one table in one batch, and every one comes back with its
own result. All calls block; the agent makes them from a worker thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from errno import EADDRNOTAVAIL, ECANCELED, EEXIST, ENOENT, ESRCH
from itertools import groupby
from typing import Any, Final, NamedTuple

from ipvs_proxy.kernel.filter.backend import PacketFilter
from ipvs_proxy.kernel.ipvs.records import Connections
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.kernel.links.addresses import Addresses
from ipvs_proxy.netlink.errors import MissingPiece, describe
from ipvs_proxy.plan.tables import (
    AddressOperation,
    Operation,
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

_HELD_BACK: Final = "held back: what it leads to could not be completed"


class Failure(NamedTuple):
    """An operation that the kernel refused.

    ``code`` is an errno, one of the packet filter's own codes, or -1 if the operation's fate is unknown; ``text`` says
    what it means.
    """

    operation: Operation
    code: int
    text: str = ""


#: The table of each kind of operation.
TABLES: Final[Mapping[type[Operation], str]] = {
    VirtualServerOperation: "ipvs",
    RealServerOperation: "ipvs",
    AddressOperation: "addresses",
    SetEntryOperation: "sets",
}


def table_of(operation: Operation) -> str:
    """Name the table of an operation: ``ipvs``, ``addresses`` or ``sets``."""
    return TABLES[type(operation)]


class Dataplane:
    """What the agent needs of the kernel."""

    def __init__(self, *, ipvs: Ipvs, addresses: Addresses, packet_filter: PacketFilter) -> None:
        self.ipvs = ipvs
        self.addresses = addresses
        self.packet_filter = packet_filter

    @property
    def spells_marks(self) -> bool:
        """Whether members say which bits a mark has."""
        return self.packet_filter.spells_marks

    def prepare(self) -> None:
        """Make link and sets, and read the rules: what a start needs whatever objects there are.

        What fails here is told where it is needed.
        """
        with suppress(OSError, ValueError):
            self.ensure_tables()
            self.packet_filter.look()

    def ensure_tables(self) -> list[str]:
        """Make sure that the link and the sets exist; say what was missing."""
        findings = ["link"] if self.addresses.ensure_link() else []
        return findings + self.packet_filter.ensure()

    def repair_rules(self) -> list[str]:
        """Bring the packet rules to what they should be; say what was wrong.

        Unlike all other calls, this one may be made from another thread: it touches nothing that they use.
        """
        return self.packet_filter.repair()

    def write_rules(self) -> list[str]:
        """Bring the packet rules to what they should be, as ``prepare`` just found them; say what was wrong.

        What came of it is left to the next ``repair_rules`` to look at.
        """
        return self.packet_filter.write()

    def find_leftovers(self) -> list[str]:
        """Say what kube-proxy left behind in its other modes, or an agent with another packet filter."""
        return self.packet_filter.find_other_modes()

    def remove_leftovers(self) -> list[str]:
        """Take away what ``find_leftovers`` finds; say what it was."""
        return self.packet_filter.remove_other_modes()

    def read_left_entries(self) -> dict[Role, set[SetEntry]]:
        """Read by role the members that are left in the sets of another packet filter."""
        return self.packet_filter.read_predecessor()

    def read_virtual_servers(self) -> dict[VirtualServerKey, VirtualServer]:
        """Read all virtual servers with their real servers, also those that are not ours."""
        return self.ipvs.read().virtual_servers

    def read_addresses(self) -> set[bytes]:
        """Read the addresses of our link."""
        return self.addresses.read()

    def announces_addresses(self) -> bool:
        """Return whether rtnetlink tells of every change of what ``read_addresses`` reads: of routes, it is not asked.

        It would tell of all routes of the host.
        """
        return not self.addresses.has_routes

    def read_entries(self) -> dict[Role, set[SetEntry]]:
        """Read the members of our sets by role; a set that is missing is left out."""
        return self.packet_filter.read()

    def read_changed_entries(self) -> dict[Role, set[SetEntry] | None]:
        """Read the sets that are not certainly as they were last read; ``None`` for one that is missing."""
        return self.packet_filter.read_changed()

    def has_scheduler(self, name: str) -> bool:
        """Return whether the kernel has a scheduler, which it loads if it can. Raises OSError if it does not say."""
        try:
            self.ipvs.require_scheduler(name)
        except MissingPiece:
            return False
        return True

    def name_of_role(self, role: Role) -> str:
        """Return what the kernel calls the set of a role."""
        return self.packet_filter.name_of(role)

    def read_virtual_server(self, key: VirtualServerKey) -> VirtualServer | None:
        """Read one virtual server with its real servers."""
        return self.ipvs.read_one(key)

    def connections(self, key: VirtualServerKey) -> dict[RealServerKey, Connections]:
        """Read how many connections each real server of a virtual server has."""
        return self.ipvs.connections(key)

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        """Carry operations out in their order; return those that failed.

        Two kinds of members are held back, and fail with ECANCELED: those that let connections reach a virtual server
        that could not be added, because its address would lead to a port of the node itself; and a packet mark whose
        bits are not complete, because it would be another mark.
        """
        failures: list[Failure] = []
        missing: set[VirtualServerKey] = set()
        torn: set[SetEntry] = set()
        for (table, _), group in groupby(operations, _batch_of):
            batch = list(group)
            if table == "sets" and (missing or torn):
                held = [operation for operation in batch if _leads_to(operation, missing, torn)]
                failures += [Failure(operation, ECANCELED, _HELD_BACK) for operation in held]
                batch = [operation for operation in batch if not _leads_to(operation, missing, torn)]
            for operation, code in zip(batch, self._table(table).apply(batch), strict=True):
                if code and not _is_as_wanted(operation, code):
                    text = self.packet_filter.describe(code) if table == "sets" else describe(code)
                    failures.append(Failure(operation, code, text))
                    if isinstance(operation, VirtualServerOperation) and operation.verb is Verb.ADD:
                        missing.add(operation.virtual_server.key)
                    if isinstance(operation, SetEntryOperation):
                        torn.add(operation.entry)
        return failures

    def close(self) -> None:
        """Close the sockets."""
        for table in (self.ipvs, self.addresses, self.packet_filter):
            table.close()

    def writes(self) -> int:
        """Return how many messages and rule sets have been written."""
        return self.ipvs.traffic.writes + self.addresses.traffic.writes + self.packet_filter.writes()

    def _table(self, name: str) -> Any:
        return {"ipvs": self.ipvs, "addresses": self.addresses, "sets": self.packet_filter}[name]


def _batch_of(operation: Operation) -> tuple[str, bool]:
    """Return what neighbours must share to go in one batch; members with a mark wait for those before them."""
    return table_of(operation), isinstance(operation, SetEntryOperation) and bool(operation.entry.mark)


def _leads_to(operation: Operation, missing: set[VirtualServerKey], torn: set[SetEntry]) -> bool:
    if not isinstance(operation, SetEntryOperation) or operation.verb is not Verb.ADD:
        return False
    entry = operation.entry
    return VirtualServerKey(*entry[:3]) in missing or bool(entry.mark and entry._replace(mark=0) in torn)


def _is_as_wanted(operation: Operation, code: int) -> bool:
    """Return whether the kernel refused because the object already is what the operation would make it."""
    if isinstance(operation, AddressOperation):
        return code == (EADDRNOTAVAIL if operation.verb is Verb.DELETE else EEXIST)
    return operation.verb is Verb.DELETE and code in {ENOENT, ESRCH}
