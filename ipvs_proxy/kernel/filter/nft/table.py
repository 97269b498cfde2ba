"""The tables of kube-proxy's nftables mode: all of that mode is in one table of each family, ``kube-proxy``.

They are found and deleted over netlink, as the host may have no ``nft``.
"""

from __future__ import annotations

from contextlib import closing
from struct import pack
from typing import Final

from ipvs_proxy.netlink.socket import NETLINK_NETFILTER, NetlinkSocket, open_socket
from ipvs_proxy.netlink.wire import ACK, REQUEST, Acknowledgement, Request, frame, parse, text_attribute
from ipvs_proxy.plan.tables import Family

_TABLE: Final = "kube-proxy"
# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NFTABLES: Final = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GET_TABLE, _DELETE_TABLE = _NFTABLES << 8 | 1, _NFTABLES << 8 | 2
_TABLE_NAME: Final = 1
_RECEIVE_BUFFER: Final = 64 * 1024


def _header(family: Family) -> bytes:
    """Return a struct nfgenmsg: family, version, and for a batch the subsystem in network order."""
    return pack("=BB", family, 0) + pack(">H", _NFTABLES)


def has_table(family: Family) -> bool:
    """Return whether a family has the table of nftables mode."""
    request = Request(_GET_TABLE, _header(family) + text_attribute(_TABLE_NAME, _TABLE))
    with NetlinkSocket(NETLINK_NETFILTER) as socket:
        try:
            socket.ask(request)
        except OSError:  # no such table, or no nf_tables at all
            return False
    return True


def delete_table(family: Family) -> None:
    """Delete the table of nftables mode: changes of nf_tables come as a batch in one datagram.

    Raises:
        OSError: if the kernel refuses.

    """
    deletion = Request(_DELETE_TABLE, _header(family) + text_attribute(_TABLE_NAME, _TABLE))
    batch = (Request(_BATCH_BEGIN, _header(family)), deletion, Request(_BATCH_END, _header(family)))
    flags = (REQUEST, REQUEST | ACK, REQUEST)
    datagram = b"".join(
        frame(request, sequence=number, flags=flag)
        for number, (request, flag) in enumerate(zip(batch, flags, strict=True), 1)
    )
    with closing(open_socket(NETLINK_NETFILTER, receive_buffer=_RECEIVE_BUFFER)) as socket:
        socket.settimeout(3.0)
        socket.sendto(datagram, (0, 0))
        while True:
            for reply in parse(socket.recv(_RECEIVE_BUFFER)):
                if isinstance(reply, Acknowledgement) and reply.error:
                    raise OSError(reply.error, f"the nftables table {_TABLE} of {family.label} cannot be deleted")
                if isinstance(reply, Acknowledgement) and reply.sequence == 2:
                    return
