"""The packet filter as kube-proxy's IPVS mode has it: ipsets, and rules of iptables that refer to them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, cast

from ipvs_proxy.kernel.filter import other_modes, predecessors
from ipvs_proxy.kernel.filter.backend import Cleaning, counted
from ipvs_proxy.kernel.filter.ipset.names import definitions, name_of
from ipvs_proxy.kernel.filter.ipset.table import Sets, describe_error
from ipvs_proxy.kernel.filter.iptables.chains import ALONE, BESIDE
from ipvs_proxy.kernel.filter.iptables.iptables_mode import chains_of, is_of_iptables_mode
from ipvs_proxy.kernel.filter.iptables.programs import NF_TABLES, Iptables, MissingNfTables, installed_variants
from ipvs_proxy.kernel.filter.iptables.removal import (
    Choice,
    are_beside_kube_proxy,
    is_ours,
    is_ours_beside_iptables_mode,
    removal,
)
from ipvs_proxy.kernel.filter.iptables.rules import IptablesRules
from ipvs_proxy.kernel.filter.iptables.saved import Saved, parse
from ipvs_proxy.netlink.errors import MissingPiece
from ipvs_proxy.plan.masquerading import Masquerading
from ipvs_proxy.plan.tables import Family, Role, SetEntry, SetEntryOperation

#: Seconds for which what was read of the rules is taken for what they are, in a start.
RECENT: Final = 1.0


class IpsetIptables:
    """A ``PacketFilter``: the sets of all roles, and the rules of each family in one variant of iptables.

    ``beside_kube_proxy``: what there is of kube-proxy's other modes is in use, and no concern of ours.
    """

    #: Outside the mangle table, a set of ipset cannot map.
    spells_marks = True

    def __init__(
        self,
        sets: Sets,
        rules: Mapping[Family, IptablesRules],
        iptables: Iptables,
        *,
        beside_kube_proxy: bool = False,
    ) -> None:
        self.sets = sets
        self._beside_kube_proxy = beside_kube_proxy
        self._rules = rules
        self._iptables = iptables
        self._seen: dict[Family, Saved] = {}
        self._seen_until = 0.0

    def ensure(self) -> list[str]:
        """Make sure that all sets exist; return the names of those that were missing."""
        return self.sets.ensure()

    def missing(self) -> list[str]:
        """Return the names of the sets that do not exist."""
        return self.sets.missing()

    def read(self) -> dict[Role, set[SetEntry]]:
        """Read the members by role; a role whose set is missing, or is of another type, is left out."""
        return self.sets.read()

    def read_changed(self) -> dict[Role, set[SetEntry] | None]:
        """Read the members of the sets whose listing is another than when they were last read."""
        return self.sets.read_changed()

    def apply(self, operations: Sequence[SetEntryOperation]) -> list[int]:
        """Carry operations out; return for each 0, an errno, ipset's error, or UNKNOWN."""
        return self.sets.apply(operations)

    def describe(self, code: int) -> str:
        """Say what a code of ``apply`` means."""
        return describe_error(code)

    def name_of(self, role: Role) -> str:
        """Return the name of a role's ipset."""
        return name_of(role)

    @property
    def settings(self) -> Mapping[Family, Masquerading]:
        """What the rules of each family follow."""
        return {family: rules.settings for family, rules in self._rules.items()}

    def follow(self, settings: Mapping[Family, Masquerading]) -> bool:
        """Have the rules follow other settings; return whether they must be written again."""
        changed = False
        for family, rules in self._rules.items():
            if rules.settings != settings[family]:
                rules.settings = settings[family]
                changed = True
        return changed

    def look(self) -> None:
        """Read the rules of all families, unless that was done just now: each family takes a process."""
        if time.monotonic() > self._seen_until:
            self._seen = {family: rules.look() for family, rules in self._rules.items()}
            self._seen_until = time.monotonic() + RECENT

    def write(self) -> list[str]:
        """Bring the rules to what they should be, as far as is known from a look of just now; say what was wrong."""
        self.look()
        # Nobody needs it again, and the rules of others may be many.
        seen, self._seen, self._seen_until = self._seen, {}, 0.0
        return [
            f"{family.label} {finding}"
            for family, rules in self._rules.items()
            for finding in rules.write(seen[family])
        ]

    def drift(self) -> list[str]:
        """Say what is wrong with the rules."""
        return [f"{family.label} {finding}" for family, rules in self._rules.items() for finding in rules.drift()]

    def repair(self) -> list[str]:
        """Bring chains, jumps and rules to what they should be; say what was wrong."""
        return [f"{family.label} {finding}" for family, rules in self._rules.items() for finding in rules.repair()]

    def find_other_modes(self) -> list[str]:
        """Say what kube-proxy left behind in its other modes, or an agent with nftables."""
        found = predecessors.find_table()
        if self._beside_kube_proxy:
            return found
        self.look()
        return found + other_modes.find(self._seen)

    def remove_other_modes(self) -> list[str]:
        """Take away what ``find_other_modes`` finds; say what it was."""
        findings = predecessors.find_table()
        predecessors.remove_table()
        if self._beside_kube_proxy:
            return findings
        self._seen, self._seen_until = {}, 0.0
        saved = {family: rules.look() for family, rules in self._rules.items()}
        found = other_modes.find(saved)
        if found:
            other_modes.remove(saved, self._iptables)
        return findings + found

    def read_predecessor(self) -> dict[Role, set[SetEntry]]:
        """Read by role the members in the table of an agent with nftables."""
        return predecessors.read_table()

    def writes(self) -> int:
        """Return how many messages and rule sets have been written."""
        return self.sets.traffic.writes + sum(rules.writes for rules in self._rules.values())

    def close(self) -> None:
        """Close the socket."""
        self.sets.close()


def open_ipset_iptables(
    settings: Mapping[Family, Masquerading], iptables: Iptables, *, beside_kube_proxy: bool = False
) -> IpsetIptables:
    """Open the packet filter of these families; nothing is written yet.

    Raises:
        MissingPiece: if the kernel has no ipset, or does not let us use it.
        ValueError: if settings are not for their family.

    """
    rules = _rules_of(settings, iptables, beside_kube_proxy=beside_kube_proxy)
    return IpsetIptables(Sets(definitions(settings)), rules, iptables, beside_kube_proxy=beside_kube_proxy)


def _rules_of(
    settings: Mapping[Family, Masquerading], iptables: Iptables, *, beside_kube_proxy: bool
) -> dict[Family, IptablesRules]:
    layout = BESIDE if beside_kube_proxy else ALONE
    return {family: IptablesRules(family, one, iptables=iptables, layout=layout) for family, one in settings.items()}


class _NoRules(Iptables):
    """The programs of a node without any rule."""

    def save(self, family: Family) -> str:  # noqa: ARG002
        """Return what ``iptables-save`` prints without a table: nothing."""
        return ""


class EmptyIpsetIptables(IpsetIptables):
    """The packet filter of a node that has neither sets nor rules; it asks nothing of a kernel, and cannot write."""

    def __init__(self, settings: Mapping[Family, Masquerading], *, beside_kube_proxy: bool = False) -> None:
        programs = _NoRules(suffix="", backend=NF_TABLES, version=(1, 8, 0), reason="none is looked for")
        rules = _rules_of(settings, programs, beside_kube_proxy=beside_kube_proxy)
        super().__init__(cast("Sets", None), rules, programs, beside_kube_proxy=beside_kube_proxy)

    def missing(self) -> list[str]:
        """Return the names of all sets."""
        return [definition.name for definition in definitions(self.settings)]


class IpsetIptablesTraces:
    """The ``Traces`` of it: the sets of both families, and the chains of all variants of iptables that are installed.

    What kube-proxy's IPVS mode leaves has our names, and counts as ours.
    """

    def __init__(self, cleaning: Cleaning) -> None:
        """Open the sets; if that fails, ``cleaning`` has the reason. A kernel without ipset has none."""
        self._sets: Sets | None = None
        with cleaning.noting("the sets"), suppress(MissingPiece):
            self._sets = Sets(definitions())

    def read(self) -> dict[Role, set[SetEntry]]:
        """Read the members by role."""
        return {} if self._sets is None else self._sets.read()

    def remove(self, cleaning: Cleaning, *, kube_proxy: bool, with_sets: bool, dry_run: bool) -> None:
        """Remove the rules, then the sets; note what went, and what would not."""
        with cleaning.noting("the rules"):
            for variant in self._installed_variants():
                _remove_rules(variant, cleaning, kube_proxy=kube_proxy, dry_run=dry_run)
        if self._sets is not None and with_sets:
            with cleaning.noting("the sets"):
                _remove_sets(self._sets, cleaning, dry_run=dry_run)

    def close(self) -> None:
        """Close the socket."""
        if self._sets is not None:
            self._sets.close()

    def _installed_variants(self) -> list[Iptables]:
        """Find the variants of iptables; a host with neither its programs nor ipset has no rule of ours."""
        try:
            return installed_variants()
        except MissingPiece:
            if self._sets is not None:
                raise
            return []


def _remove_rules(variant: Iptables, cleaning: Cleaning, *, kube_proxy: bool, dry_run: bool) -> None:
    for family in Family:
        where = f"{family.label} {variant.backend}"
        with cleaning.noting(f"the rules of {where}"), suppress(MissingNfTables):
            saved = parse(variant.save(family))
            found = removal(saved, _choice(saved, kube_proxy=kube_proxy))
            if found.text and not dry_run:
                variant.restore(family, found.text)
            if found.chains or found.jumps:
                counts = f"{counted(found.chains, 'chain')} and {counted(found.jumps, 'jump')}"
                cleaning.removed.append(f"{counts} of {where}")
            cleaning.problems.extend(f"the {where} {kept}" for kept in found.kept)


def _choice(saved: Saved, *, kube_proxy: bool) -> Choice:
    """Choose what goes of the rules: never what belongs to a kube-proxy that was rolled back to, unless asked to."""
    if kube_proxy:
        return lambda chain: is_ours(chain) or is_of_iptables_mode(chain)
    in_use = chains_of(saved) or are_beside_kube_proxy(saved)
    return is_ours_beside_iptables_mode if in_use else is_ours


def _remove_sets(sets: Sets, cleaning: Cleaning, *, dry_run: bool) -> None:
    names = sets.present()
    codes = [0] * len(names) if dry_run else sets.destroy(names)
    outcomes = list(zip(names, codes, strict=True))
    destroyed = sum(not code for _, code in outcomes)
    if destroyed:
        cleaning.removed.append(counted(destroyed, "set"))
    cleaning.problems.extend(f"the set {name}: {describe_error(code)}" for name, code in outcomes if code)
