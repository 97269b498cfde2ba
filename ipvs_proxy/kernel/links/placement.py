"""On which of our links an address is, and on which one a new address goes.

For each IPv4 address that is added or deleted the kernel walks those of its link (``find_matching_ifa``,
``__inet_insert_ifa``, ``inet_rtm_deladdr``), so all of them on one link take a time that grows with the square of their
number. Hence the first link takes ``room`` IPv4 addresses, and so does each further one.

IPv6 addresses all go on the first link. There the kernel walks those of the whole network namespace for each one that
is added (``addrconf_verify_rtnl``) and its routes for each one that is deleted (``rt6_remove_prefsrc``), on however
many links they are.

What is there stays where it is: nothing is moved from link to link, because an address that is moved is gone meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ipvs_proxy.plan.tables import AddressOperation, Verb

#: The number of the link that is there whatever there is to carry.
FIRST: Final = 0


class Placement:
    """What is on which link. Links go by the number in their names; ``FIRST`` is always among them."""

    def __init__(self, room: int) -> None:
        self._room = room
        #: The link of each address, and further ones that have it too, which nobody but somebody else has done.
        self._links: dict[bytes, int] = {}
        self._more: dict[bytes, list[int]] = {}
        #: By link, in order, the addresses that count: on the first one those of IPv4.
        self._load: dict[int, int] = {FIRST: 0}

    @property
    def empty(self) -> list[int]:
        """The links other than the first that have no address."""
        return [number for number, load in self._load.items() if not load and number != FIRST]

    def open(self, number: int) -> None:
        """Take another link into account."""
        self._load.setdefault(number, 0)
        self._load = dict(sorted(self._load.items()))

    def close(self, number: int) -> None:
        """Forget a link that has no address."""
        del self._load[number]

    def links_of(self, address: bytes) -> Sequence[int]:
        """Return the links that have an address."""
        number = self._links.get(address)
        return () if number is None else (number, *self._more.get(address, ()))

    def choose(self, address: bytes) -> int:
        """Return the link that an address is on, or where it should go; the first one if none has room."""
        number = self._links.get(address)
        if number is not None:
            return number
        if len(address) != 4:
            return FIRST
        return next((number for number, load in self._load.items() if load < self._room), FIRST)

    def lacks_room(self, operations: Sequence[AddressOperation]) -> bool:
        """Return whether the links are too few for what operations add."""
        added = sum(
            verb is Verb.ADD and len(address) == 4 and address not in self._links for verb, address in operations
        )
        return sum(max(0, self._room - load) for load in self._load.values()) < added

    def add(self, address: bytes, number: int) -> None:
        """Note that a link has an address."""
        known = self.links_of(address)
        if number in known:
            return
        if known:
            self._more.setdefault(address, []).append(number)
        else:
            self._links[address] = number
        self._count(address, number, 1)

    def remove(self, address: bytes, number: int) -> None:
        """Note that a link does not have an address."""
        left = list(self.links_of(address))
        if number not in left:
            return
        left.remove(number)
        self._more.pop(address, None)
        if left:
            self._links[address], *more = left
            if more:
                self._more[address] = more
        else:
            del self._links[address]
        self._count(address, number, -1)

    def _count(self, address: bytes, number: int, difference: int) -> None:
        if number != FIRST or len(address) == 4:
            self._load[number] += difference
