"""Reads what the kernel tells of links and addresses, with pyroute2.

The socket is ours, pyroute2 reads the messages. Its own sockets would lose what the monitor promises (version 0.9.7):
one that overflows is dead, ``get`` returns the notifications of one datagram and not those that wait, and the network
namespace is that of the thread that reads. Links and addresses that are asked for are read by ``codec``: pyroute2 takes
17 times as long for a dump of 10,000 addresses, and its import would delay the first Services.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import cache
from struct import error as StructError  # noqa: N812  an exception, in spite of its name
from typing import Any, Final, NamedTuple

from ipvs_proxy.kernel.links.codec import Address
from ipvs_proxy.netlink.wire import MalformedMessage

#: By the name of a message: whether what it tells of is there now.
_ADDRESSES: Final = {"RTM_NEWADDR": True, "RTM_DELADDR": False}
_LINKS: Final = {"RTM_NEWLINK": True, "RTM_DELLINK": False}


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
    """Import pyroute2, which takes 0.1 to 0.2 s; without this, the first call of ``read_notifications`` does."""
    _reader()


def read_notifications(datagram: bytes) -> Iterator[AddressNotice | LinkNotice]:
    """Read the notifications in a datagram, in order; those of other kinds are left out.

    Raises:
        MalformedMessage: on reaching one that is garbage, or the kernel's word that some are lost.

    """
    try:
        for message in _reader().parse(datagram):
            kind = message.get("event")
            if kind == "NLMSG_OVERRUN" or message["header"]["error"] is not None:
                raise MalformedMessage(f"a notification cannot be read: {message}")
            if kind in _ADDRESSES:
                yield AddressNotice(_address(message), _ADDRESSES[kind])
            elif kind in _LINKS:
                yield LinkNotice(message["index"], message.get_attr("IFLA_IFNAME") or "", _LINKS[kind])
    except (StructError, KeyError, TypeError, AttributeError, OSError) as error:
        raise MalformedMessage(f"a notification cannot be read: {error}") from error


def _address(message: Any) -> Address:
    # On a point-to-point link the other attribute is the peer's.
    text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return Address(message["index"], socket.inet_pton(message["family"], text), message["prefixlen"])


@cache
def _reader() -> Any:
    # The package imports all of itself, whatever is asked of it.
    from pyroute2.netlink.rtnl.marshal import MarshalRtnl  # noqa: PLC0415

    return MarshalRtnl()
