"""Reads a long answer in large pieces, although the server sends it in small ones.

An API server flushes a streaming list event by event and encrypts 4 KiB at a time. Whoever reads each of these as it
comes is woken, asks the kernel and looks through its tasks ten thousand times, which takes longer than decoding. So
while a list comes, the kernel is asked to report the socket only when much is there (``SO_RCVLOWAT``, socket(7)).

Invariant: nothing waits for more than ``PATIENCE`` seconds longer than it would have, whatever comes or does not. The
option is set only while somebody waits here, since the connection may belong to another request right afterwards.
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


async def read(
    content: Content, connection: Socket | None, *, inactivity: float, is_bulk: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """Yield the pieces of a body as they come, in large ones for as long as ``is_bulk`` says so.

    Raises what reading raises; ``ConnectionError`` for a connection that was closed from this side, ``TimeoutError``
    if nothing comes for ``inactivity`` seconds. aiohttp's own limit ends with the connection, and where something that
    is not HTTP has ended that, nobody who reads the body is told.
    """
    while True:
        piece = None
        try:
            if connection is not None and is_bulk() and reports_at_once():
                piece = await _read_much(content, connection)
            if piece is None:
                piece = await _read_some(content, inactivity)
        except RuntimeError as error:  # how aiohttp says so
            raise ConnectionError(str(error)) from error
        if not piece:
            return
        yield piece


async def _read_some(content: Content, inactivity: float) -> bytes:
    try:
        async with asyncio.timeout(inactivity) as limit:
            return await content.readany()
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(f"nothing came for {inactivity:g} s") from None
        raise


async def _read_much(content: Content, connection: Socket) -> bytes | None:
    """Return what comes within ``PATIENCE``, once it is much or all, or ``None``."""
    _ask_for(connection, ENOUGH)
    try:
        async with asyncio.timeout(PATIENCE) as patience:
            return await content.readany()
    except TimeoutError:
        if not patience.expired():
            raise
        return None
    finally:
        _ask_for(connection, 1)


def _ask_for(connection: Socket, size: int) -> None:
    with suppress(OSError):  # the connection has just gone, which reading reports
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)


@lru_cache
def reports_at_once() -> bool:
    """Return whether this kernel reports what is there already when less is asked for."""
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    return version is not None and (int(version[1]), int(version[2])) >= _SINCE
