"""The pages of the metrics server that show what is and why: ``/``, ``/state``, ``/statusz`` and ``/flagz``.

``/`` is a page for people. It is three files of this package, asks ``/state`` for all that it shows, and needs nothing
from anywhere else: the browser is told to load nothing else either.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.resources import files
from typing import Final

import msgspec
from aiohttp import web

from ipvs_proxy import __version__
from ipvs_proxy.agent.web.view import LIMIT, View
from ipvs_proxy.kube.resources import SERVICE_PROXY_NAME
from ipvs_proxy.netlink.errors import Unusable
from ipvs_proxy.plan.addresses import parse_address
from ipvs_proxy.plan.fragment import ServiceName
from ipvs_proxy.plan.tables import Protocol, VirtualServerKey, text_of
from ipvs_proxy.settings.model import Settings
from ipvs_proxy.settings.table import SETTINGS

_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_PAGE_HEADERS: Final = {
    **_HEADERS,
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
}
#: The files of the page by the path that they are served at, with their types.
_PAGE: Final = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
#: As in the components of Kubernetes (component-base, zpages).
_WARNING: Final = (
    "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is "
    "for debugging purposes only.\n"
)
_encode = msgspec.json.Encoder().encode


def add_state(application: web.Application, view: View) -> None:
    """Have a server show the state; it takes nothing but reads."""

    async def node(request: web.Request) -> web.Response:
        try:
            offset, limit = (_number(request, name, default) for name, default in (("offset", 0), ("limit", LIMIT)))
        except ValueError as error:
            return _refuse(HTTPStatus.BAD_REQUEST, str(error))
        search = request.query.get("search", "")
        return await _answer(lambda: view.node(search=search, offset=offset, limit=limit))

    async def service(request: web.Request) -> web.Response:
        name = ServiceName(request.match_info["namespace"], request.match_info["name"])
        return await _answer(lambda: view.service(name), missing=_no_service(name, view.settings()))

    async def route(request: web.Request) -> web.Response:
        try:
            client, key = _question(request)
        except ValueError as error:
            return _refuse(HTTPStatus.BAD_REQUEST, str(error))
        return await _answer(lambda: view.route(client, key))

    async def differences(_: web.Request) -> web.Response:
        return await _answer(view.differences)

    async def status(request: web.Request) -> web.Response:
        return web.Response(text=statusz(view.started, datetime.now(UTC), paths_of(request.app)), headers=_HEADERS)

    async def flags(_: web.Request) -> web.Response:
        return web.Response(text=flagz(view.settings()), headers=_HEADERS)

    for path, (name, content_type) in _PAGE.items():
        application.router.add_get(path, _page(name, content_type))
    application.router.add_get("/state", node)
    application.router.add_get("/state/services/{namespace}/{name}", service)
    application.router.add_get("/state/route", route)
    application.router.add_get("/state/differences", differences)
    application.router.add_get("/statusz", status)
    application.router.add_get("/flagz", flags)


def _no_service(name: ServiceName, settings: Settings) -> str:
    proxy = settings.service_proxy_name
    only = f" with the label {SERVICE_PROXY_NAME}: {proxy}, and this agent serves no other" if proxy else ""
    return f"there is no Service {name}{only}"


def _page(name: str, content_type: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    body = (files("ipvs_proxy.agent.web") / "page" / name).read_bytes()

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_PAGE_HEADERS)

    return page


async def _answer(describe: Callable[[], Awaitable[msgspec.Struct | None]], missing: str = "") -> web.Response:
    try:
        document = await describe()
    except (OSError, ValueError, Unusable) as error:
        return _refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"the kernel's tables cannot be read: {error}")
    if document is None:
        return _refuse(HTTPStatus.NOT_FOUND, missing)
    return web.Response(body=_encode(document), content_type="application/json", headers=_HEADERS)


def _refuse(status: HTTPStatus, text: str) -> web.Response:
    return web.Response(status=status, body=_encode({"error": text}), content_type="application/json", headers=_HEADERS)


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{name}={text!r} is not a number from 0 on")
    return int(text)


def _question(request: web.Request) -> tuple[bytes, VirtualServerKey]:
    """Read ``client=ADDRESS&address=ADDRESS&port=PORT&protocol=TCP``."""
    addresses = []
    for name in ("client", "address"):
        text = request.query.get(name, "")
        address = parse_address(text)
        if address is None:
            raise ValueError(f"{name}={text!r} is not an IP address")
        addresses.append(address)
    client, address = addresses
    if len(client) != len(address):
        raise ValueError(f"{text_of(client)} and {text_of(address)} are not of the same family")
    port, protocol = _number(request, "port", 0), request.query.get("protocol", "TCP").upper()
    if not 0 < port < 65536 or protocol not in Protocol.__members__:
        raise ValueError(f"{port}/{protocol} is not a port and a protocol (TCP, UDP, SCTP)")
    return client, VirtualServerKey(address, Protocol[protocol], port)


def paths_of(application: web.Application) -> list[str]:
    """Return the fixed paths that a server answers."""
    paths = {resource.canonical for resource in application.router.resources()}
    return sorted(path for path in paths if "{" not in path)


def statusz(started: datetime, now: datetime, paths: list[str]) -> str:
    """Write what ``/statusz`` answers, in the form of Kubernetes' components."""
    seconds = int((now - started).total_seconds())
    return (
        f"\nipvs-proxy statusz\n{_WARNING}\n"
        f"Started: {started.strftime('%a %b %e %H:%M:%S UTC %Y')}\n"
        f"Up: {seconds // 3600} hr {seconds % 3600 // 60:02} min {seconds % 60:02} sec\n"
        f"Binary version: {__version__}\n"
        f"Paths: {' '.join(paths)}\n"
    )


def flagz(settings: Settings) -> str:
    """Write what ``/flagz`` answers: the effective value of every flag that is also a field of the file."""
    flags = {
        setting.flag.removeprefix("--"): settings.fields[setting.path]
        for setting in SETTINGS
        if setting.flag and setting.path in settings.fields
    }
    lines = (f"{name}={_flag_value(value)}\n" for name, value in sorted(flags.items()))
    return f"\nipvs-proxy flags\n{_WARNING}\n{''.join(lines)}"


def _flag_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{name}={_flag_value(part)}" for name, part in value.items())
    return "" if value is None else str(value)
