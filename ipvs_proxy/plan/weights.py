"""The weight of an endpoint: how many of the new connections of its Service it gets, next to the others.

A weight is the product of two numbers, each of them 1 where nobody gives it:

* that of the endpoint's EndpointSlice, by ``ipvs-proxy.io/weight``, else by Cilium's ``service.cilium.io/weight``: how
  implementations of the Gateway API split the traffic of a Service among several backends;
* that of the rule in the Service's annotation ``ipvs-proxy.io/weights`` that says most about where the endpoint is: the
  rule for its node, else for its zone, else for this agent's own node (``local``), else for all others (``*``).

So 0 from either keeps new connections away. The weights that the kernel gets have the same proportions: they are
scaled down where the largest is above what IPVS takes, and no weight but 0 becomes 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from ipvs_proxy.kube.objects import EndpointSlice
from ipvs_proxy.plan.tables import ACTIVE, RealServer

#: The largest weight that ipvsadm(8) takes, and Cilium's annotation, too.
MAX_WEIGHT: Final = 65_535
#: The largest threshold of connections (a signed 32-bit integer in the kernel's ``ip_vs_dest``).
MAX_CONNECTIONS: Final = 2**31 - 1
#: Annotations of an EndpointSlice, the first that is there counts.
SLICE_WEIGHTS: Final = ("ipvs-proxy.io/weight", "service.cilium.io/weight")
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
    name = next((name for name in SLICE_WEIGHTS if name in annotations), None) if annotations else None
    if annotations is None or name is None:
        return None
    text = annotations[name]
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


def real_servers_of(weights: Iterable[int], *, factor: int, upper: int, lower: int) -> Callable[[int], RealServer]:
    """Return what turns the weight of an endpoint into the settings of its real server.

    ``weights`` are those of all endpoints of the port, which are multiplied by ``factor`` and scaled down if the
    largest is then above ``MAX_WEIGHT``; ``upper`` and ``lower`` are the thresholds of connections, 0 for none.
    """
    largest = max(weights, default=1) * factor
    settings: dict[int, RealServer] = {}

    def real_server(weight: int) -> RealServer:
        found = settings.get(weight)
        if found is None:
            scaled = weight * factor
            if largest > MAX_WEIGHT and weight:
                scaled = max(1, scaled * MAX_WEIGHT // largest)
            made = RealServer(scaled, upper_threshold=upper, lower_threshold=lower)
            # Nearly all are this one, and where all are the same object much is faster.
            found = settings[weight] = ACTIVE if made == ACTIVE else made
        return found

    return real_server


def _is_place(place: str) -> bool:
    kind, _, name = place.partition("=")
    if kind == "node":
        return bool(_NODE.fullmatch(name))
    return place in {LOCAL, OTHERS} or (kind == "zone" and bool(_ZONE.fullmatch(name)))


def _named(found: Mapping[str, int], kind: str) -> dict[str, int]:
    return {place.removeprefix(kind): weight for place, weight in found.items() if place.startswith(kind)}
