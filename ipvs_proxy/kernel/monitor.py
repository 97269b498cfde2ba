"""Notices at once when the dummy link or its addresses change.

The kernel tells every change of links and addresses to whoever listens; this module keeps what concerns one link. It
reports our own changes too, because for IPv6 the kernel does not say whose a change is: the listener compares an event
with what it believes, when no write of its own is under way. If the kernel had to drop notifications, that is an event
of its own: everything has to be read again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from enum import Enum
from errno import EAGAIN, ENOBUFS
from typing import Final, NamedTuple

from ipvs_proxy.kernel.address_codec import (
    DELETE_ADDRESS,
    DELETE_LINK,
    NEW_ADDRESS,
    NEW_LINK,
    decode_address,
    decode_link,
)
from ipvs_proxy.kernel.addresses import LINK, find_link
from ipvs_proxy.kernel.netlink import Data, MalformedMessage, Overrun, parse
from ipvs_proxy.kernel.socket import NETLINK_ROUTE, NetlinkSocket, open_socket

#: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR of linux/rtnetlink.h.
_GROUPS: Final = 0x1 | 0x10 | 0x100
#: Some 10,000 notifications: what it takes to delete a link with as many addresses.
_RECEIVE_BUFFER: Final = 16 * 1024 * 1024
_DATAGRAM: Final = 64 * 1024
#: Datagrams read in one go, so that a flood does not hold up the event loop.
_DATAGRAMS: Final = 256


class Change(Enum):
    """What happened."""

    LINK_ADDED = "link_added"
    LINK_REMOVED = "link_removed"
    ADDRESS_ADDED = "address_added"
    ADDRESS_REMOVED = "address_removed"
    #: Notifications were lost: read everything again.
    LOST = "lost"


class Event(NamedTuple):
    """A change to the link; ``address`` is packed, and empty unless the change is one of an address."""

    change: Change
    address: bytes = b""


class Monitor:
    """Listens from the moment it is made, in the network namespace of the thread that makes it.

    A link that is replaced gives LINK_REMOVED and LINK_ADDED; the addresses that go with a link may or may not get
    events of their own.

    Raises:
        OSError: if the kernel refuses the subscription.

    """

    def __init__(self, link: str = LINK) -> None:
        self._link = link
        # First listen, then look: nothing is missed in between.
        self._socket = open_socket(NETLINK_ROUTE, receive_buffer=_RECEIVE_BUFFER, groups=_GROUPS)
        self._socket.setblocking(False)
        self._buffer = bytearray(_DATAGRAM)
        self._ifindex = 0
        self._look_up()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def read(self) -> list[Event]:
        """Give the events that have happened so far, without waiting.

        Raises:
            OSError: if the socket is dead.
            MalformedMessage: if notifications were lost and the kernel's answer about the link is garbage.

        """
        events: list[Event] = []
        for _ in range(_DATAGRAMS):
            try:
                length, (port, _) = self._socket.recvfrom_into(self._buffer, 0, socket.MSG_TRUNC)
            except OSError as error:
                if error.errno == EAGAIN:
                    break
                if error.errno != ENOBUFS:
                    raise
                self._lose(events)
                continue
            if port == 0:
                self._take(bytes(memoryview(self._buffer)[:length]), events)
        return events

    async def __aiter__(self) -> AsyncIterator[list[Event]]:
        """Give the events as they happen, those that come together in one list, until the socket fails or is closed."""
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

    def _take(self, datagram: bytes, events: list[Event]) -> None:
        try:
            for message in parse(datagram):
                if isinstance(message, Overrun):
                    self._lose(events)
                elif isinstance(message, Data):
                    event = self._event(message)
                    if event is not None:
                        events.append(event)
        except MalformedMessage:
            self._lose(events)

    def _event(self, message: Data) -> Event | None:
        if message.type in {NEW_ADDRESS, DELETE_ADDRESS}:
            ifindex, address, _ = decode_address(message.payload)
            if ifindex != self._ifindex:
                return None
            return Event(Change.ADDRESS_ADDED if message.type == NEW_ADDRESS else Change.ADDRESS_REMOVED, address)
        if message.type == NEW_LINK:
            link = decode_link(message.payload)
            if link.name == self._link and link.ifindex != self._ifindex:
                self._ifindex = link.ifindex
                return Event(Change.LINK_ADDED)
            if link.ifindex == self._ifindex and link.name != self._link:  # renamed
                self._ifindex = 0
                return Event(Change.LINK_REMOVED)
        elif message.type == DELETE_LINK and decode_link(message.payload).ifindex == self._ifindex:
            self._ifindex = 0
            return Event(Change.LINK_REMOVED)
        return None

    def _lose(self, events: list[Event]) -> None:
        self._look_up()
        events.append(Event(Change.LOST))

    def _look_up(self) -> None:
        with NetlinkSocket(NETLINK_ROUTE) as route:
            found = find_link(route, self._link)
        self._ifindex = 0 if found is None else found.ifindex
