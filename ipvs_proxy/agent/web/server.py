"""The HTTP servers for kubelet probes, load balancers and scrapes: read-only, and never in the way of a change."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from errno import EADDRNOTAVAIL, EAFNOSUPPORT
from ipaddress import ip_address

import structlog
from aiohttp import web

from ipvs_proxy.agent.observe.health import HealthTracker
from ipvs_proxy.agent.observe.metrics import Metrics
from ipvs_proxy.agent.web.access import Handler, Middleware, guard
from ipvs_proxy.agent.web.listener import Doorkeeper, Listener
from ipvs_proxy.agent.web.reader_thread import read_first
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.settings.document import configz
from ipvs_proxy.settings.model import Settings

log = structlog.get_logger(__name__)

#: Seconds until a bind that failed is tried again, and how long a connection may stay without a further request.
BIND_RETRY = 5.0
KEEP_ALIVE = 15.0
#: So many connections at a time; one more closes the oldest idle one, so that a flood never keeps a probe out.
CONNECTIONS = 128
_NO_SNIFF = {"X-Content-Type-Options": "nosniff"}


def health_application(tracker: HealthTracker, metrics: Metrics) -> web.Application:
    """Serve ``/healthz`` and ``/livez`` to any method, as kube-proxy does."""

    def handler(path: str, answer: Callable[[], tuple[int, bytes]]) -> Handler:
        async def handle(_: web.Request) -> web.Response:
            status, body = answer()
            metrics.health_answered(path, int(status))
            return web.Response(status=status, body=body, content_type="application/json", headers=_NO_SNIFF)

        return handle

    application = _application()
    application.router.add_route("*", "/healthz", handler("healthz", tracker.healthz))
    application.router.add_route("*", "/livez", handler("livez", tracker.livez))
    return application


def metrics_application(metrics: Metrics, *, settings: Callable[[], Settings]) -> web.Application:
    """Serve ``/metrics``, ``/configz``, ``/proxyMode`` and the server's own ``/healthz``, each to whom it may concern.

    ``settings`` gives those in use.
    """
    host_name = socket.gethostname().lower()

    def names() -> set[str]:
        return {settings().node_name, host_name}

    async def scrape(request: web.Request) -> web.Response:
        # Rendering reads all tables' sizes and takes time: not on the event loop.
        body, content_type = await read_first(metrics.render, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def configuration(_: web.Request) -> web.Response:
        return web.json_response(configz(settings()), headers=_NO_SNIFF)

    async def mode(_: web.Request) -> web.Response:
        return web.Response(text="ipvs", headers=_NO_SNIFF)

    async def alive(request: web.Request) -> web.Response:
        verbose = "verbose" in request.query and not request.path.endswith("/ping")
        excluded = "ping" in request.query.getall("exclude", [])
        ping = "[+]ping excluded: ok\n" if excluded else "[+]ping ok\n"
        return web.Response(text=f"{ping}healthz check passed\n" if verbose else "ok", headers=_NO_SNIFF)

    application = _application(guard(exposed=lambda: settings().expose_state, names=names))
    application.router.add_get("/metrics", scrape)
    application.router.add_get("/configz", configuration)
    application.router.add_get("/proxyMode", mode)
    application.router.add_get("/healthz", alive)
    application.router.add_get("/healthz/ping", alive)
    return application


def _application(*middlewares: Middleware) -> web.Application:
    @web.middleware
    async def not_found(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return web.Response(status=404, text="404 page not found\n", headers=_NO_SNIFF)

    return web.Application(middlewares=[not_found, *middlewares], client_max_size=1024)  # type: ignore[list-item]


async def serve_for_ever(
    application: web.Application,
    address: str,
    *,
    name: str,
    hard_fail: bool = False,
    doorkeeper: Doorkeeper | None = None,
) -> None:
    """Serve at ``IP:port`` until cancelled; an address that is taken is tried again every five seconds.

    Raises:
        Unusable: if it is taken and ``hard_fail`` is asked for.

    """
    doorkeeper = doorkeeper or Doorkeeper()
    host, _, port = address.rpartition(":")
    while True:
        try:
            sockets = _listen(doorkeeper, host.strip("[]"), int(port))
            break
        except OSError as error:
            if hard_fail:
                raise Unusable(
                    f"the {name} server cannot listen at {address} ({error.strerror}): choose another address, or "
                    "unset bindAddressHardFail to try again"
                ) from error
            log.error("address_not_bound", server=name, address=address, error=str(error), retry_in=BIND_RETRY)
            await asyncio.sleep(BIND_RETRY)
    listener = await Listener.open(
        doorkeeper, application, sockets, name=name, limit=CONNECTIONS, keepalive_timeout=KEEP_ALIVE
    )
    log.info("serving", server=name, address=address)
    try:
        await asyncio.Event().wait()
    finally:
        await listener.close()


def _listen(doorkeeper: Doorkeeper, host: str, port: int) -> list[socket.socket]:
    """Listen on an address; no address in particular means those of both families, as it does for kube-proxy."""
    address = ip_address(host)
    if not address.is_unspecified:
        return [doorkeeper.listen(host, port, family=socket.AF_INET6 if address.version == 6 else socket.AF_INET)]
    sockets: list[socket.socket] = []
    try:
        for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
            try:
                sockets.append(doorkeeper.listen(everywhere, port, family=family))
            except OSError as error:
                # A kernel without this family; the setting's own family has to be there.
                if everywhere == host or error.errno not in {EAFNOSUPPORT, EADDRNOTAVAIL}:
                    raise
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets
