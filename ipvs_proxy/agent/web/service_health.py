"""The servers behind ``healthCheckNodePort``: cloud load balancers ask them which nodes have endpoints of a Service.

One listening socket per Service and family, or one per address where ``nodePortAddresses`` is restrictive, as
kube-proxy has them; the answer is byte for byte kube-proxy's. Promised: ``wish`` only notes what a Service wants, so
the path of a change never waits for a socket; a port that is taken is tried again until it is free; a closed listener
answers nothing any more; and these ports, which anybody may reach, hold a bounded number of connections for a bounded
time.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple

import structlog
from aiohttp import web

from ipvs_proxy.agent.web.listener import Connection, Doorkeeper, Listener
from ipvs_proxy.plan.fragment import HealthCheck, ServiceName
from ipvs_proxy.plan.tables import Family

log = structlog.get_logger(__name__)

#: Seconds until a bind that was refused is tried again.
BIND_RETRY = 5.0
#: A connection older than this many seconds is closed, twice this at the latest, whatever its client does.
CONNECTION_AGE = 30.0
#: Connections of one listener; one more closes the oldest idle one. Load balancers have a few probers each.
CONNECTIONS = 128

_EVERY_ADDRESS = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104  load balancers ask at any address
_SOCKET_FAMILY = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


class _Place(NamedTuple):
    """Where a socket listens."""

    address: str
    port: int


_Owner = tuple[ServiceName, Family]


class ServiceHealth:
    """The listeners of all Services; all methods belong to the event loop's thread.

    Args:
        healthy: returns whether the agent keeps up, as ``/livez`` does.
        addresses: returns a family's addresses to listen on, ``None`` for all of them.
        refused: called once for a row of failures to bind the port of a Service, with the reason.
        doorkeeper: knows the connections of the agent's other servers too.

    """

    def __init__(
        self,
        *,
        healthy: Callable[[], bool],
        addresses: Callable[[Family], Sequence[str] | None],
        refused: Callable[[ServiceName, int, OSError], None],
        doorkeeper: Doorkeeper | None = None,
    ) -> None:
        self._doorkeeper = doorkeeper or Doorkeeper()
        self._healthy = healthy
        self._addresses = addresses
        self._refused = refused
        self._wanted: dict[ServiceName, Mapping[Family, HealthCheck]] = {}
        self._open: dict[_Owner, dict[_Place, Listener]] = {}
        #: The connections that were there at the last sweep.
        self._old: set[Connection] = set()
        self._pending: set[_Owner] = set()
        #: Owners that were refused, each with the port that was told.
        self._failing: dict[_Owner, int] = {}
        self._wake = asyncio.Event()

    def wish(self, name: ServiceName, wanted: Mapping[Family, HealthCheck]) -> None:
        """Note what a Service wants now; an empty mapping is nothing. A new count is answered at once."""
        known = self._wanted.get(name, {})
        if wanted == known:
            return
        if wanted:
            self._wanted[name] = dict(wanted)
        else:
            del self._wanted[name]
        for family in known.keys() | wanted.keys():
            old, new = known.get(family), wanted.get(family)
            if (old and old.port) != (new and new.port):
                self._pending.add((name, family))
                self._wake.set()

    def readdress(self) -> None:
        """Look at the node's addresses again: what listens on one that went is closed, a new one is opened."""
        self._pending.update((name, family) for name, wanted in self._wanted.items() for family in wanted)
        self._wake.set()

    async def serve_for_ever(self) -> None:
        """Open and close listeners as wished until cancelled; then all are closed."""
        clock = asyncio.get_running_loop().time
        sweep_at = clock() + CONNECTION_AGE
        try:
            while True:
                pause = min(BIND_RETRY, sweep_at - clock()) if self._failing else sweep_at - clock()
                try:
                    async with asyncio.timeout(max(pause, 0)):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._wake.clear()
                if clock() >= sweep_at:
                    sweep_at = clock() + CONNECTION_AGE
                    self._sweep()
                await self._settle()
        finally:
            await _close(listener for places in self._open.values() for listener in places.values())
            self._open.clear()

    async def _settle(self) -> None:
        """Bring the listeners of the owners that changed, or were refused, to what they want."""
        owners = sorted(self._pending | self._failing.keys())
        self._pending.clear()
        # All closing comes first: a port may go from one Service to another.
        for step in (self._close_unwanted, self._open_missing):
            for owner in owners:
                try:
                    await step(owner)
                except Exception:
                    log.exception("service_health_not_served", service=str(owner[0]), family=owner[1].label)
                    self._failing.setdefault(owner, 0)  # no port was told

    async def _close_unwanted(self, owner: _Owner) -> None:
        places = self._open.get(owner, {})
        await _close([places.pop(place) for place in places.keys() - self._places(owner)])

    async def _open_missing(self, owner: _Owner) -> None:
        """Open what an owner lacks: all of it, or, if one address is refused, nothing."""
        wanted = self._places(owner)
        opened = self._open.setdefault(owner, {})
        try:
            for place in sorted(wanted - opened.keys()):
                opened[place] = await self._open_listener(owner, place)
        except OSError as error:
            await _close(self._open.pop(owner).values())
            port = next(iter(wanted)).port
            if self._failing.get(owner) != port:
                self._failing[owner] = port
                self._refused(owner[0], port, error)
            return
        self._failing.pop(owner, None)
        if not opened:
            del self._open[owner]

    async def _open_listener(self, owner: _Owner, place: _Place) -> Listener:
        """Listen on one address and answer every request alike; raises OSError if the address is refused."""
        return await Listener.open(
            self._doorkeeper,
            _application(lambda: self._answer(owner)),
            [self._doorkeeper.listen(*place, family=_SOCKET_FAMILY[owner[1]])],
            name="service_health",
            limit=CONNECTIONS,
            keepalive_timeout=CONNECTION_AGE,
            lingering_time=1.0,
        )

    def _sweep(self) -> None:
        """Close the connections that were there at the last sweep."""
        connections = {
            connection
            for places in self._open.values()
            for listener in places.values()
            for connection in listener.connections
        }
        for connection in connections & self._old:
            connection.abort()
        self._old = connections

    def _places(self, owner: _Owner) -> set[_Place]:
        name, family = owner
        check = self._wanted.get(name, {}).get(family)
        if check is None:
            return set()
        addresses = self._addresses(family)
        if addresses is None:
            addresses = (_EVERY_ADDRESS[family],)
        return {_Place(address, check.port) for address in addresses}

    def _answer(self, owner: _Owner) -> web.Response:
        name, family = owner
        check = self._wanted.get(name, {}).get(family)
        local_endpoints, healthy = check.local_endpoints if check else 0, self._healthy()
        body = {
            "service": {"namespace": name.namespace, "name": name.name},
            "localEndpoints": local_endpoints,
            "serviceProxyHealthy": healthy,
        }
        return web.Response(
            status=HTTPStatus.OK if local_endpoints and healthy else HTTPStatus.SERVICE_UNAVAILABLE,
            body=json.dumps(body, indent="\t").encode(),
            headers={
                "Content-Type": "application/json",
                "X-Content-Type-Options": "nosniff",
                "X-Load-Balancing-Endpoint-Weight": str(local_endpoints),
            },
        )


def _application(answer: Callable[[], web.Response]) -> web.Application:
    """Make an application that answers any path and any method alike."""

    @web.middleware
    async def answer_all(
        request: web.Request,  # noqa: ARG001  the answer does not depend on it
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],  # noqa: ARG001
    ) -> web.StreamResponse:
        return answer()

    return web.Application(middlewares=[answer_all])


async def _close(listeners: Iterable[Listener]) -> None:
    await asyncio.gather(*(listener.close() for listener in listeners))
