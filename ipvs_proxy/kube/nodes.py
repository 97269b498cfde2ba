"""Reads a single Node."""

from __future__ import annotations

from typing import Final

from ipvs_proxy.kube.decode import DecodeError, decode_node, message_of
from ipvs_proxy.kube.lines import MAX_OBJECT
from ipvs_proxy.kube.objects import Node
from ipvs_proxy.kube.reflector import REFUSAL_SIZE, RefusedError, Transport

#: Seconds that the answer may take.
PATIENCE: Final = 5.0
_OK: Final = 200
_UNAUTHORIZED: Final = 401
_NOT_FOUND: Final = 404


async def get_node(transport: Transport, name: str) -> Node | None:
    """Read a Node, ``None`` if there is none of that name. Credentials are read again once if they are refused.

    Raises:
        RefusedError: the server answered with another status than success.
        DecodeError: the answer is no Node, or not that one.
        aiohttp.ClientError, TimeoutError, OSError: the server was not reached.

    """
    for attempt in range(2):
        async with transport.get(f"/api/v1/nodes/{name}", {}, inactivity=PATIENCE) as response:
            if response.status == _UNAUTHORIZED and not attempt:
                await transport.reauthenticate()
                continue
            if response.status == _NOT_FOUND:
                return None
            if response.status != _OK:
                raise RefusedError(response.status, 0.0, message_of(await response.read(REFUSAL_SIZE)))
            node = decode_node(await response.read(MAX_OBJECT))
            if node.metadata.name != name:
                raise DecodeError(f"the answer is no Node {name}")
            return node
    raise AssertionError("unreachable")
