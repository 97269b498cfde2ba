"""Who may read what of the metrics server.

Anybody who reaches it may read what kube-proxy's users scrape: ``/metrics``, ``/healthz`` and ``/proxyMode``. The rest
shows every Service and all settings, and asks for no password: it is for the node itself (and for ``kubectl
port-forward``, which arrives over the loopback), unless a setting opens it. Nor may a web site read it through the
browser of somebody who has the port open on their machine: a name that a site controls can be made to lead to
127.0.0.1 (DNS rebinding), but the ``Host`` that the browser sends then is that name.

A connection's own addresses decide, no header that a client writes. Both ends have to be loopback addresses: nobody
else can have an answer from there, also where a rule of the node leads others to its loopback.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address
from typing import Final

import msgspec
from aiohttp import web

from ipvs_proxy.plan.addresses import parse_address

#: What anybody may read.
OPEN_PATHS: Final = frozenset({"/metrics", "/healthz", "/healthz/ping", "/proxyMode"})
#: RFC 9110, 7.2: a name or an address, and a port.
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[^\[\]:]{1,253})(:\d{0,5})?")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]


def guard(*, exposed: Callable[[], bool], names: Callable[[], Collection[str]]) -> Middleware:
    """Return the middleware. ``exposed`` returns whether everything is open, ``names`` the node's names."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in OPEN_PATHS:
            if not exposed() and not is_local(request.transport):
                return refuse(
                    HTTPStatus.FORBIDDEN,
                    f"{request.path[:100]} is answered on the node's loopback only: ask there (ipvs-proxy status, "
                    "kubectl port-forward), or set exposeState in the IpvsProxyConfiguration to open it to everybody",
                )
            host = request.headers.get("Host")
            # Only programs leave it out (HTTP/1.0), no browser.
            if host is not None and not is_own(host, names()):
                return refuse(
                    HTTPStatus.MISDIRECTED_REQUEST,
                    f"this server is not {host[:100]!r}: ask by an IP address, as localhost or by the node's name",
                )
        return await handler(request)

    return guarded


def is_local(transport: asyncio.BaseTransport | None) -> bool:
    """Return whether a connection has loopback addresses at both ends."""
    ends = [transport.get_extra_info(name) for name in ("sockname", "peername")] if transport else [None]
    return all(end is not None and _is_loopback(end[0]) for end in ends)


def is_own(host: str, names: Collection[str]) -> bool:
    """Return whether a ``Host`` header names this server: an IP address, ``localhost``, or one of the names."""
    found = _HOST.fullmatch(host.strip())
    if found is None:
        return False
    name = found[1].strip("[]").lower().removesuffix(".")
    return name == "localhost" or name in names or parse_address(name) is not None


def refuse(status: HTTPStatus, text: str) -> web.Response:
    """Make an answer that says what is wrong, as ``ipvs-proxy`` and the page read it."""
    body = msgspec.json.encode({"error": text})
    return web.Response(
        status=status, body=body, content_type="application/json", headers={"X-Content-Type-Options": "nosniff"}
    )


def _is_loopback(text: str) -> bool:
    address = ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
