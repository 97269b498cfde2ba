"""The dataplane over the fake kernel: what the kernel writer and the audit need, with faults to order and counts of calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from errno import EADDRNOTAVAIL, EEXIST

from ipvs_proxy.kernel.dataplane import Failure
from ipvs_proxy.kernel.filter.ipset.names import definitions, name_of
from ipvs_proxy.kernel.filter.ipset.table import describe_error
from ipvs_proxy.kernel.ipvs.records import ListDifference
from ipvs_proxy.plan.tables import (
    AddressOperation,
    Family,
    Operation,
    Role,
    SetEntry,
    SetEntryOperation,
    VirtualServer,
    VirtualServerKey,
    family_of,
)
from tests.support.fake_kernel import IPSET_EXIST, FakeKernel


class NoRules:
    """A packet filter whose rules are right."""

    def drift(self) -> list[str]:
        return []


class FakeDataplane:
    """``broken`` makes the next calls of ``apply`` fail as a dead socket does; ``calls`` counts by name."""

    spells_marks = True

    def __init__(self, kernel: FakeKernel | None = None) -> None:
        self.kernel = kernel or FakeKernel()
        self.calls: Counter[str] = Counter()
        self.applied: list[Operation] = []
        self.broken = 0
        self.unchanged = False
        #: Whether rtnetlink tells of changes of addresses.
        self.announces = True
        self.wrong_rules: list[str] = []
        self.leftovers: list[str] = []
        self.left_entries: dict[Role, set[SetEntry]] = {}
        self.missing_schedulers: set[str] = set()
        self.packet_filter = NoRules()

    def ensure_tables(self) -> list[str]:
        self.calls["ensure_tables"] += 1
        before = set(self.kernel.sets)
        self.kernel.create_sets()
        return sorted(set(self.kernel.sets) - before)

    def repair_rules(self) -> list[str]:
        self.calls["repair_rules"] += 1
        found, self.wrong_rules = self.wrong_rules, []
        return found

    def write_rules(self) -> list[str]:
        self.calls["write_rules"] += 1
        found, self.wrong_rules = self.wrong_rules, []
        return found

    def find_leftovers(self) -> list[str]:
        self.calls["find_leftovers"] += 1
        return self.leftovers

    def remove_leftovers(self) -> list[str]:
        self.calls["remove_leftovers"] += 1
        found, self.leftovers = self.leftovers, []
        return found

    def read_left_entries(self) -> dict[Role, set[SetEntry]]:
        self.calls["read_left_entries"] += 1
        return self.left_entries

    def has_scheduler(self, name: str) -> bool:
        self.calls["has_scheduler"] += 1
        return name not in self.missing_schedulers

    def read_virtual_servers(self) -> dict[VirtualServerKey, VirtualServer]:
        self.calls["read_virtual_servers"] += 1
        return self.kernel.read().virtual_servers

    def compare_list(self, known: Mapping[VirtualServerKey, VirtualServer], *, ipv6: bool) -> ListDifference:
        self.calls["compare_list"] += 1
        self.calls["compare_list ipv6"] += ipv6
        found = self.kernel.read().virtual_servers
        listed = {key: one for key, one in found.items() if ipv6 or family_of(key.address) is Family.IPV4}
        return ListDifference(
            [key for key, one in known.items() if key not in found or found[key].settings != one.settings],
            {key: one for key, one in listed.items() if key not in known},
            ipv6,
        )

    def differing(self, servers: Iterable[VirtualServer]) -> list[VirtualServerKey]:
        self.calls["differing"] += 1
        found = self.kernel.read().virtual_servers
        present = {key: one.real_servers for key, one in found.items()}
        return [one.key for one in servers if present.get(one.key, {}) != one.real_servers]

    def read_virtual_server(self, key: VirtualServerKey) -> VirtualServer | None:
        self.calls["read_virtual_server"] += 1
        return self.kernel.read().virtual_servers.get(key)

    def read_addresses(self) -> set[bytes]:
        self.calls["read_addresses"] += 1
        return set(self.kernel.addresses)

    def announces_addresses(self) -> bool:
        return self.announces

    def read_entries(self) -> dict[Role, set[SetEntry]]:
        self.calls["read_entries"] += 1
        return self.kernel.entries()

    def read_changed_entries(self) -> dict[Role, set[SetEntry] | None]:
        return (
            {}
            if self.unchanged
            else {**dict.fromkeys(definition.role for definition in definitions()), **self.read_entries()}
        )

    def name_of_role(self, role: Role) -> str:
        return name_of(role)

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        self.calls["apply"] += 1
        if self.broken:
            self.broken -= 1
            raise OSError("the socket is dead")
        failures = []
        for operation in operations:
            code = self.kernel.apply(operation)
            # The real dataplane forgives an address, and a member of a set, that is already as wanted.
            forgiven = {AddressOperation: {EEXIST, EADDRNOTAVAIL}, SetEntryOperation: {IPSET_EXIST}}
            if code and code not in forgiven.get(type(operation), ()):
                failures.append(Failure(operation, code, describe_error(code)))
            elif not code:
                self.applied.append(operation)
        return failures

    def close(self) -> None:
        self.calls["close"] += 1

    def writes(self) -> int:
        return len(self.applied)
