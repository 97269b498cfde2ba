"""Whether an agent is at work on this node.

An agent holds a name of the abstract namespace of Unix sockets (unix(7)) as long as it lives. Such names belong to a
network namespace, as the tables that the agent writes do; only one process can hold one, and the kernel frees it
with the process, however that ends. So there is no file to go stale, and an agent in another container of the node's
network is seen as well as one on the host.
"""

from __future__ import annotations

import socket
from errno import EADDRINUSE
from typing import Final

_NAME: Final = "\0ipvs-proxy/agent"


def announce() -> socket.socket | None:
    """Hold the name until the socket is closed; ``None`` if somebody else does, or if the host forbids it."""
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(_NAME)
    except OSError:
        holder.close()
        return None
    return holder


def is_running() -> bool:
    """Tell whether an agent is at work in the network namespace of this thread."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(_NAME)
        except OSError as error:
            return error.errno == EADDRINUSE
    return False
