"""A kernel that has nothing of ours: what ``plan`` compares with where there is no IPVS, or where it is asked to.

It needs no right, no program and no module: nothing is asked of the real kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from ipvs_proxy.kernel.dataplane import Failure
from ipvs_proxy.kernel.filter.backend import PacketFilter
from ipvs_proxy.plan.node_addresses import SERVICE_LINK
from ipvs_proxy.plan.tables import Operation, Role, SetEntry, VirtualServer, VirtualServerKey
from ipvs_proxy.state.documents import ChangeState


class EmptyKernel:
    """The empty kernel, and what it was told to change."""

    def __init__(self, packet_filter: PacketFilter) -> None:
        self.frame: list[ChangeState] = []
        self.operations: list[Operation] = []
        self._packet_filter = packet_filter

    @property
    def spells_marks(self) -> bool:
        """Whether members say which bits a mark has."""
        return self._packet_filter.spells_marks

    def ensure_tables(self) -> list[str]:
        """Note link and sets, none of which is there."""
        self.frame.append(ChangeState("add", "addresses", f"link {SERVICE_LINK}"))
        self.frame += [ChangeState("add", "sets", name) for name in self._packet_filter.missing()]
        return []

    def repair_rules(self) -> list[str]:
        """Note all packet rules."""
        self.frame += [ChangeState("set", "rules", finding) for finding in self._packet_filter.drift()]
        return []

    write_rules = repair_rules

    def find_leftovers(self) -> list[str]:
        """Return nothing: kube-proxy has never been here."""
        return []

    remove_leftovers = find_leftovers

    def read_virtual_servers(self) -> dict[VirtualServerKey, VirtualServer]:
        """Return no virtual server."""
        return {}

    def read_virtual_server(self, _: VirtualServerKey) -> VirtualServer | None:
        """Return no virtual server."""
        return None

    def read_addresses(self) -> set[bytes]:
        """Return no address."""
        return set()

    def announces_addresses(self) -> bool:
        """Return that nothing changes untold."""
        return True

    def read_left_entries(self) -> dict[Role, set[SetEntry]]:
        """Return no set."""
        return {}

    def read_entries(self) -> dict[Role, set[SetEntry]]:
        """Return no set."""
        return {}

    def read_changed_entries(self) -> dict[Role, set[SetEntry] | None]:
        """Return no set."""
        return {}

    def has_scheduler(self, _: str) -> bool:
        """Return that there is every scheduler."""
        return True

    def name_of_role(self, role: Role) -> str:
        """Return what the kernel would call the set of a role."""
        return self._packet_filter.name_of(role)

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        """Note the operations."""
        self.operations += operations
        return []

    def writes(self) -> int:
        """Return 0: nothing is written."""
        return 0
