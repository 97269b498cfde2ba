"""Where this agent's connections to the API server lead: its addresses, or those of a proxy before it.

Only the sockets know for sure: a name has several addresses and changes them, and a proxy may come from the
environment. So the sockets are made here, and each address is known before the first packet goes there.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from aiohttp import AddrInfoType

#: Seconds for which an address counts after its last connection has ended: a name may lead there again.
REMEMBERED: Final = 3600.0
#: So many addresses are remembered; the one that was used longest ago goes first.
LIMIT: Final = 64
#: Seconds between two looks at which connections have been over for so long.
INTERVAL: Final = 60.0
_MAPPED: Final = bytes(10) + b"\xff\xff"


class Peer(NamedTuple):
    """The other end of a TCP connection; the address is packed."""

    address: bytes
    port: int


class Peers:
    """The other ends of a client's connections, those of the last hour too. ``tried`` is set with each new one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.tried = asyncio.Event()
        self._clock = clock
        self._sockets: WeakKeyDictionary[socket.socket, Peer] = WeakKeyDictionary()
        self._used: dict[Peer, float] = {}

    def open(self, info: AddrInfoType) -> socket.socket:
        """Make the socket of a connection that is tried now.

        Raises:
            OSError: if there can be none.

        """
        family, kind, protocol, _, (host, port, *_) = info
        opened = socket.socket(family, kind, protocol)
        peer = Peer(_pack(host), port)
        self._sockets[opened] = peer
        self._used[peer] = self._clock()
        if len(self._used) > LIMIT:
            del self._used[min(self._used, key=self._used.__getitem__)]
        self.tried.set()
        return opened

    def known(self) -> frozenset[Peer]:
        """Return the other ends of all open connections, and of those that were open or tried not long ago.

        If none has been tried for long (a name that nobody resolves), the old ones count until one is.
        """
        now = self._clock()
        self._used |= {peer: now for opened, peer in self._sockets.items() if opened.fileno() >= 0}
        self._used = {peer: at for peer, at in self._used.items() if now - at < REMEMBERED} or self._used
        return frozenset(self._used)


async def follow_peers(peers: Peers, take: Callable[[Collection[Peer]], None]) -> None:
    """Hand on, for ever, where connections lead: at once where one is tried, before the server can answer."""
    before: Collection[Peer] = ()
    while True:
        known = peers.known()
        if known != before:
            take(known)
            before = known
        with suppress(TimeoutError):
            await asyncio.wait_for(peers.tried.wait(), INTERVAL)
        peers.tried.clear()


def _pack(host: str) -> bytes:
    address = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0])
    return address.removeprefix(_MAPPED)
