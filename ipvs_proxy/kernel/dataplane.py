"""The kernel's tables behind one door: IPVS, addresses, sets and rules.

Operations go to their table in the order given, neighbours of one table in one batch, and every one comes back with its
own result. All calls block; the agent makes them from a worker thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from errno import EADDRNOTAVAIL, ECANCELED, EEXIST, ENOENT, ESRCH
from itertools import groupby
from typing import Any, Final, NamedTuple

from ipvs_proxy.kernel.filter.ipset.names import name_of
from ipvs_proxy.kernel.filter.ipset.table import Sets, describe_error
from ipvs_proxy.kernel.filter.iptables.rules import Rules
from ipvs_proxy.kernel.filter.other_modes import Leftovers
from ipvs_proxy.kernel.ipvs.records import Connections
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.kernel.links.addresses import Addresses
from ipvs_proxy.plan.tables import (
    AddressOperation,
    Family,
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

#: Seconds for which what was read of the packet rules is taken for what they are, in a start.
RECENT: Final = 1.0


class Failure(NamedTuple):
    """An operation that the kernel refused: an errno, an ipset error (from 4096), or -1 if its fate is unknown."""

    operation: Operation
    code: int

    @property
    def text(self) -> str:
        """Say what the code means."""
        if self.code == ECANCELED:
            return "held back: what it leads to could not be completed"
        return describe_error(self.code)


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

    def __init__(
        self, *, ipvs: Ipvs, addresses: Addresses, sets: Sets, rules: Mapping[Family, Rules], leftovers: Leftovers
    ) -> None:
        self.leftovers = leftovers
        self.ipvs = ipvs
        self.addresses = addresses
        self.sets = sets
        self.rules = rules
        self._seen: dict[Family, str] = {}
        self._seen_until = 0.0

    def prepare(self) -> None:
        """Make link and sets, and read the rules: what a start needs whatever objects there are.

        What fails here is told where it is needed.
        """
        with suppress(OSError, ValueError):
            self.ensure_tables()
            self._recent_rules()

    def ensure_tables(self) -> list[str]:
        """Make sure that the link and the sets exist; say what was missing."""
        findings = ["link"] if self.addresses.ensure_link() else []
        return findings + self.sets.ensure()

    def repair_rules(self) -> list[str]:
        """Bring chains, jumps and rules to what they should be; say what was wrong.

        Alone among the calls this one may be made from another thread than the rest: it touches nothing else.
        """
        return [f"{family.label} {finding}" for family, rules in self.rules.items() for finding in rules.repair()]

    def write_rules(self) -> list[str]:
        """Bring the rules to what they should be, as far as is known from a look of just now; say what was wrong.

        What came of it is left to the next ``repair_rules`` to look at.
        """
        seen = self._recent_rules()
        self._seen_until = 0.0
        return [
            f"{family.label} {finding}" for family, rules in self.rules.items() for finding in rules.write(seen[family])
        ]

    def find_leftovers(self) -> list[str]:
        """Say what kube-proxy left behind in its other modes."""
        return self.leftovers.find(self._recent_rules())

    def remove_leftovers(self) -> list[str]:
        """Take away what kube-proxy left behind in its other modes; say what it was."""
        return self.leftovers.remove()

    def read_virtual_servers(self) -> dict[VirtualServerKey, VirtualServer]:
        """Read all virtual servers with their real servers, also those that are not ours."""
        return self.ipvs.read().virtual_servers

    def read_addresses(self) -> set[bytes]:
        """Read the addresses of our link."""
        return self.addresses.read()

    def read_entries(self) -> dict[Role, set[SetEntry]]:
        """Read the members of our sets by role; a set that is missing is left out."""
        return self.sets.read()

    def name_of_role(self, role: Role) -> str:
        """Return what the kernel calls the set of a role."""
        return name_of(role)

    def read_virtual_server(self, key: VirtualServerKey) -> VirtualServer | None:
        """Read one virtual server with its real servers."""
        return self.ipvs.read_one(key)

    def connections(self, key: VirtualServerKey) -> dict[RealServerKey, Connections]:
        """Read how many connections each real server of a virtual server has."""
        return self.ipvs.connections(key)

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        """Carry operations out in their order; return those that failed.

        The members of sets that let connections reach a virtual server are held back where that virtual server could
        not be added, so that its address never leads to a port of the node itself; and a packet mark whose bits are not
        complete, so that it is never another one.
        """
        failures: list[Failure] = []
        missing: set[VirtualServerKey] = set()
        torn: set[SetEntry] = set()
        for (table, _), group in groupby(operations, _batch_of):
            batch = list(group)
            if table == "sets" and (missing or torn):
                held = [operation for operation in batch if _leads_to(operation, missing, torn)]
                failures += [Failure(operation, ECANCELED) for operation in held]
                batch = [operation for operation in batch if not _leads_to(operation, missing, torn)]
            for operation, code in zip(batch, self._table(table).apply(batch), strict=True):
                if code and not _is_as_wanted(operation, code):
                    failures.append(Failure(operation, code))
                    if isinstance(operation, VirtualServerOperation) and operation.verb is Verb.ADD:
                        missing.add(operation.virtual_server.key)
                    if isinstance(operation, SetEntryOperation):
                        torn.add(operation.entry)
        return failures

    def close(self) -> None:
        """Close the sockets."""
        for table in (self.ipvs, self.addresses, self.sets):
            table.close()

    def writes(self) -> int:
        """Return how many messages and rule sets have been written."""
        messages = {id(table.traffic): table.traffic for table in (self.ipvs, self.addresses, self.sets)}
        return sum(traffic.writes for traffic in messages.values()) + sum(r.writes for r in self.rules.values())

    def _recent_rules(self) -> dict[Family, str]:
        """Read the rules of all families, unless that was done just now: each family takes a process."""
        if time.monotonic() > self._seen_until:
            self._seen = {family: rules.look() for family, rules in self.rules.items()}
            self._seen_until = time.monotonic() + RECENT
        return self._seen

    def _table(self, name: str) -> Any:
        return {"ipvs": self.ipvs, "addresses": self.addresses, "sets": self.sets}[name]


def _batch_of(operation: Operation) -> tuple[str, bool]:
    """Return what neighbours have to share to be carried out at once; what has a mark waits for what was before it."""
    return table_of(operation), isinstance(operation, SetEntryOperation) and bool(operation.entry.mark)


def _leads_to(operation: Operation, missing: set[VirtualServerKey], torn: set[SetEntry]) -> bool:
    if not isinstance(operation, SetEntryOperation) or operation.verb is not Verb.ADD:
        return False
    entry = operation.entry
    return VirtualServerKey(*entry[:3]) in missing or bool(entry.mark and entry._replace(mark=0) in torn)


def _is_as_wanted(operation: Operation, code: int) -> bool:
    """Return whether a refusal means that the object is as the operation would have made it."""
    if isinstance(operation, AddressOperation):
        return code == (EADDRNOTAVAIL if operation.verb is Verb.DELETE else EEXIST)
    return operation.verb is Verb.DELETE and code in {ENOENT, ESRCH}
