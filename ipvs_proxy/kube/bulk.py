"""Reads a long answer in large pieces, although the server sends it in small ones.

An API server flushes a streaming list event by event and encrypts 4 KiB at a time. Whoever reads each of these as it
comes is woken, asks the kernel and looks through its tasks ten thousand times, which takes longer than decoding. So
while a list comes, the kernel is asked to report the socket only when much is there (``SO_RCVLOWAT``, socket(7)).

Invariant: nothing waits for more than ``PATIENCE`` seconds longer than it would have, whatever comes or does not, and a
connection is left as it was found.
"""

from __future__ import annotations

import asyncio
import platform
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import lru_cache
from typing import Final, Protocol

#: Bytes that are waited for, and for how many seconds at most.
ENOUGH: Final = 128 * 1024
PATIENCE: Final = 0.01
#: From this version of Linux on, asking for less reports what is there already (``tcp_set_rcvlowat``). An older one
#: reports it with the next packet, which may not come.
_SINCE: Final = (4, 18)


class Content(Protocol):
    """The body of an answer: ``aiohttp.StreamReader``."""

    async def readany(self) -> bytes:
        """Return what is there, at least a byte; nothing at the end."""


class Socket(Protocol):
    """A socket, or asyncio's view of one."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        """Set an option."""


async def read(content: Content, connection: Socket | None, *, is_bulk: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yield the pieces of a body as they come, in large ones for as long as ``is_bulk`` says so.

    Raises what reading raises.
    """
    mark = 1

    def ask_for(size: int) -> None:
        nonlocal mark
        if connection is not None and size != mark and reports_at_once():
            with suppress(OSError):  # the connection has just gone, which reading reports
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            mark = size

    try:
        while True:
            if is_bulk():
                ask_for(ENOUGH)
                piece = await _read_within(content, PATIENCE)
            else:
                piece = None
            if piece is None:
                ask_for(1)
                piece = await content.readany()
            if not piece:
                return
            yield piece
    finally:
        ask_for(1)


async def _read_within(content: Content, seconds: float) -> bytes | None:
    """Return what comes within some seconds, or ``None``."""
    try:
        async with asyncio.timeout(seconds) as patience:
            return await content.readany()
    except TimeoutError:
        if not patience.expired():
            raise
        return None


@lru_cache
def reports_at_once() -> bool:
    """Return whether this kernel reports what is there already when less is asked for."""
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    return version is not None and (int(version[1]), int(version[2])) >= _SINCE
