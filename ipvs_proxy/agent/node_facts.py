"""Keeps what plans need to know of this node: its addresses and its zone, from the own Node and the interfaces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import structlog

from ipvs_proxy.kube.objects import Node
from ipvs_proxy.plan.node_addresses import (
    Interfaces,
    NodePortAddresses,
    host_addresses,
    node_ips,
    node_port_addresses,
)
from ipvs_proxy.plan.tables import Family, text_of

log = structlog.get_logger(__name__)

#: Label with the zone of a node (Kubernetes documentation, "well-known labels").
ZONE = "topology.kubernetes.io/zone"


class Facts(NamedTuple):
    """Facts of the node, with packed addresses of both families.

    ``host_addresses`` are those that links other than kube-ipvs0 have, ``node_port_addresses`` those with node ports,
    sorted within IPv4 and IPv6, ``node_ips`` the known ones, that of the primary family first. ``zone`` may be empty.
    """

    host_addresses: frozenset[bytes] = frozenset()
    node_port_addresses: tuple[bytes, ...] = ()
    node_ips: tuple[bytes, ...] = ()
    zone: str = ""


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
        self._reading = asyncio.Lock()

    def update(self, node: Node | None) -> bool:
        """Take the own Node, ``None`` if it is not known; tell whether a fact changed."""
        self._node = node
        return self._settle()

    async def refresh(self) -> bool:
        """Read the interfaces anew; tell whether a fact changed.

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
            zone=(self._node.metadata.labels or {}).get(ZONE, "") if self._node is not None else "",
        )


def _report(before: Facts, after: Facts) -> None:
    """Log what changed of the addresses: the host's come and go, of the others it is told what they are now."""
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
        fields["zone"] = after.zone
    if fields:
        log.info("node_facts_changed", **fields)


def _texts(addresses: Iterable[bytes]) -> list[str]:
    return [text_of(address) for address in addresses]
