"""Whether an agent is at work on this node.

Invariant: an agent holds a netlink socket that is a member of some groups of netfilter, which the kernel has and
nothing uses, for as long as it lives. Like the tables that the agent writes, such a socket belongs to a network
namespace. Only a process with CAP_NET_ADMIN there can become a member (``netlink_bind`` of the kernel), and the kernel
closes the socket when the process ends, however it ends. So no file can go stale, and no other user of the node can
pretend to be an agent or hide one. An agent in another container of the node's network is seen as well as one on the
host: ``/proc/net/netlink`` lists the sockets of all of them.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from ipvs_proxy.netlink.socket import NETLINK_NETFILTER

#: Bits of the groups 17 to 32: each protocol has 32 (``__netlink_kernel_create``), netfilter sends to the first 9
#: (linux/netfilter/nfnetlink.h).
_GROUPS: Final = 0x6970_0000
_SOCKETS: Final = Path("/proc/thread-self/net/netlink")


def register() -> socket.socket | None:
    """Mark this process as an agent until the socket is closed; return ``None`` if the host forbids it."""
    try:
        holder = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    except OSError:
        return None
    try:
        # The socket is a mark: it is to receive nothing.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        holder.bind((0, _GROUPS))
    except OSError:
        holder.close()
        return None
    return holder


def count_running() -> int:
    """Return how many agents are at work in the network namespace of this thread."""
    try:
        _, *lines = _SOCKETS.read_text(encoding="ascii", errors="replace").splitlines()
    except (OSError, ValueError):
        return 0
    # After the socket's address in memory: its protocol, its number and its groups.
    wanted = [str(NETLINK_NETFILTER), f"{_GROUPS:08x}"]
    return sum(line.split()[1:4:2] == wanted for line in lines)


def any_running() -> bool:
    """Return whether an agent is at work in the network namespace of this thread."""
    return count_running() > 0
