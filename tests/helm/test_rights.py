"""The rights in the chart's ClusterRole are those that the agent uses: its own loops ask a server that keeps count."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator

from aiohttp import web

from ipvs_proxy.agent import assembly
from ipvs_proxy.kube.client import connect
from ipvs_proxy.kube.events import Events, Regarding
from ipvs_proxy.settings.model import Settings
from tests.helm.helm import MATRIX, objects
from tests.support.apiserver import ApiServer, page, status, stream

Right = tuple[str, str, str]
#: What is followed, so that its list and its watch are awaited; what the agent asks for besides is found all the same.
LISTS = {
    "services": ("ServiceList", "v1"),
    "endpointslices": ("EndpointSliceList", "discovery.k8s.io/v1"),
    "nodes": ("NodeList", "v1"),
}


class Sink:
    """Takes everything."""

    def changed(self, changes: object) -> None: ...

    def synced(self, kind: str) -> None: ...

    def skipped(self, kind: str, key: str, error: str) -> None: ...

    def take_peers(self, peers: object) -> None: ...


class CountingServer(ApiServer):
    """An API server without streaming lists, so that an agent has to list and to watch; it notes the rights it takes."""

    def __init__(self) -> None:
        super().__init__(status(500))
        self.used: set[Right] = set()
        self.watched: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.used.add(right_for(request))
        if request.method != "GET":
            return await status(201)(request)
        if "sendInitialEvents" in request.query:
            return await status(422)(request)
        if "watch" in request.query:
            self.watched[request.path.rpartition("/")[2]].set()
            return await stream(hang=True)(request)
        *_, resource, name = request.path.split("/")
        if resource == "nodes":
            return await status(200, {"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}})(request)
        kind, version = LISTS[name]
        return await page(kind=kind, apiVersion=version)(request)


def right_for(request: web.Request) -> Right:
    """The verb, API group and resource of a request, as the API server takes them for authorization."""
    parts = request.path.strip("/").split("/")
    group, parts = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    resource, named = parts[0], len(parts) > 1
    if request.method == "GET":
        verb = "watch" if request.query.get("watch") in {"1", "true"} else "get" if named else "list"
    else:
        verb = {"POST": "create", "PATCH": "patch"}[request.method]
    return verb, group, resource


def granted(name: str) -> Iterator[Right]:
    (role,) = objects(name, "ClusterRole")
    for rule in role["rules"]:
        assert rule.keys() == {"apiGroups", "resources", "verbs"}
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                yield from ((verb, group, resource) for verb in rule["verbs"])


async def used() -> set[Right]:
    server = CountingServer()
    await server.start()
    client = await connect(kubeconfig="", master=f"http://127.0.0.1:{server.port}")
    events = Events(client.send, reporting_instance="ipvs-proxy-node-a")
    loops = [asyncio.create_task(loop) for loop in assembly.sources(Settings("node-a"), Sink(), client)]
    try:
        for regarding in (Regarding("Node", "", "node-a"), Regarding("Service", "ns", "web")):
            events.emit(regarding, type="Normal", reason="Reason", action="Action", note="once")
            await events.post_due()
            events.emit(regarding, type="Normal", reason="Reason", action="Action", note="once")
            await events.post_due()
        await assembly.dead_nodes_of(client)({"node-b"})
        async with asyncio.timeout(10):
            await asyncio.gather(*(server.watched[resource].wait() for resource in LISTS))
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await client.close()
        await server.stop()
    return server.used


async def test_role_grants_what_the_agent_uses_and_nothing_else() -> None:
    asked = await used()
    for name in MATRIX:
        rights = list(granted(name))
        assert len(rights) == len(set(rights))
        assert set(rights) == asked
