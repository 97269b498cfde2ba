"""Packet marks: how clients in the cluster get other endpoints than clients outside.

A virtual server has one list of real servers. With ``externalTrafficPolicy: Local`` two are needed: local endpoints for
clients outside the cluster, all endpoints for clients in it (Kubernetes documentation, "Traffic policies"). So such a
service port gets a second virtual server, known to the kernel by a packet mark instead of an address. A set maps every
address and port of the service port to its mark, and one rule gives the mark to packets of clients in the cluster,
before IPVS looks for a virtual server: it looks for the mark first (``ip_vs_service_find`` of the kernel).

A mark of ours is ``CLASS`` (one bit) with a number and a protocol below it, and nothing above. Packets carry it on
their way to IPVS and out of the node. Lower bits than ``CLASS`` are the ones that network plugins leave alone (Calico
and Cilium use the upper 16, kubelet bits 14 and 15).

Numbers are given out in turn and not soon again, so that what the kernel remembers of a mark does not meet another
Service. An agent that starts goes on with the marks that the set holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from ipvs_proxy.plan.endpoints import PortKey
from ipvs_proxy.plan.tables import Family, Protocol, SetEntry, VirtualServerKey

#: The bit that all our marks have.
CLASS: Final = 1 << 13
#: The bits by which a mark of ours is told from others: all from ``CLASS`` up.
CLASS_MASK: Final = 0xFFFF_FFFF & ~(CLASS - 1)

_PROTOCOLS: Final = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
_PROTOCOL_BITS: Final = 2
_NUMBERS: Final = CLASS >> _PROTOCOL_BITS


class Marks:
    """Gives out marks to ports of Services.

    ``masquerade_bit`` is the bit of the packet mark that asks for masquerading: no mark has it. There are 2,047
    numbers, half of them if that bit is below ``CLASS``, and none if it is ``CLASS`` or one of the two lowest.
    """

    def __init__(self, masquerade_bit: int = 14) -> None:
        # Number 0 stays free, so that no mark is the bare bit, which others may use.
        self._usable = [
            number
            for number in range(1, _NUMBERS)
            if not any(_mark(number, protocol) & 1 << masquerade_bit for protocol in _PROTOCOLS)
        ]
        self._held: dict[tuple[str, str], dict[PortKey, int]] = {}
        self._taken: set[int] = set()
        self._found: dict[tuple[bytes, int, int], int] = {}
        self._next = 0

    def restore(self, entries: Iterable[SetEntry]) -> None:
        """Take note of the marks that an earlier agent gave to addresses and ports."""
        for address, protocol, port, _, _, mark in entries:
            number = _number(mark)
            if number in self._usable:
                self._found[address, protocol, port] = number

    def forget_restored(self) -> None:
        """Make the marks of an earlier agent that nobody has claimed available: all Services have been planned."""
        self._found.clear()

    def assign(self, service: tuple[str, str], port: PortKey, addresses: Iterable[VirtualServerKey]) -> int | None:
        """Give the mark of a port of a Service, the same one every time; ``None`` if there is none left.

        ``service`` is its namespace and name. ``addresses`` are the virtual servers that the mark stands in for: they
        tell which mark it had before a restart.
        """
        held = self._held.setdefault(service, {})
        number = held.get(port)
        if number is None:
            number = self._restored(addresses) or self._free()
            if number is None:
                return None
            held[port] = number
            self._taken.add(number)
        return _mark(number, port.protocol)

    def keep(self, service: tuple[str, str], ports: Collection[PortKey]) -> None:
        """Take back what a Service holds for other ports than these."""
        held = self._held.get(service, {})
        for port in held.keys() - ports:
            self._taken.discard(held.pop(port))
        if not held:
            self._held.pop(service, None)

    def _restored(self, addresses: Iterable[VirtualServerKey]) -> int | None:
        for address, protocol, port, _ in addresses:
            number = self._found.get((address, protocol, port))
            if number is not None and number not in self._taken:
                return number
        return None

    def _free(self) -> int | None:
        taken = self._taken.union(self._found.values())
        for offset in range(len(self._usable)):
            number = self._usable[(self._next + offset) % len(self._usable)]
            if number not in taken:
                self._next = (self._next + offset + 1) % len(self._usable)
                return number
        return None


def mark_key(mark: int, family: Family) -> VirtualServerKey:
    """Give the key of the virtual server of a mark of ours."""
    protocol = _PROTOCOLS[(mark & 3) - 1] if is_ours(mark) else Protocol.TCP
    return VirtualServerKey(bytes(4 if family is Family.IPV4 else 16), protocol, 0, mark)


def is_ours(mark: int) -> bool:
    """Tell whether a mark is one that this agent, or one before it, gave out."""
    return mark & CLASS_MASK == CLASS and bool(mark & 3) and bool(_number(mark))


def _mark(number: int, protocol: Protocol) -> int:
    return CLASS | number << _PROTOCOL_BITS | _PROTOCOLS.index(protocol) + 1


def _number(mark: int) -> int:
    return (mark & (CLASS - 1)) >> _PROTOCOL_BITS if mark & CLASS_MASK == CLASS else 0
