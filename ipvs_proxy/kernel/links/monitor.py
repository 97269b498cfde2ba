"""Notices at once when the dummy link or its addresses change, and when the host's own addresses do.

Nothing is missed in silence: the monitor listens before it looks, takes notifications in the order in which the kernel
sent them, and where the kernel had to drop some, looks again and says LOST, which means that everything has to be read
again.

Every change of the dummy link is reported, those that we make too, because for IPv6 the kernel does not say who made
one: the listener compares an event with what it expects, while it writes nothing itself.

Of all other links only one thing is reported, once for what is read together: that the host has another set of
addresses than before. It has not when pods come and go with the link-local addresses of their links, when a network
gives the link of every pod the same gateway address, or when the kernel announces an address again.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from enum import Enum
from errno import EAGAIN, ENOBUFS
from typing import Final, NamedTuple

from ipvs_proxy.kernel.links.addresses import LINK, find_link
from ipvs_proxy.kernel.links.codec import Address
from ipvs_proxy.kernel.links.host_addresses import dump_addresses
from ipvs_proxy.kernel.links.notifications import AddressNotice, LinkNotice, prepare, read_notification
from ipvs_proxy.netlink.socket import NETLINK_ROUTE, NetlinkSocket, open_socket
from ipvs_proxy.netlink.wire import Data, MalformedMessage, Overrun, parse
from ipvs_proxy.plan.node_addresses import is_confined

#: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR of linux/rtnetlink.h.
_GROUPS: Final = 0x1 | 0x10 | 0x100
#: Some 10,000 notifications: what it takes to delete a link with as many addresses.
_RECEIVE_BUFFER: Final = 16 * 1024 * 1024
_DATAGRAM: Final = 64 * 1024
#: Datagrams read in one go. One about a link takes some 150 us, so a flood holds up the event loop for 3 ms at a time.
_DATAGRAMS: Final = 16


class LinkChange(Enum):
    """What happened."""

    LINK_ADDED = "link_added"
    LINK_REMOVED = "link_removed"
    ADDRESS_ADDED = "address_added"
    ADDRESS_REMOVED = "address_removed"
    #: The other links have another set of addresses than before; loopback and IPv6 link-local ones do not count.
    HOST_ADDRESSES_CHANGED = "host_addresses_changed"
    #: Notifications were lost: read everything again.
    LOST = "lost"


class LinkEvent(NamedTuple):
    """A change; ``address`` is packed, and empty unless the change is one of an address of the dummy link."""

    change: LinkChange
    address: bytes = b""


class LinkState:
    """What is known of a dummy link and of the addresses of all links, kept up to date by notifications.

    ``ifindex`` is the dummy link's, 0 if it is missing; ``addresses`` are those of all links.
    """

    def __init__(self, link: str, ifindex: int, addresses: Iterable[Address]) -> None:
        self._link = link
        self._ifindex = ifindex
        self._known: set[tuple[int, bytes]] = set()
        #: Of each address, how many links other than the dummy have it.
        self._count: Counter[bytes] = Counter()
        #: Addresses that the host has now and did not have when it was last asked, or the other way round.
        self._changed: set[bytes] = set()
        for address in addresses:
            self._note(address, added=True)
        self._changed.clear()

    def take(self, notice: AddressNotice | LinkNotice) -> LinkEvent | None:
        """Take a notification in; return what it means for the dummy link, ``None`` if nothing."""
        if isinstance(notice, AddressNotice):
            address, present = notice
            self._note(address, added=present)
            if address.ifindex != self._ifindex:
                return None
            return LinkEvent(LinkChange.ADDRESS_ADDED if present else LinkChange.ADDRESS_REMOVED, address.address)
        ifindex, name, present = notice
        if ifindex == self._ifindex and (not present or name != self._link):  # gone, or renamed
            self._set_link(0)
            return LinkEvent(LinkChange.LINK_REMOVED)
        if present and name == self._link and ifindex != self._ifindex:
            self._set_link(ifindex)
            return LinkEvent(LinkChange.LINK_ADDED)
        return None

    def host_addresses_changed(self) -> bool:
        """Return whether the host's addresses differ from those when this was last called."""
        changed = bool(self._changed)
        self._changed.clear()
        return changed

    def _note(self, address: Address, *, added: bool) -> None:
        known = (address.ifindex, address.address)
        if is_confined(address.address) or (known in self._known) is added:
            return
        (self._known.add if added else self._known.remove)(known)
        if address.ifindex != self._ifindex:
            self._count_link(address.address, 1 if added else -1)

    def _set_link(self, ifindex: int) -> None:
        """Take another link for the dummy: the addresses of the old one are the host's from now on."""
        for owner, address in self._known:
            if owner == self._ifindex:
                self._count_link(address, 1)
            elif owner == ifindex:
                self._count_link(address, -1)
        self._ifindex = ifindex

    def _count_link(self, address: bytes, difference: int) -> None:
        before = self._count[address]
        self._count[address] += difference
        if not before or not self._count[address]:
            self._changed ^= {address}
        if not self._count[address]:
            del self._count[address]


class Monitor:
    """Listens from the moment it is made, in the network namespace of the thread that makes it.

    A link that is replaced is reported as LINK_REMOVED and LINK_ADDED. The addresses that go with a link may or may not
    be reported.

    Raises:
        OSError: if the kernel refuses the subscription or the first look.
        MalformedMessage: if its answer is garbage.

    """

    def __init__(self, link: str = LINK) -> None:
        self._link = link
        # First listen, then look: nothing is missed in between.
        self._socket = open_socket(NETLINK_ROUTE, receive_buffer=_RECEIVE_BUFFER, groups=_GROUPS)
        self._socket.setblocking(False)
        self._buffer = bytearray(_DATAGRAM)
        self._lost = False
        try:
            self._state = self._look()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def read(self) -> list[LinkEvent]:
        """Return the events so far, without waiting.

        Raises:
            OSError: if the socket is dead, or the kernel refuses another look after a loss.
            MalformedMessage: if its answer to that look is garbage.

        """
        events: list[LinkEvent] = []
        for _ in range(_DATAGRAMS):
            try:
                length, (port, _) = self._socket.recvfrom_into(self._buffer, 0, socket.MSG_TRUNC)
            except OSError as error:
                if error.errno == EAGAIN:
                    if self._lost:
                        self._recover(events)
                    break
                if error.errno != ENOBUFS:
                    raise
                self._lost = True
                continue
            if port == 0 and not self._lost:
                self._take(bytes(memoryview(self._buffer)[:length]), events)
        if self._state.host_addresses_changed():
            events.append(LinkEvent(LinkChange.HOST_ADDRESSES_CHANGED))
        return events

    async def follow(self) -> AsyncGenerator[list[LinkEvent], None]:
        """Return the events as they come, those that come together in one list, until the socket fails or is closed."""
        # In a thread: the loop goes on meanwhile.
        await asyncio.to_thread(prepare)
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._socket, readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                if events := self.read():
                    yield events
        finally:
            loop.remove_reader(self._socket)

    def _take(self, datagram: bytes, events: list[LinkEvent]) -> None:
        try:
            for message in parse(datagram):
                if isinstance(message, Overrun):
                    self._lost = True
                elif isinstance(message, Data):
                    notice = read_notification(message)
                    event = None if notice is None else self._state.take(notice)
                    if event is not None:
                        events.append(event)
        except MalformedMessage:
            self._lost = True

    def _recover(self, events: list[LinkEvent]) -> None:
        """Look anew after a loss.

        What was still queued has been thrown away: it is older than what is seen here, and would undo it.
        """
        self._state = self._look()
        self._lost = False
        events.append(LinkEvent(LinkChange.LOST))

    def _look(self) -> LinkState:
        with NetlinkSocket(NETLINK_ROUTE) as route:
            found = find_link(route, self._link)
            return LinkState(self._link, 0 if found is None else found.ifindex, dump_addresses(route))
