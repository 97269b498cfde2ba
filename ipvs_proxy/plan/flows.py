"""Which tracked flows of UDP lead where no virtual server would send them any more.

The kernel keeps a flow as long as packets come, and UDP has no end of a connection: a client that sends without a pause
would go on to the address of a pod that is gone, or past the address translation, for ever (kubernetes/kubernetes
#71514, #105192, #139628). A flow is judged by where its answers come from. What kube-proxy's IPVS mode judges, this
module does too, with three differences: a virtual server without any real server keeps no flow; so does one that is
gone; and a node port is a virtual server with an address of this node, so a flow to the same port number of another
host is none of ours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from ipvs_proxy.plan.tables import Protocol, RealServerKey, VirtualServer, VirtualServerKey


class Flow(NamedTuple):
    """A tracked flow: the first packet's direction, and the direction in which answers are expected.

    Addresses are packed, ports are in host order. ``zone`` is the conntrack zone of the first direction. ``id`` is what
    the kernel calls this very flow, opaque; empty if it did not say.
    """

    protocol: int
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    reply_source: bytes
    reply_source_port: int
    reply_destination: bytes
    reply_destination_port: int
    zone: int = 0
    id: bytes = b""


_NONE: Mapping[VirtualServerKey, Collection[RealServerKey]] = {}


def stale(
    flow: Flow,
    virtual_servers: Mapping[VirtualServerKey, VirtualServer],
    gone: AbstractSet[VirtualServerKey],
    *,
    also_allowed: Mapping[VirtualServerKey, Collection[RealServerKey]] = _NONE,
) -> bool:
    """Return whether a flow has to be deleted, so that its next packet is balanced anew.

    ``gone`` are virtual servers that were ours; one that is also in ``virtual_servers`` is back. ``also_allowed`` are
    real servers that another virtual server, one of a firewall mark, gives the same destination.

    A flow whose answers come from the virtual server's own address has never been translated: it is stale as soon as
    there is a real server for it, and nobody's business before.
    """
    if flow.protocol != Protocol.UDP:
        return False
    key = VirtualServerKey(flow.destination, flow.protocol, flow.destination_port)
    virtual_server = virtual_servers.get(key)
    if virtual_server is None and key not in gone:
        return False
    answering = RealServerKey(flow.reply_source, flow.reply_source_port)
    others = also_allowed.get(key, ())
    if virtual_server is not None and (
        answering in virtual_server.real_servers or answering in virtual_server.lingering
    ):
        return False
    if answering in others:
        return False
    translated = answering != (flow.destination, flow.destination_port)
    return translated or bool(others) or (virtual_server is not None and bool(virtual_server.real_servers))
