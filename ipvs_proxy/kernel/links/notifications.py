"""Notifications of links and addresses, from bytes, with pyroute2.

pyroute2 reads the messages; the socket they come from is ours. Its own sockets (version 0.9.7) cannot keep what the
monitor promises: one that overflowed is dead, ``get`` returns one datagram and not all that wait, and where another
thread uses one it silently opens a second, in that thread's network namespace.

The answers to our own questions are for ``codec``: for a dump of 10,000 addresses pyroute2 takes 17 times as long, and
a start would wait for its import before the first Service.
"""

from __future__ import annotations

import socket
from functools import cache
from typing import Any, Final, NamedTuple

from ipvs_proxy.kernel.links.codec import DELETE_ADDRESS, DELETE_LINK, NEW_ADDRESS, NEW_LINK, Address
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.netlink.wire import HEADER, Data, MalformedMessage

#: By the type of message: whether what it tells of is there now.
_ADDRESSES: Final = {NEW_ADDRESS: True, DELETE_ADDRESS: False}
_LINKS: Final = {NEW_LINK: True, DELETE_LINK: False}


class AddressNotice(NamedTuple):
    """An address that is there, was announced again, or is gone."""

    address: Address
    present: bool


class LinkNotice(NamedTuple):
    """A link that is there, was changed, or is gone."""

    ifindex: int
    name: str
    present: bool


def prepare() -> None:
    """Import pyroute2, which takes 0.1 s; otherwise the first call of ``read_notification`` does.

    Raises:
        Unusable: if it cannot be imported.

    """
    try:
        _classes()
    except ImportError as error:
        raise Unusable(f"pyroute2 cannot be imported: {error}", "install ipvs-proxy with its dependencies") from error


def read_notification(message: Data) -> AddressNotice | LinkNotice | None:
    """Read a notification; ``None`` if it tells of something else.

    Raises:
        MalformedMessage: if it is garbage.

    """
    kind, _, _, payload = message
    address_class, link_class = _classes()
    try:
        if kind in _ADDRESSES:
            found = _decoded(address_class, payload)
            # On a point-to-point link the other attribute is the peer's.
            text = found.get_attr("IFA_LOCAL") or found.get_attr("IFA_ADDRESS")
            address = Address(found["index"], socket.inet_pton(found["family"], text), found["prefixlen"])
            return AddressNotice(address, _ADDRESSES[kind])
        if kind in _LINKS:
            found = _decoded(link_class, payload)
            return LinkNotice(found["index"], found.get_attr("IFLA_IFNAME") or "", _LINKS[kind])
    except Exception as error:  # pyroute2 promises no kind of error for what it cannot read
        raise MalformedMessage(f"a notification cannot be read: {error!r}") from error
    return None


def _decoded(message_class: Any, payload: bytes) -> Any:
    message = message_class(HEADER.pack(HEADER.size + len(payload), 0, 0, 0, 0) + payload)
    message.decode()
    return message


@cache
def _classes() -> tuple[Any, Any]:
    # Whatever part is imported, the package imports all of itself.
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # noqa: PLC0415
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # noqa: PLC0415

    return ifaddrmsg, ifinfmsg
