"""One rule of iptables, as ``iptables-save`` prints it, asked about new connections to Services.

Pure. A rule is read into what it says of destination, protocol and ports, which can be decided for a Service's address,
and into how sure one can be of the rest. What is not understood makes a rule unsure, never an error. The meanings are
those of iptables-extensions(8).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, NamedTuple

from ipvs_proxy.plan.tables import Protocol, SetEntry, VirtualServerKey

PREROUTING: Final = "PREROUTING"
INPUT: Final = "INPUT"
OUTPUT: Final = "OUTPUT"

#: ``-m comment`` with a text in quotes, or in one word.
_COMMENT: Final = re.compile(r' -m comment --comment ("(?:[^"\\]|\\.)*"|\S+)')
_NUMBERS: Final = {protocol.name.lower(): int(protocol) for protocol in Protocol}
_ALL_PORTS: Final = ("0", "65535")
#: The options of no importance to which connections a rule is about.
_SILENT: Final = frozenset({"-A", "--comment", "--return-nomatch"})

Network = IPv4Network | IPv6Network


class Question(NamedTuple):
    """What is asked: in which hook, and about which client (packed; ``None`` for any)."""

    hook: str
    client: bytes | None = None


@dataclass(slots=True, kw_only=True)
class ParsedRule:
    """What a rule says.

    ``never`` is whether no new connection to a local address can match, ``sure`` whether nothing but the fields here
    decides, and ``blind`` whether the destination depends on what is not known here. Ports are inclusive ranges.
    """

    text: str
    target: str = ""
    goto: bool = False
    arguments: tuple[str, ...] = ()
    never: bool = False
    sure: bool = True
    blind: bool = False
    destination: tuple[Network, bool] | None = None
    source: tuple[Network, bool] | None = None
    protocol: tuple[int, bool] | None = None
    ports: tuple[tuple[tuple[int, int], ...], bool] | None = None
    comes_in_by: tuple[str, bool] | None = None
    leaves_by_lo: bool | None = None
    from_local: bool | None = None
    sets: list[tuple[str, str, bool]] = field(default_factory=list)

    @property
    def is_about_all(self) -> bool:
        """Whether all destinations are the same to this rule."""
        return self.destination is None and self.protocol is None and self.ports is None and not self.sets

    def only_address(self) -> bytes | None:
        """Return the one address that the rule is about, if it is one."""
        if self.destination is None or self.destination[1]:
            return None
        network = self.destination[0]
        return network.network_address.packed if network.prefixlen == network.max_prefixlen else None

    def only_ports(self) -> list[int] | None:
        """Return the few ports that the rule is about, if they are few."""
        if self.ports is None or self.ports[1] or sum(last - first for first, last in self.ports[0]) > 100:
            return None
        return [port for first, last in self.ports[0] for port in range(first, last + 1)]

    def is_for(self, key: VirtualServerKey, members: Mapping[str, Collection[SetEntry]]) -> bool:
        """Return whether a destination fits; ``members`` are those of the sets that are known."""
        if self.protocol is not None and (self.protocol[0] in {0, key.protocol}) is self.protocol[1]:
            return False
        if self.ports is not None:
            inside = any(first <= key.port <= last for first, last in self.ports[0])
            if inside is self.ports[1]:
                return False
        if self.destination is not None and _is_in(key.address, self.destination[0]) is self.destination[1]:
            return False
        return all(_has(members[name], directions, key) is not negated for name, directions, negated in self.sets)

    def applies(self, question: Question) -> bool | None:
        """Return whether it is about the client and the hook; ``None`` if that is not known."""
        if self.never or not self._fits_hook(outgoing=question.hook == OUTPUT):
            return False
        sure = self.sure and (self.comes_in_by is None or self.comes_in_by == ("lo", True))
        if self.source is not None:
            if question.client is None:
                return None
            if _is_in(question.client, self.source[0]) is self.source[1]:
                return False
        return True if sure else None

    def _fits_hook(self, *, outgoing: bool) -> bool:
        """Return whether interfaces allow it: the node's own connections to its addresses leave through ``lo``."""
        if outgoing:
            return self.comes_in_by is None and self.leaves_by_lo is not False and self.from_local is not False
        return self.comes_in_by != ("lo", False) and self.leaves_by_lo is None and not self.from_local


def _is_in(address: bytes, network: Network) -> bool:
    size = network.max_prefixlen // 8
    shift = network.max_prefixlen - network.prefixlen
    return len(address) == size and (int.from_bytes(address, "big") >> shift == int(network.network_address) >> shift)


def _has(entries: Collection[SetEntry], directions: str, key: VirtualServerKey) -> bool:
    entry = SetEntry(key.address) if directions == "dst" else SetEntry(*key[:3])
    return entry in entries or SetEntry(port=key.port) in entries


def parse_rule(text: str, known_sets: Collection[str] = ()) -> ParsedRule:
    """Read a rule. Of sets only those in ``known_sets`` can be decided."""
    rule = ParsedRule(text=text)
    for negated, option, values in _options(_COMMENT.sub("", text)):
        if option in {"-j", "-g"}:
            rule.target, rule.goto, rule.arguments = values[0] if values else "", option == "-g", tuple(values[1:])
        elif rule.target:
            rule.arguments += (option, *values)
        elif option == "--match-set":
            _read_set(rule, negated, values, known_sets)
        elif option in _READERS and values:
            try:
                _READERS[option](rule, negated, values)
            except ValueError:
                rule.sure = False
        elif option in {"-f", "--limit-iface-in"}:
            # New connections are no fragments; an address of our link is on no interface that packets come in by.
            rule.never |= not negated
        elif option == "--syn":
            rule.never |= negated
        elif option not in _SILENT:
            rule.sure = False
    return rule


def _options(text: str) -> Iterator[tuple[bool, str, list[str]]]:
    negated, option, values = False, "", list[str]()
    negates_next = False
    for word in text.split():
        if word == "!":
            negates_next = True
        elif word.startswith("-"):
            if option:
                yield negated, option, values
            negated, option, values, negates_next = negates_next, word, [], False
        else:
            values.append(word)
    if option:
        yield negated, option, values


def _read_set(rule: ParsedRule, negated: bool, values: list[str], known_sets: Collection[str]) -> None:
    name, directions = (*values, "", "")[:2]
    if name in known_sets and directions in {"dst", "dst,dst"}:
        rule.sets.append((name, directions, negated))
        return
    rule.sure = False
    rule.blind |= "dst" in directions


def _read_module(rule: ParsedRule, _: bool, values: list[str]) -> None:
    # No socket of the node has a connection that is new, unless it listens at that very address.
    rule.never |= values[0] == "socket"


def _read_protocol(rule: ParsedRule, negated: bool, values: list[str]) -> None:
    name = values[0]
    number = _NUMBERS.get(name, int(name) if name.isascii() and name.isdigit() else 255)
    rule.protocol = (0 if name == "all" else number, negated)


def _read_destination(rule: ParsedRule, negated: bool, values: list[str]) -> None:
    rule.destination = ip_network(values[0], strict=False), negated


def _read_source(rule: ParsedRule, negated: bool, values: list[str]) -> None:
    rule.source = ip_network(values[0], strict=False), negated


def _read_ports(rule: ParsedRule, negated: bool, values: list[str]) -> None:
    ranges = []
    for part in values[0].split(","):
        first, colon, last = part.partition(":")
        low, high = (first or _ALL_PORTS[0], (last or _ALL_PORTS[1]) if colon else first)
        ranges.append((int(low), int(high)))
    rule.ports = tuple(ranges), negated


def _read_in_interface(rule: ParsedRule, negated: bool, values: list[str]) -> None:
    rule.comes_in_by = values[0], negated


def _read_out_interface(rule: ParsedRule, negated: bool, values: list[str]) -> None:
    rule.leaves_by_lo = (values[0] in {"lo", "lo+", "+"}) is not negated


def _read_destination_type(rule: ParsedRule, negated: bool, values: list[str]) -> None:
    rule.never |= ("LOCAL" in values[0].split(",")) is negated


def _read_source_type(rule: ParsedRule, negated: bool, values: list[str]) -> None:
    if "LOCAL" in values[0].split(","):
        rule.from_local = not negated
    else:
        rule.sure = False


def _read_state(rule: ParsedRule, negated: bool, values: list[str]) -> None:
    rule.never |= ("NEW" in values[0].split(",")) is negated


def _read_flags(rule: ParsedRule, negated: bool, values: list[str]) -> None:
    looked_at, wanted = (set(value.split(",")) - {"NONE"} for value in values[:2])
    shown = {"SYN"} if looked_at & {"SYN", "ALL"} else set()
    rule.never |= (shown == wanted) is negated


_READERS: Final[Mapping[str, Callable[[ParsedRule, bool, list[str]], None]]] = {
    "-m": _read_module,
    "-p": _read_protocol,
    "-d": _read_destination,
    "-s": _read_source,
    "-i": _read_in_interface,
    "-o": _read_out_interface,
    "--dport": _read_ports,
    "--dports": _read_ports,
    "--dst-type": _read_destination_type,
    "--src-type": _read_source_type,
    "--ctstate": _read_state,
    "--state": _read_state,
    "--tcp-flags": _read_flags,
}
