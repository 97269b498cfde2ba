"""Packet marks: how clients in the cluster get other endpoints than clients outside.

**The invariant: a mark of ours is on a packet only between our rule and IPVS, in one run through one hook.** The mark
of a packet belongs to everybody: rules route by it, other rules replace it, and tunnels hand it on to the packet that
they wrap around it. That outer packet would come to IPVS as if it were for the Service, and be balanced, wrapped and
balanced again until the kernel's stack ends.

Marks are needed because a virtual server has one list of real servers, and ``externalTrafficPolicy: Local`` wants two:
local endpoints for clients outside the cluster, all endpoints for clients in it (Kubernetes documentation, "Traffic
policies"). So such a service port gets a second virtual server, known to the kernel by a packet mark instead of an
address: IPVS looks for one by the whole mark first (``ip_vs_service_find`` of the kernel), and by the address only if
there is none.

What keeps the invariant:

* Only the first packet of a connection gets a mark. Later ones are known to IPVS by their addresses and ports.
* It comes as late as the hooks allow, when the packet has been routed. In LOCAL_IN (pods): the ``INPUT`` chain of the
  mangle table, where ``INTERNAL`` maps an address and port to the mark. In LOCAL_OUT (the node's own): the ``OUTPUT``
  chain of the nat table, right before IPVS and the last that others could write to. In mangle ``OUTPUT``, the kernel
  would route the packet again by its new mark; outside the mangle table, a set cannot map
  (``set_target_v3_checkentry``). So the number is put together bit by bit there, from one set for each bit. nftables
  has a chain of its own for each of these places, and a map that gives the mark whole in both.
* It goes in the first chain after IPVS: raw ``OUTPUT``. If the packet needs an address of the node, the masquerade mark
  takes its place, as always of the first packet only, and ``KUBE-POSTROUTING`` takes that back. What IPVS delivers on
  the node itself loses it in nat ``INPUT`` or, if the node sent it, in mangle ``POSTROUTING``.
* A mark that looks like ours and comes from elsewhere is taken off before IPVS, at both of its hooks. So it does not
  matter what others restore, save, route by or wrap.

What others put on a packet between our rule and IPVS (in filter ``INPUT``: Calico for its policies, kube-router) stays,
because their policies go by it. IPVS finds no virtual server by such a mark and takes that of the address, so the
client gets the endpoints that clients outside get; ``doctor`` names such rules.

There is no way without marks. Another address behind DNAT does not go with IPVS that keeps conntrack, as it must for
masquerading: it writes the real server into the connection, and from the second packet on DNAT sends past IPVS. Without
conntrack, by rewriting packets, ICMP errors are lost. Schedulers and persistence do not see who asks.

A mark is ``CLASS`` (one bit) with a number and a protocol below it, and nothing above. The lowest free numbers go
first. A number that was given back rests until some others have come back, so that what the kernel remembers of it does
not meet another Service. A Service and a namespace can only have a part of all numbers; who has one keeps it. An agent
that starts goes on with the marks that the set holds.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from heapq import heapify, heappop, heappush
from typing import Final

from ipvs_proxy.plan import roles
from ipvs_proxy.plan.endpoints import PortKey
from ipvs_proxy.plan.roles import Roles
from ipvs_proxy.plan.tables import Family, Protocol, Role, SetEntry, SetEntryOperation, Verb, VirtualServerKey

#: The bit that all our marks have.
CLASS_BIT: Final = 13
CLASS: Final = 1 << CLASS_BIT
#: The bits by which a mark of ours is told from others: all from ``CLASS`` up.
CLASS_MASK: Final = 0xFFFF_FFFF & ~(CLASS - 1)
#: How many numbers one Service can have, and all Services of one namespace, of 2,047.
SERVICE_SHARE: Final = 512
NAMESPACE_SHARE: Final = 1024
#: How many numbers rest at most before they are given out again.
RESTING: Final = 64

#: The two lowest bits of a mark.
PROTOCOL_BITS: Final = {Protocol.TCP: 1, Protocol.UDP: 2, Protocol.SCTP: 3}
_PROTOCOLS: Final = {bits: protocol for protocol, bits in PROTOCOL_BITS.items()}
_NUMBERS: Final = CLASS >> 2


class Marks:
    """Gives out marks to ports of Services: 2,047 numbers, or none if the masquerade bit is ``CLASS_BIT``."""

    def __init__(self, masquerade_bit: int = 14) -> None:
        # Number 0 stays free, so that no mark is the bare bit, which others may use.
        self._usable = range(1, 1 if masquerade_bit == CLASS_BIT else _NUMBERS)
        self._held: dict[tuple[str, str], dict[PortKey, int]] = {}
        self._taken: set[int] = set()
        self._by_namespace: Counter[str] = Counter()
        self._found: dict[tuple[bytes, int, int], int] = {}
        self._resting: deque[int] = deque()
        self._pool: list[int] = []
        self._fill_pool()

    def restore(self, entries: Iterable[SetEntry]) -> None:
        """Take note of the marks that an earlier agent gave to addresses and ports."""
        for address, protocol, port, _, _, mark in entries:
            number = _number(mark)
            if number in self._usable:
                self._found[address, protocol, port] = number
        self._fill_pool()

    def forget_restored(self) -> None:
        """Make the marks of an earlier agent that nobody has claimed available: all Services have been planned."""
        self._found.clear()
        self._fill_pool()

    def assign(self, service: tuple[str, str], port: PortKey, addresses: Iterable[VirtualServerKey]) -> int | None:
        """Return the mark of a port of a Service, the same one every time; ``None`` if it cannot have one (any more).

        ``service`` is its namespace and name. ``addresses`` are the virtual servers that the mark stands in for: they
        tell which mark it had before a restart.
        """
        held = self._held.setdefault(service, {})
        number = held.get(port)
        if number is None:
            number = self._restored(addresses) or self._next(service[0], len(held))
            if number is None:
                return None
            held[port] = number
            self._taken.add(number)
            self._by_namespace[service[0]] += 1
        return _mark(number, port.protocol)

    def keep(self, service: tuple[str, str], ports: Collection[PortKey]) -> None:
        """Take back what a Service holds for other ports than these."""
        held = self._held.get(service)
        if held is None:
            return
        for port in held.keys() - ports:
            self._give_back(held.pop(port))
            self._by_namespace[service[0]] -= 1
        if not held:
            self._held.pop(service, None)
        if not self._by_namespace[service[0]]:
            del self._by_namespace[service[0]]

    def _restored(self, addresses: Iterable[VirtualServerKey]) -> int | None:
        for address, protocol, port, _ in addresses:
            number = self._found.get((address, protocol, port))
            if number is not None and number not in self._taken:
                return number
        return None

    def _next(self, namespace: str, held: int) -> int | None:
        if held >= SERVICE_SHARE or self._by_namespace[namespace] >= NAMESPACE_SHARE:
            return None
        if self._pool:
            return heappop(self._pool)
        return self._resting.popleft() if self._resting else None

    def _give_back(self, number: int) -> None:
        self._taken.discard(number)
        self._resting.append(number)
        if len(self._resting) > RESTING:
            heappush(self._pool, self._resting.popleft())

    def _fill_pool(self) -> None:
        kept = {*self._taken, *self._found.values(), *self._resting}
        self._pool = [number for number in self._usable if number not in kept]
        heapify(self._pool)


def mark_key(mark: int, family: Family) -> VirtualServerKey:
    """Return the key of the virtual server of a mark of ours."""
    protocol = _PROTOCOLS[mark & 3] if is_ours(mark) else Protocol.TCP
    return VirtualServerKey(bytes(4 if family is Family.IPV4 else 16), protocol, 0, mark)


def is_ours(mark: int) -> bool:
    """Return whether a mark is one that this agent, or one before it, gave out."""
    return mark & CLASS_MASK == CLASS and bool(mark & 3) and bool(_number(mark))


def spelling(mark: int) -> list[Roles]:
    """Return the roles of the bits that a mark of ours has: its addresses and ports are members in each."""
    return [of_bit for bit, of_bit in roles.MARK_BITS.items() if mark & bit]


def corrections(entries: Mapping[Role, Collection[SetEntry]]) -> list[SetEntryOperation]:
    """Return what makes the sets of bits right for the marks in ``entries``, which has members by their roles.

    An agent of an earlier version, or one that was killed in between, may have left marks without their bits.
    """
    operations = []
    for family in Family:
        for entry in entries.get(roles.INTERNAL[family], ()):
            bare = entry._replace(mark=0)
            for bit, of_bit in roles.MARK_BITS.items():
                wanted = bool(entry.mark & bit)
                if wanted != (bare in entries.get(of_bit[family], ())):
                    operations.append(SetEntryOperation(Verb.ADD if wanted else Verb.DELETE, of_bit[family], bare))
    return operations


def _mark(number: int, protocol: Protocol) -> int:
    return CLASS | number << 2 | PROTOCOL_BITS[protocol]


def _number(mark: int) -> int:
    return (mark & (CLASS - 1)) >> 2 if mark & CLASS_MASK == CLASS else 0
