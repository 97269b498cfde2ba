"""Requests that must not be answered: how long to wait before silence is certain, for several requests at once.

A dropped request never ends, so the wait must be bounded, and a slow answer must not pass for none. So the wait follows
what an answered request takes on this machine: an emulated processor needs a hundred times as long as a real one.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack
from statistics import median
from typing import Final, Literal, NamedTuple

from lab.topology import ADDRESSES, Topology, server

#: Silence is this many times what an answered request takes.
TIMES: Final = 30
#: The least and the most seconds to wait: after a second TCP sends its SYN again.
SHORTEST, LONGEST = 0.15, 1.0

Outcome = Literal["answered", "refused", "silent"]


class Request(NamedTuple):
    """A TCP connection to try: from which place, to which address and port."""

    place: str
    address: str
    port: int


#: Seconds that answered requests took on this machine, once measured.
_measured: Final[list[float]] = []


def silence(net: Topology) -> float:
    """Return the seconds without an answer after which none will come."""
    if not _measured:
        address = ADDRESSES["pod1"]["IPv4"]
        with server(net, "pod1", address, 9):
            for _ in range(5):
                begun = time.monotonic()
                net.ask("client", address, 9, timeout=30.0)
                _measured.append(time.monotonic() - begun)
    return min(max(SHORTEST, TIMES * median(_measured)), LONGEST)


def outcomes(net: Topology, requests: Iterable[Request], seconds: float) -> dict[Request, Outcome]:
    """Try all requests at the same time; return what became of each within some seconds."""
    found: dict[Request, Outcome] = {}
    pending: dict[socket.socket, Request] = {}
    with ExitStack() as stack:
        for request in requests:
            with net.inside(request.place):
                family = socket.AF_INET6 if ":" in request.address else socket.AF_INET
                client = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            client.setblocking(False)
            failed = client.connect_ex((request.address, request.port))
            if failed == errno.EINPROGRESS:
                found[request] = "silent"
                pending[client] = request
            else:
                found[request] = "refused" if failed else "answered"
        deadline = time.monotonic() + seconds
        while pending and (left := deadline - time.monotonic()) > 0:
            for client in select.select([], [*pending], [], left)[1]:
                failed = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                found[pending.pop(client)] = "refused" if failed else "answered"
    return found


def unanswered(net: Topology, *requests: Request) -> None:
    """Fail if any of these requests is answered; all are made at the same time."""
    found = outcomes(net, requests, silence(net))
    answered = [request for request, outcome in found.items() if outcome == "answered"]
    assert not answered, f"answered: {answered}"
