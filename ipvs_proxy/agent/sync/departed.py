"""Remembers on which other node an endpoint was that has just left: a drain that begins asks for it.

A slice that says where an endpoint was is gone by the time that its drain begins. So the old versions of changed slices
are kept until the changes are written, and are only read if a drain begins at all: most changes begin none.
"""

from __future__ import annotations

from ipvs_proxy.kube.objects import EndpointSlice
from ipvs_proxy.plan.addresses import parse_address


class DepartedEndpoints:
    """The nodes of endpoints in slices that changed or went, other than our own node, ``node_name``."""

    def __init__(self, node_name: str) -> None:
        self._node_name = node_name
        self._unread: list[EndpointSlice] = []
        self._nodes: dict[bytes, str] = {}

    def note(self, before: EndpointSlice) -> None:
        """Note a slice as it was before it changed or went."""
        self._unread.append(before)

    def node_of(self, address: bytes) -> str:
        """Return the node of an endpoint that has just left, or been left out; empty if unknown, or our own."""
        for piece in self._unread:
            for endpoint in piece.endpoints or ():
                if endpoint.node_name and endpoint.node_name != self._node_name and endpoint.addresses:
                    packed = parse_address(endpoint.addresses[0])
                    if packed is not None:
                        self._nodes[packed] = endpoint.node_name
        self._unread.clear()
        return self._nodes.get(address, "")

    def clear(self) -> None:
        """Forget all: what was noted has led to its drains."""
        self._unread.clear()
        self._nodes.clear()
