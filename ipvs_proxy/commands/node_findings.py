"""What a node's inventory says, in the words that ``doctor`` and ``migrate check`` share. Pure.

A finding is a fact, in fields. What it means is for each command to say: one has a level for each kind of finding, the
other a standing.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from typing import Final, NamedTuple

from ipvs_proxy.commands.text import several, wrapped
from ipvs_proxy.node.inventory import Inventory

#: At most this many foreign virtual servers are named.
_NAMED: Final = 5


class Kind(Enum):
    """What a finding is about."""

    MISSING_PIECE = auto()
    """A piece that the agent needs is missing, occupied or broken."""
    FAMILY_NOT_SERVED = auto()
    """This node cannot serve IPv4, or IPv6."""
    FLAW = auto()
    """All pieces are there, and traffic may be kept from flowing all the same."""
    RULES_IN_OTHER_VARIANT = auto()
    """kube-proxy has left rules in the variant of iptables that the agent does not use."""
    FOREIGN_VIRTUAL_SERVERS = auto()
    """There are virtual servers that are not ours, and stay."""


class Finding(NamedTuple):
    """A fact of the node. ``topic`` is a word or two; ``remedy`` is what to do about it, empty if nothing is."""

    kind: Kind
    topic: str
    text: str
    remedy: str = ""


def find(found: Inventory) -> Iterator[Finding]:
    """Return what both commands have to say of a node, in the order of ``Kind``."""
    for problem in found.missing:
        yield Finding(Kind.MISSING_PIECE, "kernel", *problem)
    for family, reason in found.unsupported.items():
        yield Finding(Kind.FAMILY_NOT_SERVED, family.label, f"is not served on this node: {reason}")
    for problem in found.flaws:
        yield Finding(Kind.FLAW, "kernel", *problem)
    used = "" if found.iptables is None else found.iptables.backend
    for variant in sorted({variant for _, variant in (*found.iptables_mode, *found.ipvs_mode)} - {used}):
        yield Finding(
            Kind.RULES_IN_OTHER_VARIANT,
            "iptables",
            f"kube-proxy has rules in {variant}, beside {used}, which is in use: both are in effect",
            "run ipvs-proxy cleanup --kube-proxy while neither agent nor kube-proxy runs here",
        )
    if found.foreign:
        number, more = len(found.foreign), len(found.foreign) - _NAMED
        names = ", ".join(found.foreign[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        text = f"{several(number, 'virtual server')} of others, which {'stays' if number == 1 else 'stay'}: {names}"
        yield Finding(Kind.FOREIGN_VIRTUAL_SERVERS, "others", text)


def finding_text(start: str, text: str, remedy: str, *, width: int) -> str:
    """Write a finding after ``start``, and its remedy, if there is one, below the text; at most ``width`` columns."""
    lines = wrapped(text, start=start, width=width)
    return lines + (wrapped(f"-> {remedy}", start=" " * len(start), width=width) if remedy else "")
