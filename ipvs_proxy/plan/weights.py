"""The weight of an endpoint: how many of the new connections of its Service it gets, next to the others.

A weight is the product of two numbers, each of them 1 where nobody gives it:

* that of the endpoint's EndpointSlice, by ``ipvs-proxy.io/weight``, else by Cilium's ``service.cilium.io/weight``: how
  implementations of the Gateway API split the traffic of a Service among several backends;
* that of the rule in the Service's annotation ``ipvs-proxy.io/weights`` that says most about where the endpoint is: the
  rule for its node, else for its zone, else for this agent's own node (``local``), else for all others (``*``).

So 0 from either keeps new connections away. The weights that the kernel gets have the same proportions: they are
scaled down where the largest is above what IPVS takes, or where a scheduler's table has no room for all of them, and no
weight but 0 becomes 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from math import gcd
from types import MappingProxyType
from typing import Final, NamedTuple

from ipvs_proxy.kube.objects import SLICE_WEIGHTS, EndpointSlice
from ipvs_proxy.plan.tables import ACTIVE, RealServer

#: The largest weight that ipvsadm(8) takes, and Cilium's annotation, too.
MAX_WEIGHT: Final = 65_535
#: The largest threshold of connections (a signed 32-bit integer in the kernel's ``ip_vs_dest``).
MAX_CONNECTIONS: Final = 2**31 - 1
#: The schedulers that fill a table of so many slots, going round: each endpoint gets as many as its weight in a turn.
#: One that finds the table full gets no connection ever (``IP_VS_SH_TAB_SIZE`` and ``IP_VS_MH_TAB_SIZE`` in
#: net/netfilter/ipvs, with the defaults of the kernel's configuration).
SLOTS: Final = MappingProxyType({"sh": 256, "mh": 4_093})
#: Rules that one Service may have.
MAX_RULES: Final = 1_000
#: Characters that they may have together: as many as that take with the longest names of nodes.
_MAX_LENGTH: Final = MAX_RULES * 270
#: A node's name is a DNS subdomain, a zone's is the value of a label (Kubernetes documentation, "Object Names and IDs",
#: "Labels and Selectors").
_NODE: Final = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_ZONE: Final = re.compile(r"[A-Za-z0-9](?:[-\w.]{0,61}[A-Za-z0-9])?", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,10}", re.ASCII)

LOCAL: Final = "local"
OTHERS: Final = "*"


class Weights(NamedTuple):
    """The rules of a Service: a weight by name of node, by name of zone, for this node, and for all other endpoints."""

    nodes: Mapping[str, int] = {}
    zones: Mapping[str, int] = {}
    local: int | None = None
    others: int | None = None

    @property
    def any_unequal(self) -> bool:
        """Whether any rule has another weight than 1."""
        return any(weight != 1 for _, weight in self.rules())

    def rules(self) -> list[tuple[str, int]]:
        """Return all rules as they are written, the most specific first."""
        rules = [(f"node={name}", weight) for name, weight in sorted(self.nodes.items())]
        rules += [(f"zone={name}", weight) for name, weight in sorted(self.zones.items())]
        named = ((LOCAL, self.local), (OTHERS, self.others))
        return rules + [(name, weight) for name, weight in named if weight is not None]

    def rule_for(self, node: str | None, zone: str | None, *, local: bool) -> tuple[str, int]:
        """Return the rule for an endpoint, and its weight: "" and 1 if there is none."""
        if node is not None and node in self.nodes:
            return f"node={node}", self.nodes[node]
        if zone is not None and zone in self.zones:
            return f"zone={zone}", self.zones[zone]
        if local and self.local is not None:
            return LOCAL, self.local
        return ("", 1) if self.others is None else (OTHERS, self.others)


#: No rules.
EQUAL: Final = Weights()


def read_weights(text: str) -> Weights:
    """Read rules such as ``node=edge-1:0, zone=eu-1a:3, local:10, *:1``.

    Raises:
        ValueError: if it has no rule, more than ``MAX_RULES``, two for the same place, or one that cannot be read.

    """
    written = [rule.strip() for rule in text.split(",", MAX_RULES)] if len(text) <= _MAX_LENGTH else []
    found: dict[str, int] = {}
    for rule in written:
        place, _, number = rule.rpartition(":")
        place = place.rstrip()
        if place in found or not _is_place(place):
            raise ValueError(f"a rule for {place!r} cannot be read, or there are two")
        found[place] = read_number(number, at_most=MAX_WEIGHT)
    if not 0 < len(found) <= MAX_RULES:
        raise ValueError(f"there are from 1 to {MAX_RULES:,} rules")
    return Weights(_named(found, "node="), _named(found, "zone="), found.get(LOCAL), found.get(OTHERS))


def write_weights(weights: Weights) -> str:
    """Return rules as a text that ``read_weights`` reads."""
    return ", ".join(f"{place}:{weight}" for place, weight in weights.rules())


def read_number(text: str, *, at_most: int) -> int:
    """Read a whole number that is not negative. Raises ValueError for anything else."""
    digits = text.strip() if len(text) <= 100 else ""
    if not _NUMBER.fullmatch(digits) or int(digits) > at_most:
        raise ValueError(f"it is not a whole number from 0 to {at_most:,}")
    return int(digits)


def slice_weight(piece: EndpointSlice) -> int | None:
    """Return the weight that an EndpointSlice gives its endpoints; ``None`` without one.

    Raises:
        ValueError: if it cannot be read. The message has the name of the annotation and its text.

    """
    annotations = piece.metadata.annotations
    if annotations is None:
        return None
    found = zip(SLICE_WEIGHTS, (annotations.weight, annotations.cilium_weight), strict=True)
    name, text = next(((name, text) for name, text in found if text is not None), ("", None))
    if text is None:
        return None
    try:
        return read_number(text, at_most=MAX_WEIGHT)
    except ValueError:
        raise ValueError(f"annotation {name} {text}") from None


@lru_cache(maxsize=4096)
def explain_weight(rule: str, weight: int, of_slice: int | None) -> str:
    """Say where a weight comes from: ``zone=eu-1a:3``, ``EndpointSlice:90``, both, or "" if nobody gives it."""
    parts = [f"{rule}:{weight}"] if rule else []
    if of_slice is not None:
        parts.append(f"EndpointSlice:{of_slice}")
    return ", ".join(parts)


def real_servers_of(
    counted: Mapping[int, int], *, factor: int, scheduler: str, upper: int, lower: int
) -> Mapping[int, RealServer]:
    """Return the settings of the real servers whose endpoints have each weight.

    ``counted`` says how many endpoints of the port have it. All weights are multiplied by ``factor``, and scaled down
    for what ``scheduler`` and the kernel take. ``upper`` and ``lower`` are the thresholds of connections, 0 for none.
    """
    slots = SLOTS.get(scheduler)
    scaled = _scaled(counted, factor) if slots is None else _fitted(counted, factor, slots)
    made = {weight: RealServer(number, upper_threshold=upper, lower_threshold=lower) for weight, number in scaled}
    # Nearly all are this one, and where all are the same object much is faster.
    return {weight: ACTIVE if settings == ACTIVE else settings for weight, settings in made.items()}


def _scaled(counted: Iterable[int], factor: int) -> Iterator[tuple[int, int]]:
    """Return each weight with its number for the kernel."""
    largest = max(counted, default=1) * factor
    for weight in counted:
        number = weight * factor
        yield weight, max(1, number * MAX_WEIGHT // largest) if weight and largest > MAX_WEIGHT else number


def _fitted(counted: Mapping[int, int], factor: int, slots: int) -> Iterator[tuple[int, int]]:
    """Return each weight with its number of slots in a turn: in lowest terms, and no more than there are altogether.

    Every endpoint has one slot at least, one with weight 0 too; what is left is shared out by what they want beyond it.
    """
    divisor = gcd(*counted) or 1
    turns = {weight: weight // divisor * factor for weight in counted}
    spare = max(0, slots - sum(counted.values()))
    wanted = sum((turn - 1) * counted[weight] for weight, turn in turns.items() if turn)
    for weight, turn in turns.items():
        yield weight, 1 + (turn - 1) * spare // wanted if turn and wanted > spare else turn


def _is_place(place: str) -> bool:
    kind, _, name = place.partition("=")
    if kind == "node":
        return bool(_NODE.fullmatch(name))
    return place in {LOCAL, OTHERS} or (kind == "zone" and bool(_ZONE.fullmatch(name)))


def _named(found: Mapping[str, int], kind: str) -> dict[str, int]:
    return {place.removeprefix(kind): weight for place, weight in found.items() if place.startswith(kind)}
