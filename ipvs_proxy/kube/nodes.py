"""Reads a single Node."""

from __future__ import annotations

from typing import Final

import msgspec

from ipvs_proxy.kube.objects import Node
from ipvs_proxy.kube.reflector import RefusedError, Transport

#: Seconds that the answer may take.
PATIENCE: Final = 5.0
_UNAUTHORIZED: Final = 401
_NOT_FOUND: Final = 404


async def get_node(transport: Transport, name: str) -> Node | None:
    """Read a Node, ``None`` if there is none of that name. Credentials are read again once if they are refused.

    Raises:
        RefusedError: the server answered with another status than success.
        msgspec.DecodeError: the answer is no Node.
        aiohttp.ClientError, TimeoutError, OSError: the server was not reached.

    """
    for attempt in range(2):
        async with transport.get(f"/api/v1/nodes/{name}", {}, inactivity=PATIENCE) as response:
            if response.status == _UNAUTHORIZED and not attempt:
                await transport.reauthenticate()
                continue
            if response.status == _NOT_FOUND:
                return None
            body = await response.read()
            if response.status >= 300:
                raise RefusedError(response.status, 0.0, body[:200].decode(errors="replace"))
            return msgspec.json.decode(body, type=Node)
    raise AssertionError("unreachable")
