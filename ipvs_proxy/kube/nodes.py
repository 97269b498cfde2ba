"""Reads a single Node from the API server."""

from __future__ import annotations

from typing import Final

from ipvs_proxy.kube.decode import DecodeError, decode_node, message_of
from ipvs_proxy.kube.lines import MAX_OBJECT
from ipvs_proxy.kube.objects import Node
from ipvs_proxy.kube.reflector import REFUSAL_SIZE, RefusedError, Transport

#: Seconds without a byte after which the request fails.
PATIENCE: Final = 5.0
_OK: Final = 200
_UNAUTHORIZED: Final = 401
_NOT_FOUND: Final = 404


async def get_node(transport: Transport, name: str) -> Node | None:
    """Return a Node, or ``None`` if there is no Node with this name.

    If the server refuses the credentials (401), they are read again once.

    Raises:
        RefusedError: the server responded with a status that is neither success nor 404.
        DecodeError: the response is not a Node, or is a different Node.
        aiohttp.ClientError, TimeoutError, OSError: the server could not be reached.
        ConnectError: the server refused the credentials, and they cannot be read again.

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
