"""The rules of other programs that a new connection meets before IPVS, in words, and whether one ends its path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ipvs_proxy.kernel.filter.foreign.rule_text import OUTPUT, PREROUTING
from ipvs_proxy.kernel.filter.foreign.rules import WAYS, Effect, Encounter, destinations, look
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.tables import VirtualServerKey

#: At most this many rules that do not end the path are reported.
TOLD: Final = 5
_WORDS: Final = {
    Effect.TAKES: "takes it before the Service",
    Effect.DROPS: "drops it",
    Effect.UNTRACKS: "keeps conntrack off it, so that it is not masqueraded",
    Effect.MARKS: "changes the bits {bits:#x} of its packet mark",
}


class Meeting(NamedTuple):
    """The steps in words, and what ended the path: ``TAKES``, ``DROPS``, or ``None`` if nothing did."""

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
    """Follow a connection through the rules of other programs.

    Args:
        client: packed source address of the connection; ``None`` if it is not certain.
        key: its destination address, protocol and port.
        own: whether a process on this node opens it.
        tables: the agent's objects in the kernel.
        rules: the output of ``iptables-save`` for the address family, by variant of iptables.

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
