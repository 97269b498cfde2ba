"""Whether an agent is at work on this node.

Invariant: an agent holds a raw socket (raw(7)), with a protocol and an address that nothing else uses, for as long as
it lives. Like the tables that the agent writes, such a socket belongs to a network namespace. Only a process with
CAP_NET_RAW there can open one, and the kernel closes it when the process ends, however it ends. So no file can go
stale, and no other user of the node can pretend to be an agent or hide one. An agent in another container of the node's
network is seen as well as one on the host: ``/proc/net/raw`` (proc(5)) lists the sockets of all of them.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Final

#: "Use for experimentation and testing" (RFC 3692, 2.1): no program's traffic has it.
_PROTOCOL: Final = 253
#: An address of the loopback network, so that nothing from outside the node reaches the socket.
_ADDRESS: Final = "127.105.112.118"
_IP_FREEBIND: Final = 15  # linux/in.h: the loopback may be down
_SOCKETS: Final = Path("/proc/thread-self/net/raw")


def register() -> socket.socket | None:
    """Mark this process as an agent until the socket is closed; return ``None`` if the host forbids it."""
    try:
        holder = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _PROTOCOL)
    except OSError:
        return None
    try:
        # The socket is a mark: it is to receive nothing.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        holder.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        holder.bind((_ADDRESS, 0))
    except OSError:
        holder.close()
        return None
    return holder


def count_running() -> int:
    """Return how many agents are at work in the network namespace of this thread."""
    # As the kernel writes it: the address in the order of its bytes in memory, then the protocol.
    wanted = f"{int.from_bytes(socket.inet_aton(_ADDRESS), sys.byteorder):08X}:{_PROTOCOL:04X}"
    try:
        lines = _SOCKETS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return sum(line.split()[1:2] == [wanted] for line in lines)


def any_running() -> bool:
    """Return whether an agent is at work in the network namespace of this thread."""
    return count_running() > 0
