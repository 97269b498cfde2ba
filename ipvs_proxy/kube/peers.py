"""The remote ends of the agent's connections to the API server: its addresses, or those of a proxy in front of it.

Only the sockets know them for certain. A host name can have several addresses, which may change, and a proxy may come
from the environment. So the sockets are created here, and each address is known before the first packet is sent to it.
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

#: Seconds for which an address is kept after its last connection has ended. The name may resolve to it again.
REMEMBERED: Final = 3600.0
#: Maximum number of addresses kept. The least recently used one is removed first.
LIMIT: Final = 64
#: Seconds between two checks for addresses that are no longer kept.
INTERVAL: Final = 60.0
#: Prefix of an IPv4 address that is mapped into IPv6.
_MAPPED: Final = bytes(10) + b"\xff\xff"


class Peer(NamedTuple):
    """The remote end of a TCP connection. ``address`` is packed: 4 or 16 bytes."""

    address: bytes
    port: int


class Peers:
    """The remote ends of a client's connections, including those of the last hour.

    ``tried`` is set whenever a new connection is attempted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.tried = asyncio.Event()
        self._clock = clock
        self._sockets: WeakKeyDictionary[socket.socket, Peer] = WeakKeyDictionary()
        self._used: dict[Peer, float] = {}

    def open(self, info: AddrInfoType) -> socket.socket:
        """Return a new socket for a connection attempt, and record where it leads.

        Raises:
            OSError: the socket cannot be created.

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
        """Return the remote ends of all open connections, and of those open or attempted in the last hour.

        If there was no attempt for that long (the name cannot be resolved), the old ones are kept until there is one.
        """
        now = self._clock()
        self._used |= {peer: now for opened, peer in self._sockets.items() if opened.fileno() >= 0}
        self._used = {peer: at for peer, at in self._used.items() if now - at < REMEMBERED} or self._used
        return frozenset(self._used)


async def follow_peers(peers: Peers, take: Callable[[Collection[Peer]], None]) -> None:
    """Pass the remote ends to ``take`` whenever they change, for ever.

    A new one is passed as soon as the connection is attempted, before the server can respond.
    """
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
