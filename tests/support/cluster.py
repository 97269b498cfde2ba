"""An API server with a cluster in it that changes: streaming lists, watches that stay open, and the events written.

It runs in a thread of its own, on sockets that the caller opens, so that it can be in another network namespace.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

_PATHS = {
    "/api/v1/services": "Service",
    "/apis/discovery.k8s.io/v1/endpointslices": "EndpointSlice",
    "/api/v1/nodes": "Node",
}


class Cluster:
    """The objects, and what clients did. Methods are for the test's thread, unless they say otherwise."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        #: Addresses and ports of the clients of watches.
        self.watched_from: list[tuple[str, int]] = []
        #: Whether every request is answered with 401.
        self.refuses = False
        #: The body with which every GET is answered, with status 200, as a proxy may do.
        self.says: bytes | None = None
        #: The number of requests answered so.
        self.said = 0
        self._objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._version = 1000
        self._watches: dict[asyncio.Queue[bytes | None], str] = {}
        self.loop = asyncio.new_event_loop()

    def apply(self, *items: dict[str, Any]) -> None:
        """Add or change objects."""
        for item in items:
            self._call(self._change, "MODIFIED" if _key(item) in self._objects else "ADDED", item)

    def delete(self, item: dict[str, Any]) -> None:
        """Delete an object."""
        self._call(self._change, "DELETED", item)

    def refuse(self) -> None:
        """End all watches, and answer every request with 401 from now on."""
        self.refuses = True
        self._call(self.end_watches)

    def say(self, body: bytes) -> None:
        """Let all versions expire, and answer every GET with this body and status 200 from now on."""
        self.says, self.said = body, 0
        self._call(self._expire)

    def _expire(self) -> None:
        for queue in self._watches:
            queue.put_nowait(_line("ERROR", {"kind": "Status", "apiVersion": "v1", "code": 410}))

    def _call(self, function: Any, *arguments: Any) -> None:
        async def call() -> None:
            function(*arguments)

        if self.loop.is_running():
            asyncio.run_coroutine_threadsafe(call(), self.loop).result(30)
        else:
            function(*arguments)

    def _change(self, kind_of_change: str, item: dict[str, Any]) -> None:
        self._version += 1
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self._version), "uid": str(_key(item))}}
        if kind_of_change == "DELETED":
            del self._objects[_key(item)]
        else:
            self._objects[_key(item)] = item
        for queue, kind in self._watches.items():
            if kind == item["kind"]:
                queue.put_nowait(_line(kind_of_change, item))

    def end_watches(self) -> None:
        """End all watches; for the thread of the loop."""
        for queue in self._watches:
            queue.put_nowait(None)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        kind = _PATHS.get(request.path)
        if self.refuses:
            return web.json_response({"kind": "Status", "apiVersion": "v1", "code": 401}, status=401)
        if self.says is not None and request.method == "GET":
            self.said += 1
            return web.Response(body=self.says, content_type="application/json")
        if request.method in {"POST", "PATCH"}:
            self.events.append(await request.json())
            return web.json_response({}, status=201)
        if kind is None or "watch" not in request.query:
            return web.json_response({"kind": "Status", "apiVersion": "v1", "code": 404}, status=404)
        return await self._watch(request, kind)

    async def _watch(self, request: web.Request, kind: str) -> web.StreamResponse:
        assert request.transport is not None
        self.watched_from.append(request.transport.get_extra_info("peername")[:2])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._watches[queue] = kind
        try:
            if "sendInitialEvents" in request.query:
                for item in list(self._objects.values()):
                    if item["kind"] == kind:
                        await response.write(_line("ADDED", item))
                annotations = {"k8s.io/initial-events-end": "true"}
                await response.write(_line("BOOKMARK", self._bookmark(kind, annotations)))
            while (line := await queue.get()) is not None:
                await response.write(line)
        finally:
            del self._watches[queue]
        return response

    def _bookmark(self, kind: str, annotations: dict[str, str]) -> dict[str, Any]:
        api_version = "discovery.k8s.io/v1" if kind == "EndpointSlice" else "v1"
        metadata = {"resourceVersion": str(self._version), "annotations": annotations}
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


@contextmanager
def serving(cluster: Cluster, *listening: socket.socket) -> Iterator[None]:
    """Answer on sockets that listen, until the end; then they are closed."""

    async def start() -> web.AppRunner:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", cluster.handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        for each in listening:
            await web.SockSite(runner, each).start()
        return runner

    async def stop() -> None:
        cluster.end_watches()
        await runner.cleanup()

    loop = cluster.loop
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def listen(address: str, port: int = 0) -> socket.socket:
    """Open a socket that listens, in the namespace of this thread."""
    return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)


def kubeconfig(directory: Path, host: str, port: int = 6443) -> Path:
    """Write a kubeconfig for an API server, in the place of the one before, and return its path."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "agent"}}],
        "clusters": [
            {
                "name": "here",
                "cluster": {"server": f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"},
            }
        ],
        "users": [{"name": "agent", "user": {"token": "secret"}}],
    }
    scratch, path = directory / ".kubeconfig.tmp", directory / "kubeconfig"
    scratch.write_text(yaml.safe_dump(content))
    return scratch.replace(path)


def _key(item: dict[str, Any]) -> tuple[str, str, str]:
    return item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _line(kind_of_change: str, item: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind_of_change, "object": item}).encode() + b"\n"
