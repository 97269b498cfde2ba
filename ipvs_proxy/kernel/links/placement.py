"""Which virtual servers' addresses are addresses of the link, and which ones have only a local route to it.

What attracts packets is the local route that the kernel makes for an address (``fib_add_ifaddr``). For each IPv4
address the kernel walks all others of the link, twice when it is added and once when it is deleted
(``find_matching_ifa``, ``__inet_insert_ifa``, ``inet_rtm_deladdr``), and afterwards all of the network namespace
(``check_lifetime``): 50,000 of them take a hundred times what routes take. So the link gets at most ``most`` IPv4
addresses, and beyond that the route is made alone. For IPv4 it does the same: packets arrive, and programs can bind to
it and have it as the source of their connections.

IPv6 addresses are always addresses. There a route alone does not do: programs cannot bind to what is no address, a
connection from the node gets another source, and a link that is down can have no route.

What is there stays as it is: nothing is turned from one into the other, because it would be gone meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final

from ipvs_proxy.plan.tables import AddressOperation, Verb

#: How many IPv4 addresses the link gets: more than most clusters have Services, and little work for the kernel.
MOST_ADDRESSES: Final = 4096
_IPV4: Final = 4


class Place(Enum):
    """What there is of an address of a virtual server."""

    ADDRESS = "address"
    ROUTE = "route"


class Placement:
    """What there is of IPv4. ``addresses`` and ``routes`` are packed; an address may have both, by somebody's hand."""

    def __init__(self, most: int, addresses: Iterable[bytes] = (), routes: Iterable[bytes] = ()) -> None:
        self.addresses = {address for address in addresses if len(address) == _IPV4}
        self.routes = set(routes)
        self._most = most

    def places(self, operation: AddressOperation) -> list[Place]:
        """Return what is to be added or deleted: where the address is already, else where it should be."""
        verb, address = operation.verb, operation.address
        found = [place for place in Place if address in self._set(place)]
        if found:
            return found if verb is Verb.DELETE else found[:1]
        full = len(address) == _IPV4 and len(self.addresses) >= self._most
        return [Place.ROUTE if full and verb is Verb.ADD else Place.ADDRESS]

    def note(self, address: bytes, place: Place, *, present: bool) -> None:
        """Note that something is there, or is not."""
        if len(address) == _IPV4:
            (self._set(place).add if present else self._set(place).discard)(address)

    def _set(self, place: Place) -> set[bytes]:
        return self.addresses if place is Place.ADDRESS else self.routes
