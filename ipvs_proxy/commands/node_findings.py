"""What a node's inventory says, in the words that ``doctor`` and ``migrate check`` share. Pure.

A finding is a fact, in fields. What it means is for each command to say: one has a level for each kind of finding, the
other a standing.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from typing import Final, NamedTuple

from ipvs_proxy.commands.text import several, wrapped
from ipvs_proxy.kernel.filter.backend import NFTABLES
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
    IPVS_MODE = auto()
    """Beside a kube-proxy: there are rules of its IPVS mode, whose sets have the names of ours."""
    NO_KUBE_PROXY = auto()
    """Beside a kube-proxy: there is none that serves the other Services."""
    CLEARED = auto()
    """Beside a kube-proxy: it clears IPVS away at each start."""


class Finding(NamedTuple):
    """A fact of the node. ``topic`` is a word or two; ``remedy`` is what to do about it, empty if nothing is."""

    kind: Kind
    topic: str
    text: str
    remedy: str = ""


def find(found: Inventory, *, beside: bool = False) -> Iterator[Finding]:
    """Return what both commands have to say of a node, in the order of ``Kind``.

    ``beside``: the agent serves only some Services, beside a kube-proxy in another mode.
    """
    for problem in found.missing:
        yield Finding(Kind.MISSING_PIECE, "kernel", *problem)
    for family, reason in found.unsupported.items():
        yield Finding(Kind.FAMILY_NOT_SERVED, family.label, f"is not served on this node: {reason}")
    for problem in found.flaws:
        yield Finding(Kind.FLAW, "kernel", *problem)
    used = "" if found.iptables is None else found.iptables.backend
    # A start with nftables takes both away.
    others = () if beside or found.packet_filter == NFTABLES else (*found.iptables_mode, *found.ipvs_mode)
    for variant in sorted({variant for _, variant in others} - {used}):
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
    if beside:
        yield from _find_beside(found)


def _find_beside(found: Inventory) -> Iterator[Finding]:
    for (family, variant), number in found.ipvs_mode.items():
        yield Finding(
            Kind.IPVS_MODE,
            "IPVS mode",
            f"the {family} rules in {variant} have {several(number, 'chain')} of kube-proxy's IPVS mode, or of an "
            "agent without --service-proxy-name: beside one that has it, the mode must be iptables or nftables",
            "take kube-proxy off this node, run ipvs-proxy cleanup, and let kube-proxy start again in another mode",
        )
    if not found.iptables_mode and not found.nftables_mode:
        yield Finding(
            Kind.NO_KUBE_PROXY,
            "kube-proxy",
            "has no rules of its iptables or nftables mode here: nobody serves the Services without the label",
            "run kube-proxy in one of these modes, or ipvs-proxy without --service-proxy-name",
        )
    if found.nftables_mode:
        yield Finding(
            Kind.CLEARED,
            "kube-proxy",
            "in nftables mode it clears IPVS away at each of its starts: our Services are back at once, but their "
            "open connections are lost",
            "keep it from loading ip_vs: take the volume lib-modules out of its DaemonSet (see the migration page)",
        )


def finding_text(start: str, text: str, remedy: str, *, width: int) -> str:
    """Write a finding after ``start``, and its remedy, if there is one, below the text; at most ``width`` columns."""
    lines = wrapped(text, start=start, width=width)
    return lines + (wrapped(f"-> {remedy}", start=" " * len(start), width=width) if remedy else "")
