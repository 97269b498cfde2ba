"""A response of the API server, as the client passes it on."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from typing import NamedTuple

import aiohttp

from ipvs_proxy.kube import bulk


class Response:
    """One response of the API server: its status, headers and body.

    Reading the body fails with ``TimeoutError`` if nothing comes for ``inactivity`` seconds.
    """

    def __init__(self, response: aiohttp.ClientResponse, *, inactivity: float) -> None:
        self._response = response
        self._inactivity = inactivity
        self.status: int = response.status
        self.headers: Mapping[str, str] = response.headers

    def chunks(self, *, is_bulk: Callable[[], bool] = lambda: False) -> AsyncIterator[bytes]:
        """Return the body in chunks as they arrive, decompressed; in large ones for as long as ``is_bulk`` says so."""
        connection = self._response.connection
        transport = connection.transport if connection else None
        return bulk.read(
            self._response.content,
            transport.get_extra_info("socket") if transport else None,
            inactivity=self._inactivity,
            is_bulk=is_bulk,
        )

    async def read(self, limit: int) -> bytes:
        """Return at most the first ``limit`` bytes of the body, decompressed."""
        return await read(self.chunks(), limit)


class Reply(NamedTuple):
    """The response to a write: the HTTP status, and the beginning of the body for use in a message."""

    status: int
    text: str


async def read(chunks: AsyncIterable[bytes], limit: int) -> bytes:
    """Return at most the first ``limit`` bytes of a body."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) >= limit:
            break
    return bytes(body[:limit])
