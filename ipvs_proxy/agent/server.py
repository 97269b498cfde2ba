"""The HTTP servers for kubelet probes, load balancers and scrapes: read-only, and never in the way of a change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from ipaddress import ip_address

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from ipvs_proxy.agent.health import HealthTracker
from ipvs_proxy.agent.metrics import Metrics
from ipvs_proxy.agent.readers import read
from ipvs_proxy.agent.settings import Settings
from ipvs_proxy.agent.settings_document import configz
from ipvs_proxy.agent.settings_table import ANY_IPV4
from ipvs_proxy.kernel.errors import Unusable

log = structlog.get_logger(__name__)

#: Seconds until a bind that failed is tried again, and how long a connection may stay without a further request.
BIND_RETRY = 5.0
KEEP_ALIVE = 15.0
#: So many connections at a time; one more closes the oldest, so that a flood of idle ones never keeps a probe out.
CONNECTIONS = 128
_NO_SNIFF = {"X-Content-Type-Options": "nosniff"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


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
    """Serve ``/metrics``, ``/configz``, ``/proxyMode`` and the server's own ``/healthz``.

    ``settings`` gives those in use.
    """

    async def scrape(request: web.Request) -> web.Response:
        # Rendering reads all tables' sizes and takes time: not on the event loop.
        body, content_type = await read(metrics.render, request.headers.get("Accept", ""))
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

    application = _application()
    application.router.add_get("/metrics", scrape)
    application.router.add_get("/configz", configuration)
    application.router.add_get("/proxyMode", mode)
    application.router.add_get("/healthz", alive)
    application.router.add_get("/healthz/ping", alive)
    return application


def _application() -> web.Application:
    @web.middleware
    async def not_found(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return web.Response(status=404, text="404 page not found\n", headers=_NO_SNIFF)

    return web.Application(middlewares=[not_found], client_max_size=1024)


async def serve_for_ever(application: web.Application, address: str, *, name: str, hard_fail: bool = False) -> None:
    """Serve at ``IP:port`` until cancelled; an address that is taken is tried again every five seconds.

    Raises:
        Unusable: if it is taken and ``hard_fail`` is asked for.

    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    # No grace: what a slow client still wants does not hold up the end of the agent.
    runner = web.AppRunner(application, access_log=None, keepalive_timeout=KEEP_ALIVE, shutdown_timeout=0.1)
    await runner.setup()
    # 0.0.0.0 means every address of both families, as it does for kube-proxy.
    where = None if ip_address(host) == ip_address(ANY_IPV4) else host
    try:
        while True:
            try:
                listener = await asyncio.get_running_loop().create_server(partial(_admit, runner), where, int(port))
                break
            except OSError as error:
                if hard_fail:
                    raise Unusable(
                        f"the {name} server cannot listen at {address} ({error.strerror}): choose another address, or "
                        "unset bindAddressHardFail to try again"
                    ) from error
                log.error("address_not_bound", server=name, address=address, error=str(error), retry_in=BIND_RETRY)
                await asyncio.sleep(BIND_RETRY)
        log.info("serving", server=name, address=address)
        async with listener:
            await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _admit(runner: web.AppRunner) -> RequestHandler:
    """Take a new connection, at the cost of the oldest if there are too many."""
    server = runner.server
    if server is None:
        raise ConnectionAbortedError("the server has ended")
    connected = [connection for connection in server.connections if connection.transport is not None]
    if len(connected) >= CONNECTIONS:
        connected[0].force_close()
    return server()
