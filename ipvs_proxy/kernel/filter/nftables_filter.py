"""The packet filter in one table of nf_tables: sets and a map for the data, a fixed set of rules that refer to them.

It needs nothing of the host but nf_tables and the program ``nft``. Members travel over netlink (``nftables.sets``), the
table as a whole goes through nft. An audit asks for the generation of the rules first: as long as nobody else has
changed any rule of the node, there is nothing to read.

The invariant: the table is written as a whole in one transaction, so no packet meets a part of it, and a set that is as
it should be keeps its members.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Final, cast

import structlog

from ipvs_proxy.kernel.filter import predecessors
from ipvs_proxy.kernel.filter.backend import Cleaning, counted
from ipvs_proxy.kernel.filter.nftables import codec, program
from ipvs_proxy.kernel.filter.nftables.compare import (
    AS_WRITTEN,
    Forms,
    differences,
    parse,
    payload,
    printed_forms,
    replacing,
)
from ipvs_proxy.kernel.filter.nftables.generation import Generation, following
from ipvs_proxy.kernel.filter.nftables.names import TABLE_NAME, definitions, name_of
from ipvs_proxy.kernel.filter.nftables.render import Blocks, range_blocks, render, set_blocks, text_of
from ipvs_proxy.kernel.filter.nftables.sets import MakeLengths, Sets, open_netfilter
from ipvs_proxy.kernel.filter.nftables.tables import (
    chains_before_ours,
    delete_kube_proxy_table,
    delete_own_chains,
    delete_own_table,
    has_kube_proxy_table,
    has_own_table,
)
from ipvs_proxy.netlink.errors import MissingPiece, describe
from ipvs_proxy.netlink.socket import NetlinkSocket
from ipvs_proxy.plan.masquerading import Masquerading
from ipvs_proxy.plan.tables import Family, Role, SetEntry, SetEntryOperation

log = structlog.get_logger()

#: Seconds for which what was read of the rules is taken for what they are, in a start.
RECENT: Final = 1.0
#: Chains of others that are named in a log line.
NAMED: Final = 5


class NftablesFilter:
    """A ``PacketFilter``: one table with the sets and rules of all families.

    ``beside_kube_proxy``: what there is of kube-proxy's other modes is in use, and no concern of ours.
    """

    #: The map gives marks whole.
    spells_marks = False

    def __init__(
        self,
        sets: Sets,
        settings: Mapping[Family, Masquerading],
        generation: Generation,
        netfilter: NetlinkSocket,
        *,
        beside_kube_proxy: bool = False,
    ) -> None:
        self.sets = sets
        self._settings: Mapping[Family, Masquerading] = dict(settings)
        #: The settings that the rules of the generation that is known follow.
        self._followed: Mapping[Family, Masquerading] | None = None
        self._generation = generation
        self._netfilter = netfilter
        self._beside_kube_proxy = beside_kube_proxy
        self._forms: Forms = AS_WRITTEN
        self._unread: Blocks | None = None
        self._seen: Blocks | None = None
        self._seen_until = 0.0
        self._writes = 0
        self._others: list[str] = []
        self._lock = Lock()
        sets.make = self._make_lengths
        self._wanted()

    def ensure(self) -> list[str]:
        """Make sure that the table and all sets exist; return the names of those that were missing."""
        if self.sets.is_unchanged():
            return []
        unfit = self.sets.unfit()
        if not unfit:
            return []
        with self._lock:
            if any(unfit.values()):
                self._carry_out(payload(self._wanted(), self._listed(), forms=self._forms))
            else:
                blocks = set_blocks(self._settings, self.sets.lengths)
                self._carry_out(text_of({name: lines for name, lines in blocks.items() if name.split()[1] in unfit}))
        return list(unfit)

    def missing(self) -> list[str]:
        """Return the names of the sets that ``ensure`` would make."""
        return list(self.sets.unfit())

    def read(self) -> dict[Role, set[SetEntry]]:
        """Read the members by role; a role whose set is missing, or is of another type, is left out."""
        return self.sets.read()

    def read_changed(self) -> dict[Role, set[SetEntry] | None]:
        """Read the members of all roles if anybody but us has changed any rule or member on the node since then."""
        return self.sets.read_changed()

    def apply(self, operations: Sequence[SetEntryOperation]) -> list[int]:
        """Carry operations out; return for each 0, an errno, or UNKNOWN."""
        return self.sets.apply(operations)

    def describe(self, code: int) -> str:
        """Say what a code of ``apply`` means."""
        return describe(code)

    def name_of(self, role: Role) -> str:
        """Return the name of a role's set in our table."""
        return name_of(role)

    @property
    def settings(self) -> Mapping[Family, Masquerading]:
        """What the rules of each family follow."""
        return self._settings

    def follow(self, settings: Mapping[Family, Masquerading]) -> bool:
        """Have the rules follow other settings; return whether they must be written again."""
        wanted = {family: settings[family] for family in self._settings}
        if wanted == self._settings:
            return False
        # Not under the lock, which a repair may hold for long: what it writes meanwhile is noted with its settings.
        self._settings = wanted
        return True

    def look(self) -> None:
        """Read the table, unless that was done just now."""
        if time.monotonic() > self._seen_until:
            self._seen = self._listed()
            self._seen_until = time.monotonic() + RECENT

    def write(self) -> list[str]:
        """Bring the rules to what they should be, as far as is known from a look of just now; say what was wrong."""
        self.look()
        seen, self._seen, self._seen_until = self._seen, None, 0.0
        with self._lock:
            return self._write(seen or {})

    def drift(self) -> list[str]:
        """Say what is wrong with the rules."""
        return differences(self._wanted(), self._listed(), forms=self._forms)

    def repair(self) -> list[str]:
        """Bring the rules to what they should be, if anybody else has changed any; say what was wrong."""
        with self._lock:
            number = self._number()
            if self._generation.is_verified(number) and self._followed is self._settings:
                self._learn(number)
                return []
            self._note_others()
            settings = self._settings
            findings = self._write(self._listed())
            if findings:
                self._learn(self._number())
            elif self._number() == number:
                self._note_verified(number, settings)
            return findings

    def find_other_modes(self) -> list[str]:
        """Say what kube-proxy left behind in its other modes, or an agent with iptables and ipset."""
        tables = [] if self._beside_kube_proxy else list(_left_by_kube_proxy())
        found = [f"{family.label}: the table of nftables mode" for family in tables]
        return found + predecessors.find_iptables(beside_kube_proxy=self._beside_kube_proxy)

    def remove_other_modes(self) -> list[str]:
        """Take away what ``find_other_modes`` finds; say what it was."""
        findings = self.find_other_modes()
        for family in () if self._beside_kube_proxy else _left_by_kube_proxy():
            delete_kube_proxy_table(family)
        predecessors.remove_iptables(beside_kube_proxy=self._beside_kube_proxy)
        return findings

    def read_predecessor(self) -> dict[Role, set[SetEntry]]:
        """Read by role the members of the ipsets of an agent with iptables, or of kube-proxy's IPVS mode."""
        return predecessors.read_ipsets()

    def writes(self) -> int:
        """Return how many messages and rule sets have been written."""
        return self.sets.traffic.writes + self._writes

    def close(self) -> None:
        """Close the sockets."""
        self.sets.close()
        self._netfilter.close()

    def _wanted(self) -> Blocks:
        return render(self._settings, self.sets.lengths)

    def _note_verified(self, number: int, settings: Mapping[Family, Masquerading]) -> None:
        """Note that the rules of a generation are right for these settings."""
        self._followed = settings
        self._generation.verified(number)

    def _listed(self) -> Blocks:
        return parse(program.read_tables())

    def _number(self) -> int:
        """Return the generation of all rules."""
        return codec.decode_generation(self._netfilter.ask(codec.GET_GENERATION))

    def _write(self, found: Blocks) -> list[str]:
        """Write the table if it is not as it should be; say what was wrong."""
        settings = self._settings
        wanted = render(settings, self.sets.lengths)
        findings = differences(wanted, found, forms=self._forms)
        if findings:
            number = self._number()
            self._carry_out(payload(wanted, found, forms=self._forms))
            if self._number() == following(number):
                # Nobody else wrote in between, so the table is as it was written, however nft prints it.
                self._note_verified(following(number), settings)
                self._unread = wanted
        return findings

    def _note_others(self) -> None:
        """Tell of the chains of others that decide before ours, if they are not those that were told of."""
        found = chains_before_ours(map(codec.decode_chain, self._netfilter.dump(codec.GET_CHAINS)))
        if found != self._others:
            self._others = found
            log.info("chains_before_ours", found=found[:NAMED], count=len(found))

    def _make_lengths(self, wanted: Mapping[Role, set[int]]) -> None:
        """Make the sets for more lengths of prefixes, and the rules that ask for them, in one transaction.

        Where the rules are not written yet, that makes a chain to which nothing leads.
        """
        lengths = {role: known | wanted.get(role, set()) for role, known in self.sets.lengths.items()}
        with self._lock:
            number, settings = self._number(), self._settings
            self._carry_out(replacing(range_blocks(settings, lengths)))
            for role, known in lengths.items():
                self.sets.lengths[role] = known
            known_before = self._generation.is_verified(number) and self._followed is settings
            if known_before and self._number() == following(number):
                self._note_verified(following(number), settings)
                self._unread = render(settings, self.sets.lengths)

    def _carry_out(self, text: str) -> None:
        self._writes += 1
        program.carry_out(text)

    def _learn(self, number: int) -> None:
        """Read once how this nft prints what was written, if all is known of this generation."""
        if self._unread is None or not self._generation.is_verified(number):
            return
        printed = self._listed()
        if self._number() == number:
            forms = printed_forms(self._unread, printed)
            self._unread = None
            if forms and forms != self._forms:
                self._forms = forms
                (_, written), found = next(iter(forms.items()))
                log.info("rules_printed_in_other_form", rules=len(forms), written=written, printed=found)


def open_nftables(settings: Mapping[Family, Masquerading], *, beside_kube_proxy: bool = False) -> NftablesFilter:
    """Open the packet filter of these families; nothing is written yet.

    Raises:
        MissingPiece: if the kernel has no nf_tables, or does not let us use it.
        ValueError: if settings are not for their family.

    """
    generation = Generation()
    sets = Sets(definitions(settings), generation=generation)
    return NftablesFilter(sets, settings, generation, open_netfilter(), beside_kube_proxy=beside_kube_proxy)


class _NoSets:
    """The sets of a node without our table."""

    def __init__(self) -> None:
        self.lengths: dict[Role, set[int]] = {}
        self.make: MakeLengths | None = None


class EmptyNftables(NftablesFilter):
    """The packet filter of a node that has no table; it asks nothing of a kernel, and cannot write."""

    def __init__(self, settings: Mapping[Family, Masquerading]) -> None:
        super().__init__(cast("Sets", _NoSets()), settings, Generation(), cast("NetlinkSocket", None))

    def missing(self) -> list[str]:
        """Return the names of all sets."""
        return [definition.name for definition in definitions(self.settings) if not definition.layout.networks]

    def drift(self) -> list[str]:
        """Say that there is no table."""
        return differences(self._wanted(), {})


class NftablesTraces:
    """The ``Traces`` of it: our table, and those of kube-proxy's nftables mode."""

    def __init__(self, cleaning: Cleaning) -> None:
        """Open the sets; if that fails, ``cleaning`` has the reason. A kernel without nf_tables has none."""
        self._sets: Sets | None = None
        with cleaning.noting(f"the nftables table {TABLE_NAME}"):
            try:
                self._sets = Sets(definitions())
            except MissingPiece:
                return

    def read(self) -> dict[Role, set[SetEntry]]:
        """Read the members by role."""
        return {} if self._sets is None else self._sets.read()

    def remove(self, cleaning: Cleaning, *, kube_proxy: bool, with_sets: bool, dry_run: bool) -> None:
        """Remove the rules, and with them the sets; note what went, and what would not."""
        with cleaning.noting(f"the nftables table {TABLE_NAME}"):
            if has_own_table():
                _remove_own(cleaning, with_sets=with_sets, dry_run=dry_run)
        for family in _left_by_kube_proxy() if kube_proxy else ():
            with cleaning.noting(f"the nftables table kube-proxy of {family.label}"):
                if not dry_run:
                    delete_kube_proxy_table(family)
                cleaning.removed.append(f"the nftables table kube-proxy of {family.label}")

    def close(self) -> None:
        """Close the socket."""
        if self._sets is not None:
            self._sets.close()


def _remove_own(cleaning: Cleaning, *, with_sets: bool, dry_run: bool) -> None:
    if with_sets:
        if not dry_run:
            delete_own_table()
        cleaning.removed.append(f"the nftables table {TABLE_NAME}")
        return
    # The sets say what is ours of what could not be removed.
    removed = 0 if dry_run else delete_own_chains()
    if removed:
        cleaning.removed.append(f"{counted(removed, 'chain')} of the nftables table {TABLE_NAME}")


def _left_by_kube_proxy() -> Iterable[Family]:
    return [family for family in Family if has_kube_proxy_table(family)]
