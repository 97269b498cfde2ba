"""Which rules of others come between clients and Services, for ``ipvs-proxy doctor``. Pure.

Thousands of rules may do the same to thousands of Services: they are counted, and one of them is quoted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.foreign.rule_text import INPUT
from ipvs_proxy.kernel.filter.foreign.rules import WAYS, Effect, Encounter, destinations, look
from ipvs_proxy.kernel.filter.iptables.chains import SERVICES
from ipvs_proxy.node.inventory import Inventory
from ipvs_proxy.plan.tables import VirtualServerKey, family_of

#: At most this many findings are reported for the rules of one family in one variant.
TOLD: Final = 3

#: For each effect: what many rules do, what one of them does, what follows from it, and what to do about it.
_WORDS: Final = {
    Effect.TAKES: (
        "take",
        "takes",
        "before the Service gets it",
        "append it, not insert it (iptables -A), or exclude Services (portmap of CNI: conditionsV4, conditionsV6)",
    ),
    Effect.DROPS: ("drop", "drops", "whoever asks", "take it away, or have it leave Services' addresses alone"),
    Effect.UNTRACKS: (
        "keep conntrack off",
        "keeps conntrack off",
        "so that nothing is masqueraded, and answers may get lost",
        "have it leave Services' addresses alone",
    ),
    Effect.MARKS: (
        "change the packet mark on the way to",
        "changes the packet mark on the way to",
        "after ours: clients in the cluster may get no or other endpoints where externalTrafficPolicy is Local",
        "put it in front of our jump (iptables -t mangle -I), or have it leave Services' addresses alone",
    ),
}


#: A rule for the answers of a server (NodeLocal DNSCache has such): nobody knows the port that a client will have.
_FOR_ANSWERS: Final = re.compile(r"(?<! !) --(sports?|source-ports?) ")


class Interference(NamedTuple):
    """Rules of others with one effect on Services, as a sentence, and the remedy."""

    table: str
    effect: Effect
    text: str
    remedy: str


@dataclass(slots=True)
class _Group:
    example: Encounter
    rules: set[str] = field(default_factory=set)
    hooks: set[str] = field(default_factory=set)
    keys: set[VirtualServerKey] = field(default_factory=set)

    def sentence(self, where: str) -> str:
        many, one, consequence, _ = _WORDS[self.example.effect]
        number = len(self.rules)
        subject = f"a rule of others {one}" if number == 1 else f"{number:,} rules of others {many}"
        more = "" if len(self.keys) == 1 else f" and {len(self.keys) - 1:,} more ports of Services"
        hooks = " and ".join(hook for hook in (*WAYS, INPUT) if hook in self.hooks)
        return f"{hooks} ({where}): {subject} {min(self.keys)}{more} {consequence}: {self.example.rule}"


def interferences(found: Inventory) -> Iterator[Interference]:
    """Return what of others' rules keeps connections from Services, the worst first for each family and variant."""
    marked = any(key.mark for key in found.served)
    for (family, variant), saved in found.rules.items():
        keys = [key for key in found.served if not key.mark and family_of(key.address) is family]
        known = destinations(keys, found.tables.addresses, found.tables.entries)
        looks = [look(saved, known, hook=hook) for hook in WAYS] if keys else []
        encounters = [
            encounter for seen in looks for encounter in seen.encounters if _counts(encounter, found, marked=marked)
        ]
        groups = _grouped(encounters)
        where = f"{family.label}, {variant}"
        for group in groups[:TOLD]:
            effect = group.example.effect
            yield Interference(group.example.table, effect, group.sentence(where), _WORDS[effect][-1])
        if not all(seen.complete for seen in looks):
            text = f"there are too many rules of others ({where}) to look at all of them"
            yield Interference("rules", Effect.MARKS, text, "iptables-save shows them")
        elif len(groups) > TOLD:
            text = f"{len(groups) - TOLD} more kinds of rules of others ({where}) are in the way of Services"
            yield Interference("rules", Effect.MARKS, text, "iptables-save shows them")


def _counts(encounter: Encounter, found: Inventory, *, marked: bool) -> bool:
    """Return whether an encounter is a finding.

    It is none if the rule may be meant for other addresses or is for answers, or drops what only some clients send.
    kube-proxy's rules count only where they are not left over.
    """
    if (
        encounter.blind
        or _FOR_ANSWERS.search(encounter.rule)
        or (encounter.effect is Effect.DROPS and not encounter.sure)
    ):
        return False
    if encounter.effect is Effect.MARKS and not marked:
        return False
    # Our table of nftables decides about connections to Services before the nat table of iptables is asked.
    if found.table and encounter.table == "nat":
        return False
    # What kube-proxy has left in the variant that is not in use is a finding of its own.
    return found.beside or SERVICES not in encounter.through


def _grouped(encounters: Iterable[Encounter]) -> list[_Group]:
    groups: dict[tuple[Effect, str, str], _Group] = {}
    for encounter in encounters:
        lead = encounter.through[0] if encounter.through else encounter.rule.split(" ", 2)[-1]
        group = groups.setdefault((encounter.effect, encounter.table, lead), _Group(encounter))
        group.rules.add(encounter.rule)
        group.hooks.add(encounter.hook)
        group.keys.update(encounter.keys)
    order = list(Effect)
    return sorted(groups.values(), key=lambda group: order.index(group.example.effect))
