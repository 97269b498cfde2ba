"""The packet filter of this run: ``RING_PACKET_FILTER`` says which one the agent is to use, ``iptables`` by default.

Tests do not say which one it is. What they ask the tools of the host (``ipset``, ``nft``) they ask through here, and
get it in the words of ``ipset save``, with the names of the ipsets: those are what a reader knows from a node.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from ipvs_proxy.kernel.filter.ipset.names import name_of as ipset_of
from ipvs_proxy.kernel.filter.nftables.names import TABLE, definitions
from lab.topology import Topology

IPTABLES, NFTABLES = "iptables", "nftables"
CHOSEN = os.environ.get("RING_PACKET_FILTER") or IPTABLES
#: Whether the kernel has neither iptables nor ipset, as far as it could be told to have none.
WITHOUT_IPTABLES = bool(os.environ.get("RING_WITHOUT_IPTABLES"))
#: What the agent is told, which by itself would go by what is on the node.
FLAGS = ("--packet-filter", CHOSEN)

#: From the names of our nftables sets to those of the ipsets.
_IPSETS = {definition.name: ipset_of(definition.role) for definition in definitions()}


def saved_sets(net: Topology) -> list[str]:
    """Return the members of all sets on the node, as ``ipset save`` prints them: ``add KUBE-NODE-PORT-TCP 30080``."""
    if CHOSEN == IPTABLES:
        return [line for line in net.run("node", "ipset", "save").splitlines() if line.startswith("add ")]
    listed = json.loads(net.run("node", "nft", "--json", "list", "ruleset"))["nftables"]
    return [line for item in listed for kind, found in item.items() for line in _members(kind, found)]


def saved_rules(net: Topology) -> tuple[str, ...]:
    """Return all rules on the node as its tools print them, without members of sets and counts of packets."""
    if CHOSEN == NFTABLES:
        return (net.run("node", "nft", "--stateless", "--terse", "list", "ruleset"),)
    return tuple(_without_counters(net.run("node", program)) for program in ("iptables-save", "ip6tables-save"))


def _without_counters(text: str) -> str:
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return "\n".join(line.split(" [")[0] if line.startswith(":") else line for line in lines)


def _members(kind: str, found: dict[str, Any]) -> Iterator[str]:
    """Return the members of a set or map of our table as lines."""
    if kind not in {"set", "map"} or found["table"] != TABLE:
        return
    name, _, length = found["name"].partition("/")
    for element in found.get("elem", ()):
        key, mark = element if kind == "map" else (element, None)
        parts = [str(part) for part in (key["concat"] if isinstance(key, dict) else [key])]
        # An address, then protocol and port with a colon in between, then a source.
        texts = [parts[0], ":".join(parts[1:3]), *parts[3:]] if len(parts) > 2 else parts
        if length and int(length) < ip_address(parts[3]).max_prefixlen:
            texts[-1] += f"/{length}"
        end = "" if mark is None else f" skbmark {mark:#x}"
        yield f"add {_IPSETS[name]} {','.join(texts)}{end}"
