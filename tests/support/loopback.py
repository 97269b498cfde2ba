"""Serves HTTP applications on the loopback, and asks them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from ipvs_proxy.agent.web.server import serve_for_ever


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving(application: web.Application) -> AsyncIterator[str]:
    port = free_port()
    task = asyncio.create_task(serve_for_ever(application, f"127.0.0.1:{port}", name="test"))
    try:
        async with asyncio.timeout(5):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    break
        yield f"http://127.0.0.1:{port}"
    finally:
        task.cancel()
        async with asyncio.timeout(1.0):  # also with a client that hangs
            await asyncio.gather(task, return_exceptions=True)


async def get(url: str) -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, response.headers["Content-Type"], await response.text()
