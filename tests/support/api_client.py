"""The agent's client, and a server on the loopback that it talks to."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from ipvs_proxy.kube.client import Client, connect


class Server:
    """A real server that remembers the requests; the answer is made by ``answer``."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.peers: list[tuple[str, int]] = []
        self.port = 0
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] = self._hello

    async def _hello(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="hello")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        assert request.transport is not None
        self.peers.append(request.transport.get_extra_info("peername"))
        return await self.answer(request)

    @property
    def tokens(self) -> list[str | None]:
        return [request.headers.get("Authorization") for request in self.requests]


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()


@asynccontextmanager
async def connected(kubeconfig: Path | str = "", master: str = "") -> AsyncIterator[Client]:
    client = await connect(kubeconfig=str(kubeconfig), master=master)
    try:
        yield client
    finally:
        await client.close()


async def fetch(client: Client, path: str = "/api/v1/services", **query: str) -> bytes:
    async with client.get(path, query, inactivity=5) as response:
        assert response.status == 200
        return await response.read(1000)


def write_kubeconfig(path: Path, server: str, user: dict[str, Any], **cluster: Any) -> Path:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "agent"}}],
        "clusters": [{"name": "here", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "agent", "user": user}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def server_tls(certificates: Path, name: str, *, client_ca: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / f"{name}-leaf.crt", certificates / f"{name}-leaf.key")
    if client_ca:
        context.load_verify_locations(certificates / f"{client_ca}.crt")
        context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as the client: Python 3.13 asks for extensions that many CAs lack
    return context
