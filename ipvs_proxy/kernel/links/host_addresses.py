"""Every address of every interface, as Go's ``net.Interfaces`` returns them to kube-proxy.

It does not matter here whether an interface is up, or an address tentative or deprecated: what an address is used for
is decided elsewhere. On a point-to-point link the address is our own, not the peer's.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipvs_proxy.kernel.links.codec import (
    Address,
    decode_address,
    decode_link,
    encode_dump_addresses,
    encode_dump_links,
)
from ipvs_proxy.netlink.socket import NETLINK_ROUTE, MessageCounts, NetlinkSocket
from ipvs_proxy.plan.tables import Family


class HostAddresses:
    """The interfaces of the network namespace of the thread that makes this object. One thread at a time may use it."""

    def __init__(self, *, traffic: MessageCounts | None = None) -> None:
        self._socket = NetlinkSocket(NETLINK_ROUTE, traffic=traffic)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def read(self) -> dict[str, set[bytes]]:
        """Read the packed addresses of both families by the name of the interface; those without any are left out.

        Raises:
            OSError: if the kernel refuses, or the tables keep changing.
            MalformedMessage: if a reply is garbage.

        """
        # Links second: so each address has a link with a name, unless that link is gone by now, with its addresses.
        addresses = list(dump_addresses(self._socket))
        links = map(decode_link, self._socket.dump(encode_dump_links()))
        names = {link.ifindex: link.name for link in links}
        interfaces: dict[str, set[bytes]] = {}
        for ifindex, address, _ in addresses:
            if ifindex in names:
                interfaces.setdefault(names[ifindex], set()).add(address)
        return interfaces


def dump_addresses(socket: NetlinkSocket) -> Iterator[Address]:
    """Read the addresses of both families on all links.

    Raises:
        OSError: if the kernel refuses, or the table keeps changing.
        MalformedMessage: if a reply is garbage.

    """
    for family in Family:
        yield from map(decode_address, socket.dump(encode_dump_addresses(family)))
