"""What rules of others do to new connections on their way to Services, before IPVS has them.

Pure: the text that ``iptables-save`` prints goes in. A table is walked as a packet walks it, from a hook through all
chains that can be reached, but with the addresses of all Services at once: each rule narrows them down. In nat our own
chain accepts what is a Service's, so connections meet only the rules in front of the jump to it; those behind it meet
only node ports. A second table of the same hook, that of the other variant of iptables, is met whatever ours has
accepted (``nf_nat_inet_fn`` of the kernel). In mangle, only rules behind our own can change the mark that ours set.

The work is bounded, because there may be any number of rules: see ``BUDGET``. Rules of nftables proper are not read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple, TypeVar

from ipvs_proxy.kernel.filter.foreign.rule_text import INPUT, OUTPUT, PREROUTING, ParsedRule, Question, parse_rule
from ipvs_proxy.kernel.filter.ipset.names import name_of
from ipvs_proxy.kernel.filter.iptables.chains import SERVICES, SERVICES_BESIDE
from ipvs_proxy.kernel.filter.iptables.saved import SavedTable, parse
from ipvs_proxy.plan.tables import Role, SetEntry, VirtualServerKey

#: At most this many rules, and comparisons of a rule with a destination, are made for one look: about a second.
BUDGET: Final = 1_000_000
#: Jumps are followed to this depth; nf_tables has 16 levels.
DEPTH: Final = 32
#: Characters of a rule that are quoted at most.
QUOTED: Final = 200

#: The way to IPVS, by the hook that a connection begins in: table and chain.
WAYS: Final = {
    PREROUTING: (("raw", PREROUTING), ("mangle", PREROUTING), ("nat", PREROUTING), ("mangle", INPUT)),
    OUTPUT: (("raw", OUTPUT), ("mangle", OUTPUT), ("nat", OUTPUT)),
}
_OURS: Final = "IPVS-PROXY-"
#: A rule of ours that gives marks, or that lets only what gets one go on.
_GIVES_MARKS: Final = re.compile(r" --map-mark\b| --match-set IPVS-PROXY-\S*INTERNAL dst,dst -j RETURN$")
_IPVS_MODE: Final = "--match-set KUBE-"
_TAKING: Final = frozenset({"DNAT", "REDIRECT", "NETMAP", "TPROXY"})
_HEX: Final = re.compile(r"0x[0-9a-fA-F]+|\d+")
ALL_BITS: Final = 0xFFFF_FFFF

K = TypeVar("K")


class Effect(StrEnum):
    """What a rule does to a connection."""

    TAKES = "takes"
    DROPS = "drops"
    UNTRACKS = "untracks"
    MARKS = "marks"


@dataclass(slots=True, kw_only=True)
class Encounter:
    """A rule of others that destinations meet.

    ``rule`` is its text, shortened, and ``through`` the chains that lead to it. ``sure`` is whether all new connections
    of the question meet it, as far as can be told; ``blind`` whether their destination is not known. ``bits`` are
    those of the packet mark that it changes.
    """

    effect: Effect
    table: str
    hook: str
    rule: str
    through: tuple[str, ...] = ()
    keys: tuple[VirtualServerKey, ...] = ()
    sure: bool = True
    blind: bool = False
    bits: int = 0


class Destinations(NamedTuple):
    """Where Services are: the virtual servers, the addresses of our link, and the members of our sets by name."""

    keys: Sequence[VirtualServerKey]
    addresses: Collection[bytes]
    members: Mapping[str, Collection[SetEntry]]


def destinations(
    keys: Sequence[VirtualServerKey], addresses: Collection[bytes], entries: Mapping[Role, Collection[SetEntry]]
) -> Destinations:
    """Return where Services are; rules of others refer to our members by the names of their ipsets."""
    return Destinations(keys, addresses, {name_of(role): members for role, members in entries.items()})


@dataclass(slots=True)
class Look:
    """What was found in the rules of one variant and family; ``complete`` unless the budget was used up."""

    encounters: list[Encounter] = field(default_factory=list)
    complete: bool = True


class _Candidates:
    """Destinations, found by address or port without looking at all of them."""

    def __init__(self, keys: Sequence[VirtualServerKey]) -> None:
        self.keys = keys
        self._by_address: dict[bytes, list[VirtualServerKey]] | None = None
        self._by_port: dict[int, list[VirtualServerKey]] | None = None

    def near(self, rule: ParsedRule) -> Sequence[VirtualServerKey]:
        """Return those that may fit."""
        if len(self.keys) < 4:
            return self.keys
        address = rule.only_address()
        if address is not None:
            if self._by_address is None:
                self._by_address = _grouped((key.address, key) for key in self.keys)
            return self._by_address.get(address, ())
        ports = rule.only_ports()
        if ports is not None:
            if self._by_port is None:
                self._by_port = _grouped((key.port, key) for key in self.keys)
            return [key for port in ports for key in self._by_port.get(port, ())]
        return self.keys


def _grouped(pairs: Iterable[tuple[K, VirtualServerKey]]) -> dict[K, list[VirtualServerKey]]:
    found: dict[K, list[VirtualServerKey]] = {}
    for group, key in pairs:
        found.setdefault(group, []).append(key)
    return found


class _SpentError(Exception):
    """The budget is used up."""


class _Way(NamedTuple):
    """How a chain was reached: through which chains, whether for sure, and whether by a set that is not known."""

    through: tuple[str, ...] = ()
    sure: bool = True
    blind: bool = False


_START: Final = _Way()
_NO_TABLE: Final = SavedTable()


class _Walk:
    """One table's chains, walked from one hook. ``past_ours`` is whether our rules that give marks have been met."""

    def __init__(
        self, table: str, chains: dict[str, list[str]], question: Question, known: Destinations, *, past_ours: bool
    ) -> None:
        self.found: list[Encounter] = []
        self.past_ours = past_ours
        self.spent = 0
        self._decided: set[VirtualServerKey] = set()
        self._table = table
        self._chains = chains
        self._question = question
        self._known = known
        self._parsed: dict[str, ParsedRule] = {}

    def visit(self, chain: str, candidates: _Candidates, way: _Way = _START) -> None:
        """Walk a chain with what gets there."""
        gone: set[VirtualServerKey] = set()
        for text in self._chains.get(chain, ()):
            if not candidates.keys:
                return
            rule = self._rule(text)
            applies = rule.applies(self._question)
            matching = () if applies is False else self._matching(rule, candidates, gone)
            if not matching:
                continue
            within = candidates if len(matching) == len(candidates.keys) else _Candidates(matching)
            self._act(rule, within, _Way(way.through, way.sure and bool(applies), way.blind or rule.blind))
            if applies and (rule.target == "RETURN" or rule.goto):
                gone.update(matching)
            if len(matching) * 2 >= len(candidates.keys) and (gone or self._decided):
                self._spend(len(candidates.keys))
                left = [key for key in candidates.keys if key not in gone and key not in self._decided]
                candidates = candidates if len(left) == len(candidates.keys) else _Candidates(left)

    def _rule(self, text: str) -> ParsedRule:
        self._spend(1)
        rule = self._parsed.get(text)
        if rule is None:
            rule = self._parsed[text] = parse_rule(text, self._known.members)
        return rule

    def _spend(self, amount: int) -> None:
        self.spent += amount
        if self.spent > BUDGET:
            raise _SpentError

    def _matching(
        self, rule: ParsedRule, candidates: _Candidates, gone: Collection[VirtualServerKey]
    ) -> Sequence[VirtualServerKey]:
        if rule.is_about_all and not gone and not self._decided:
            return candidates.keys
        near = candidates.near(rule)
        self._spend(len(near))
        members, decided = self._known.members, self._decided
        return [key for key in near if key not in decided and key not in gone and rule.is_for(key, members)]

    def _act(self, rule: ParsedRule, within: _Candidates, way: _Way) -> None:
        target = rule.target
        if self._is_ours(target):
            self.past_ours |= any(_GIVES_MARKS.search(text) for text in self._chains[target])
            if target in {SERVICES, SERVICES_BESIDE}:
                self._decided.update(key for key in within.keys if key.address in self._known.addresses)
        elif target in self._chains:
            if len(way.through) < DEPTH:
                self.visit(target, within, way._replace(through=(*way.through, target)))
        elif target in {"ACCEPT", "DROP"} or target in _TAKING:
            if target != "ACCEPT":
                self._note(Effect.DROPS if target == "DROP" else Effect.TAKES, rule, within, way)
            if way.sure:
                self._decided.update(within.keys)
        elif target == "NOTRACK" or (target == "CT" and "--notrack" in rule.arguments):
            self._note(Effect.UNTRACKS, rule, within, way)
        elif self.past_ours and changed_bits(target, rule.arguments):
            self._note(Effect.MARKS, rule, within, way)

    def _is_ours(self, target: str) -> bool:
        if target == SERVICES:
            return any(_IPVS_MODE in text for text in self._chains.get(target, ()))
        return target.startswith(_OURS) and target in self._chains

    def _note(self, effect: Effect, rule: ParsedRule, within: _Candidates, way: _Way) -> None:
        self.found.append(
            Encounter(
                effect=effect,
                table=self._table,
                hook=self._question.hook,
                rule=rule.text if len(rule.text) <= QUOTED else f"{rule.text[:QUOTED]}...",
                through=way.through,
                keys=tuple(within.keys),
                sure=way.sure,
                blind=way.blind,
                bits=changed_bits(rule.target, rule.arguments),
            )
        )


def changed_bits(target: str, arguments: Sequence[str]) -> int:
    """Return which bits of the packet mark a target changes; 0 for none."""
    options = dict(pairwise(arguments))
    if target == "CONNMARK" and "--restore-mark" in arguments:
        return _number(options.get("--nfmask") or options.get("--mask"), ALL_BITS)
    if target != "MARK":
        return 0
    for option in ("--set-xmark", "--set-mark", "--or-mark", "--xor-mark", "--and-mark"):
        if option in options:
            value, _, mask = options[option].partition("/")
            if option == "--and-mark":
                return ALL_BITS & ~_number(value, 0)
            whole = 0 if option in {"--or-mark", "--xor-mark"} else ALL_BITS
            return _number(value, 0) | _number(mask, whole)
    return 0


def _number(text: str | None, default: int) -> int:
    return int(text, 0) & ALL_BITS if text and _HEX.fullmatch(text) else default


def look(saved: str, known: Destinations, *, hook: str, client: bytes | None = None) -> Look:
    """Return what new connections to Services meet, in the order of the way, in one variant's rules of one family.

    ``hook`` is where they begin: ``PREROUTING`` for those that come in, ``OUTPUT`` for the node's own. ``client`` is a
    packed address, or ``None`` for all. What is dropped or taken goes no further. All changes of the packet mark that
    come before our own rules are left out: ours replace it.
    """
    result = Look()
    tables = parse(saved)
    keys, spent = known.keys, 0
    past_ours = not any(name.startswith(_OURS) for name in tables.get("mangle", _NO_TABLE).chains)
    for table, chain in WAYS[hook]:
        walk = _Walk(table, tables.get(table, _NO_TABLE).chains, Question(chain, client), known, past_ours=past_ours)
        walk.spent = spent
        try:
            walk.visit(chain, _Candidates(keys))
        except _SpentError:
            result.complete = False
            result.encounters += walk.found
            break
        result.encounters += walk.found
        spent, past_ours = walk.spent, walk.past_ours
        ends = [found for found in walk.found if found.sure and found.effect in {Effect.TAKES, Effect.DROPS}]
        gone = {key for encounter in ends for key in encounter.keys}
        keys = [key for key in keys if key not in gone] if gone else keys
    return result
