"""Endpoints that are virtual IPs: of another Service, or of their own.

A Service without a selector can name another one's cluster IP as its endpoint. Such an address is the node's own, so
IPVS hands the connection to the node itself, where it is refused or balanced in a circle. No proxy of this kind can
serve it, and a packet filter shows nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.fragment import ServiceName
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.tables import RealServerKey, VirtualServer, VirtualServerKey, text_of

#: The most addresses of one Service that are reported.
MAX_TOLD: Final = 50


def at_virtual_ips(
    servers: Iterable[VirtualServer], virtual_ips: Collection[bytes]
) -> list[tuple[VirtualServerKey, RealServerKey]]:
    """Return the real servers whose address is one of the virtual IPs, each with its virtual server."""
    # The field by its number, and one loop: it looks at every real server there is, every few seconds.
    return [(server.key, key) for server in servers for key in server.real_servers if key[0] in virtual_ips]


def omissions(name: ServiceName, found: Iterable[RealServerKey]) -> list[Omission]:
    """Return an omission of a Service for each address, up to ``MAX_TOLD``."""
    addresses = sorted({key.address for key in found})[:MAX_TOLD]
    return [Omission(f"service {name} endpoint {text_of(address)}", Reason.VIRTUAL_ENDPOINT) for address in addresses]
