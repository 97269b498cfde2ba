"""A scripted API server on the loopback, which answers each request with the next step; and a transport to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ApiServer:
    """Answers requests in the order of ``script`` and repeats the last answer; ``queries`` has what was asked."""

    def __init__(self, *script: Answer) -> None:
        self.script = list(script)
        self.queries: list[dict[str, str]] = []
        self.tokens: list[str] = []
        #: Method, path, content type and body of each write.
        self.writes: list[tuple[str, str, str, Any]] = []
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.queries.append(dict(request.query))
        self.tokens.append(request.headers.get("Authorization", ""))
        if request.can_read_body:
            self.writes.append((request.method, request.raw_path, request.content_type, await request.json()))
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return await answer(request)


class PlainTransport:
    """A transport over a plain session; the token changes with each ``reauthenticate``."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._session = aiohttp.ClientSession()
        self.token = 0

    @asynccontextmanager
    async def get(self, path: str, query: Mapping[str, str], *, inactivity: float) -> AsyncIterator[Any]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=2, sock_read=inactivity)
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"http://127.0.0.1:{self._server.port}{path}"
        async with self._session.get(url, params=query, headers=headers, timeout=timeout) as response:
            yield _Response(response)

    async def reauthenticate(self) -> None:
        self.token += 1

    async def close(self) -> None:
        await self._session.close()


class _Response:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.headers

    def chunks(self, *, is_bulk: Callable[[], bool] = lambda: False) -> AsyncIterator[bytes]:
        return self._response.content.iter_any()

    async def read(self, limit: int) -> bytes:
        return (await self._response.read())[:limit]


def page(*items: dict[str, Any], version: str = "10", token: str = "", **fields: Any) -> Answer:
    """Answer with one page of a list of Services; its items have no kind, as in the API."""
    bare = [{key: value for key, value in item.items() if key not in {"kind", "apiVersion"}} for item in items]
    metadata = {"resourceVersion": version, "continue": token}
    return status(200, {"kind": "ServiceList", "apiVersion": "v1", "metadata": metadata, "items": bare, **fields})


def status(code: int, body: Any = None, **headers: str) -> Answer:
    """Answer with a status and a JSON body."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(body or {"kind": "Status", "code": code}, status=code, headers=headers)

    return answer


def stream(*parts: bytes | float, hang: bool = False) -> Answer:
    """Answer a watch with bytes and pauses (in seconds); then end the stream, or keep it open in silence."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for part in parts:
            if isinstance(part, float):
                await asyncio.sleep(part)
            else:
                await response.write(part)
        if hang:
            await asyncio.Event().wait()
        return response

    return answer


def line(kind: str, item: dict[str, Any]) -> bytes:
    """Return one line of a watch."""
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def bookmark(version: str, *, initial_end: bool = False) -> bytes:
    """Return a bookmark; with ``initial_end`` the one that ends the list in a streaming list."""
    annotations = {"k8s.io/initial-events-end": "true"} if initial_end else {}
    metadata = {"name": "", "resourceVersion": version, "annotations": annotations}
    return line("BOOKMARK", {"kind": "Service", "apiVersion": "v1", "metadata": metadata})


def service(name: str, version: str = "1", cluster_ip: Any = "10.0.0.1", **spec: Any) -> dict[str, Any]:
    """Return a Service as the API sends it in an event."""
    metadata = {"name": name, "namespace": "ns", "resourceVersion": version}
    return {"kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": {"clusterIP": cluster_ip, **spec}}
