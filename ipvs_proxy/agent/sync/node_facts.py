"""Keeps what plans need to know of this node: its addresses, its zone, and where it reaches the API server.

They come from our own Node, the interfaces, the connections of the API's client, and the API server's own Service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import structlog

from ipvs_proxy.kube.objects import EndpointSlice, Node
from ipvs_proxy.kube.peers import Peer
from ipvs_proxy.kube.texts import quote
from ipvs_proxy.plan.fragment import ApiServers
from ipvs_proxy.plan.node_addresses import (
    Interfaces,
    NodePortAddresses,
    host_addresses,
    node_ips,
    node_port_addresses,
    status_addresses,
)
from ipvs_proxy.plan.reach import api_servers
from ipvs_proxy.plan.tables import Family, text_of

log = structlog.get_logger(__name__)

#: Label with the zone of a node (Kubernetes documentation, "well-known labels").
ZONE = "topology.kubernetes.io/zone"
#: Addresses of API servers that are logged at most.
MOST_TOLD = 16


class Facts(NamedTuple):
    """Facts of the node, with packed addresses of both families.

    ``host_addresses`` are those that links other than kube-ipvs0 have, ``node_port_addresses`` those with node ports,
    sorted within IPv4 and IPv6, ``node_ips`` the known ones, that of the primary family first, ``node_addresses`` all
    that the Node's status has. ``zone`` may be empty. ``api_servers`` has the ports of each address of the API server.
    """

    host_addresses: frozenset[bytes] = frozenset()
    node_port_addresses: tuple[bytes, ...] = ()
    node_ips: tuple[bytes, ...] = ()
    node_addresses: frozenset[bytes] = frozenset()
    zone: str = ""
    api_servers: ApiServers = MappingProxyType({})


class NodeFacts:
    """The facts as they are now: ``facts``. Nothing is known before the first ``update`` and ``refresh``.

    ``read_interfaces`` may block: it is called in a thread, never twice at a time. A ``bind_address`` takes the place
    of a node IP, as ``node_ips`` says.
    """

    def __init__(
        self,
        read_interfaces: Callable[[], Interfaces],
        *,
        node_port_cidrs: NodePortAddresses = (),
        bind_address: bytes | None = None,
        families: tuple[Family, ...] = tuple(Family),
    ) -> None:
        self.facts = Facts()
        self._read_interfaces = read_interfaces
        self.node_port_cidrs = node_port_cidrs
        self._bind_address = bind_address
        self._families = families
        self._node: Node | None = None
        self._interfaces: Interfaces = {}
        self._peers: Collection[Peer] = ()
        self._api_slices: Collection[EndpointSlice] = ()
        self._reading = asyncio.Lock()

    def update(self, node: Node | None) -> bool:
        """Take the own Node, ``None`` if it is not known; return whether a fact changed."""
        self._node = node
        return self._settle()

    def update_peers(self, peers: Collection[Peer]) -> bool:
        """Take where the connections to the API server lead; return whether a fact changed."""
        self._peers = peers
        return self._settle()

    def update_api_slices(self, slices: Collection[EndpointSlice]) -> bool:
        """Take the EndpointSlices of the API server's own Service; return whether a fact changed."""
        self._api_slices = slices
        return self._settle()

    async def refresh(self) -> bool:
        """Read the interfaces again; return whether a fact changed.

        Raises:
            OSError: if they cannot be read; the facts stay as they are.
            MalformedMessage: if the kernel's answer is garbage; the facts stay as they are.

        """
        async with self._reading:
            self._interfaces = await asyncio.to_thread(self._read_interfaces)
        return self._settle()

    def _settle(self) -> bool:
        before, self.facts = self.facts, self._compute()
        _report(before, self.facts)
        return before != self.facts

    def _compute(self) -> Facts:
        ips = node_ips(self._node, self._bind_address)
        hosts = [host_addresses(self._interfaces, family) for family in self._families]
        ports = [
            node_port_addresses(self._interfaces, family, cidrs=self.node_port_cidrs, ips=ips)
            for family in self._families
        ]
        return Facts(
            host_addresses=frozenset().union(*hosts),
            node_port_addresses=tuple(address for of_family in ports for address in of_family),
            node_ips=ips.known,
            node_addresses=status_addresses(self._node),
            api_servers=api_servers(self._peers, self._api_slices),
            zone=(self._node.metadata.labels or {}).get(ZONE, "") if self._node is not None else "",
        )


def _report(before: Facts, after: Facts) -> None:
    """Log what changed: of the host's addresses those that come and go, of all else what it is now."""
    added, removed = after.host_addresses - before.host_addresses, before.host_addresses - after.host_addresses
    fields: dict[str, Any] = {}
    if added:
        fields["added"] = _texts(sorted(added))
    if removed:
        fields["removed"] = _texts(sorted(removed))
    if before.node_port_addresses != after.node_port_addresses:
        fields["node_port_addresses"] = _texts(after.node_port_addresses)
    if before.node_ips != after.node_ips:
        fields["node_ips"] = _texts(after.node_ips)
    if before.zone != after.zone:
        fields["zone"] = quote(after.zone)
    if before.api_servers != after.api_servers:
        fields["api_servers"] = _texts(islice(after.api_servers, MOST_TOLD))
    if fields:
        log.info("node_facts_changed", **fields)


def _texts(addresses: Iterable[bytes]) -> list[str]:
    return [text_of(address) for address in addresses]
