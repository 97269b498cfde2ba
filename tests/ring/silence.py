"""Requests that are not to be answered: several at once, and for as long as it takes on this machine to be sure.

Nobody can wait for what does not come. What is dropped is told from what is slow by what a request that is answered
takes here: a processor that is emulated needs a hundred times as long as a real one.
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

#: So many times what a request takes is silence.
TIMES: Final = 30
#: Seconds that silence lasts at least, and at most: then TCP begins to send its SYN again.
SHORTEST, LONGEST = 0.15, 1.0

Outcome = Literal["answered", "refused", "silent"]


class Request(NamedTuple):
    """From where somebody asks, and whom."""

    place: str
    address: str
    port: int


#: The seconds that requests took on this machine, once they were made.
_measured: Final[list[float]] = []


def silence(net: Topology) -> float:
    """Return after how many seconds without an answer none is to come."""
    if not _measured:
        address = ADDRESSES["pod1"]["IPv4"]
        with server(net, "pod1", address, 9):
            for _ in range(5):
                begun = time.monotonic()
                net.ask("client", address, 9, timeout=30.0)
                _measured.append(time.monotonic() - begun)
    return min(max(SHORTEST, TIMES * median(_measured)), LONGEST)


def outcomes(net: Topology, requests: Iterable[Request], seconds: float) -> dict[Request, Outcome]:
    """Open a TCP connection for each request, all at the same time; say what became of them within some seconds."""
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
    """Fail if one of some requests is answered; all are made at the same time."""
    found = outcomes(net, requests, silence(net))
    answered = [request for request, outcome in found.items() if outcome == "answered"]
    assert not answered, f"answered: {answered}"
