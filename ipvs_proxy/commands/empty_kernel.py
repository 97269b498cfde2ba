"""A kernel that has nothing of ours: what ``plan`` compares with where there is no IPVS, or where it is asked to.

It needs no right, no program and no module: nothing is asked of the real kernel. Its packet rules are those of a node
whose ``iptables-save`` prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ipvs_proxy.agent.local_detection import masquerading
from ipvs_proxy.kernel.dataplane import Failure
from ipvs_proxy.kernel.filter.ipset.names import definitions, name_of
from ipvs_proxy.kernel.filter.iptables.programs import NF_TABLES, Iptables
from ipvs_proxy.kernel.filter.iptables.rules import IptablesRules
from ipvs_proxy.plan.node_addresses import SERVICE_LINK
from ipvs_proxy.plan.tables import Family, Operation, Role, SetEntry, VirtualServer, VirtualServerKey
from ipvs_proxy.settings.model import Settings
from ipvs_proxy.state.documents import ChangeState


class _NoRules(Iptables):
    """The programs of a node without any rule."""

    def save(self, family: Family) -> str:  # noqa: ARG002
        """Return what ``iptables-save`` prints without a table: nothing."""
        return ""


_PROGRAMS: Final = _NoRules(suffix="", backend=NF_TABLES, version=(1, 8, 0), reason="none is looked for")


def no_rules(settings: Settings) -> Mapping[Family, IptablesRules]:
    """Return the packet rules of both families, none of which is there yet."""
    return {
        family: IptablesRules(family, masquerading(settings, family, None), iptables=_PROGRAMS) for family in Family
    }


class EmptyKernel:
    """The empty kernel, and what it was told to change."""

    def __init__(self, rules: Mapping[Family, IptablesRules]) -> None:
        self.frame: list[ChangeState] = []
        self.operations: list[Operation] = []
        self._rules = rules

    def ensure_tables(self) -> list[str]:
        """Note link and sets, none of which is there."""
        self.frame.append(ChangeState("add", "addresses", f"link {SERVICE_LINK}"))
        names = [definition.name for definition in definitions(tuple(Family))]
        self.frame += [ChangeState("add", "sets", name) for name in names]
        return []

    def repair_rules(self) -> list[str]:
        """Note all packet rules."""
        self.frame += [
            ChangeState("set", "rules", f"{family.label} {finding}")
            for family, rules in self._rules.items()
            for finding in rules.drift()
        ]
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

    def read_entries(self) -> dict[Role, set[SetEntry]]:
        """Return no set."""
        return {}

    def name_of_role(self, role: Role) -> str:
        """Return what the kernel would call the set of a role."""
        return name_of(role)

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        """Note the operations."""
        self.operations += operations
        return []

    def writes(self) -> int:
        """Return 0: nothing is written."""
        return 0
