"""What a new connection meets of others' rules before IPVS has it: steps in words, and whether they end its way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.foreign.rule_text import OUTPUT, PREROUTING
from ipvs_proxy.kernel.filter.foreign.rules import WAYS, Effect, Encounter, destinations, look
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.tables import VirtualServerKey

#: So many rules that end nothing are told.
TOLD: Final = 5
_WORDS: Final = {
    Effect.TAKES: "takes it before the Service",
    Effect.DROPS: "drops it",
    Effect.UNTRACKS: "keeps conntrack off it, so that it is not masqueraded",
    Effect.MARKS: "changes the bits {bits:#x} of its packet mark",
}


class Meeting(NamedTuple):
    """The steps, and what ended the way: ``TAKES``, ``DROPS`` or ``None``."""

    steps: tuple[str, ...] = ()
    end: Effect | None = None


def meet(
    client: bytes | None,
    key: VirtualServerKey,
    *,
    own: bool,
    tables: KernelTables,
    rules: Mapping[str, str],
) -> Meeting:
    """Follow a connection through the rules of others.

    Args:
        client: the packed address that it comes from; ``None`` if that is not certain.
        key: the address, protocol and port that it is for.
        own: whether a process of this node opens it.
        tables: what the kernel holds of ours.
        rules: what ``iptables-save`` prints of the family, by variant of iptables.

    """
    hook = OUTPUT if own else PREROUTING
    known = destinations([key], tables.addresses, tables.entries)
    met: list[tuple[int, str, Encounter]] = []
    steps: list[str] = []
    for variant, saved in rules.items():
        seen = look(saved, known, hook=hook, client=client)
        met += [(WAYS[hook].index((found.table, found.hook)), variant, found) for found in seen.encounters]
        if not seen.complete:
            steps.append(f"there are too many rules of others in {variant} to follow it through all of them")
    for _, variant, found in sorted(met, key=lambda place: place[0]):
        ends = found.sure and found.effect in {Effect.TAKES, Effect.DROPS}
        if ends or len(steps) < TOLD:
            words = _WORDS[found.effect].format(bits=found.bits)
            certainty = "" if found.sure else ", if all that it asks for is so"
            steps.append(f"a rule of others in {found.table} {found.hook} ({variant}) {words}{certainty}: {found.rule}")
        if ends:
            return Meeting(tuple(steps), found.effect)
    return Meeting(tuple(steps))
