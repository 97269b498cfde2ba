"""Asking for lists and watches without managedFields, of servers that know how and of those that do not.

The servers answer as kubernetes does (apiserver/pkg/endpoints/handlers/negotiation/negotiate.go, KEP-5958): the first
clause of ``Accept`` with a media type that is served counts, and a parameter that is not known is ignored. None of
kubernetes' own is known to refuse it; what stands in between might.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ipvs_proxy.kube.reflector import Timing, reflect
from ipvs_proxy.kube.resources import SERVICES
from ipvs_proxy.pacing import Backoff
from tests.support.api_client import Server, connected, serving, write_kubeconfig
from tests.support.apiserver import bookmark, line, service
from tests.support.recorder import Recorder

DROP = "drop=metadata.managedFields"
ITEM = service("a", "5") | {"metadata": {"name": "a", "namespace": "ns", "managedFields": [{"manager": "helm"}]}}
BARE = service("a", "5") | {"metadata": {"name": "a", "namespace": "ns"}}
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def clauses(request: web.Request) -> list[tuple[str, list[str]]]:
    """Return the media types of a request, each with its parameters, the best first."""
    found = [[part.strip() for part in clause.split(";")] for clause in request.headers["Accept"].split(",")]

    def quality(parts: list[str]) -> float:
        return max((float(part[2:]) for part in parts if part.startswith("q=")), default=1.0)

    return [(parts[0], parts[1:]) for parts in sorted(found, key=quality, reverse=True)]


async def from_1_38(request: web.Request) -> web.Response:
    media_type, parameters = clauses(request)[0]
    assert media_type == "application/json"
    return web.json_response(BARE if DROP in parameters else ITEM)


async def until_1_37(request: web.Request) -> web.Response:
    assert clauses(request)[0][0] == "application/json"
    return web.json_response(ITEM)


async def strict(request: web.Request) -> web.Response:
    """Take the first clause without a parameter that is not known."""
    known = [parameters for _, parameters in clauses(request) if all(part.startswith("q=") for part in parameters)]
    return web.json_response(ITEM) if known else web.Response(status=406)


def refusing(status: int) -> Answer:
    """Refuse whatever asks with the parameter."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status) if DROP in request.headers["Accept"] else web.json_response(ITEM)

    return answer


def always(status: int) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status)

    return answer


async def get(client: Any) -> tuple[int, Any]:
    """Send a request; return the status and the object."""
    async with client.get("/api/v1/services", {}, inactivity=5) as response:
        body = await response.read(10_000)
        return response.status, json.loads(body) if response.status == 200 else None


def asked(server: Server) -> list[bool]:
    """Return for each request whether it asked without managedFields."""
    return [DROP in request.headers["Accept"] for request in server.requests]


@pytest.mark.parametrize(
    ("answer", "item"), [(from_1_38, BARE), (until_1_37, ITEM), (strict, ITEM)], ids=["1.38", "1.37", "strict"]
)
async def test_a_server_is_asked_once_whether_it_knows_the_parameter_or_not(answer: Answer, item: Any) -> None:
    async with serving() as server, connected(master=f"http://127.0.0.1:{server.port}") as client:
        server.answer = answer
        assert [await get(client) for _ in range(3)] == [(200, item)] * 3
        assert asked(server) == [True] * 3


@pytest.mark.parametrize("status", [400, 406, 415])
async def test_after_a_refusal_it_is_not_asked_for_again(tmp_path: Path, status: int) -> None:
    async with serving() as server, serving() as other:
        server.answer = other.answer = refusing(status)
        path = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{server.port}", {"token": "old"})
        async with connected(path) as client:
            assert [await get(client), await get(client)] == [(200, ITEM)] * 2
            assert asked(server) == [True, False, False]
            # Neither new credentials nor a new session make it ask again.
            write_kubeconfig(path, f"http://127.0.0.1:{server.port}", {"token": "new"})
            await client.reauthenticate()
            assert await get(client) == (200, ITEM)
            assert asked(server) == [True, False, False, False]
            assert server.tokens == ["Bearer old"] * 3 + ["Bearer new"]
            write_kubeconfig(path, f"http://127.0.0.1:{other.port}", {"token": "new"})
            await client.reauthenticate()
            assert await get(client) == (200, ITEM)
            assert asked(other) == [False]


async def test_requests_at_the_same_time_are_refused_once_each() -> None:
    async with serving() as server, connected(master=f"http://127.0.0.1:{server.port}") as client:
        server.answer = refusing(406)
        assert await asyncio.gather(*(get(client) for _ in range(3))) == [(200, ITEM)] * 3
        assert await get(client) == (200, ITEM)
        assert sorted(asked(server)) == [False] * 4 + [True] * 3
        assert asked(server)[-1] is False


@pytest.mark.parametrize("status", [400, 406, 415])
async def test_who_refuses_everything_is_asked_twice_and_decides_nothing(status: int) -> None:
    async with serving() as server, connected(master=f"http://127.0.0.1:{server.port}") as client:
        server.answer = always(status)
        assert [await get(client) for _ in range(2)] == [(status, None)] * 2
        assert asked(server) == [True, False] * 2
        server.answer = from_1_38
        assert await get(client) == (200, BARE)
        assert asked(server) == [True, False] * 2 + [True]


@pytest.mark.parametrize("status", [401, 403, 404, 410, 422, 429, 500, 503])
async def test_another_status_is_passed_on_at_once(status: int) -> None:
    async with serving() as server, connected(master=f"http://127.0.0.1:{server.port}") as client:
        server.answer = always(status)
        assert await get(client) == (status, None)
        assert asked(server) == [True]


async def test_a_refusal_that_a_fault_follows_decides_nothing() -> None:
    """So a server that is just starting is asked for less once it is there."""
    answers = [always(406), always(503), from_1_38]

    async def answer(request: web.Request) -> web.StreamResponse:
        return await answers.pop(0)(request)

    async with serving() as server, connected(master=f"http://127.0.0.1:{server.port}") as client:
        server.answer = answer
        assert [await get(client), await get(client)] == [(503, None), (200, BARE)]
        assert asked(server) == [True, False, True]


async def test_writes_do_not_ask_for_it() -> None:
    async with serving() as server, connected(master=f"http://127.0.0.1:{server.port}") as client:
        await client.send("POST", "/apis/x", b"{}")
        assert asked(server) == [False]


async def test_through_a_proxy_it_reaches_the_server(tmp_path: Path) -> None:
    async with serving() as proxy:
        proxy.answer = from_1_38
        path = write_kubeconfig(
            tmp_path / "config", "http://api.invalid", {"token": "x"}, **{"proxy-url": f"http://127.0.0.1:{proxy.port}"}
        )
        async with connected(path) as client:
            assert await get(client) == (200, BARE)
        assert asked(proxy) == [True]


async def test_a_list_and_its_watch_go_on_where_the_parameter_is_refused() -> None:
    """The streaming list is not given up for it, and no later watch is refused."""
    watches: list[str] = []
    again = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if DROP in request.headers["Accept"]:
            return web.Response(status=400)
        watches.append(request.query.get("resourceVersion", "list"))
        response = web.StreamResponse()
        await response.prepare(request)
        if watches[-1] == "list":
            await response.write(line("ADDED", ITEM) + bookmark("9", initial_end=True))
        else:
            await response.write(bookmark(str(9 + len(watches))))
        if len(watches) == 4:
            again.set()
            await asyncio.Event().wait()
        return response

    sink = Recorder()
    async with serving() as server, connected(master=f"http://127.0.0.1:{server.port}") as client:
        server.answer = answer
        timing = Timing(watch=300.0, inactivity=5.0, pauses=Backoff(0.001, 0.001))
        task = asyncio.create_task(reflect(SERVICES, client, sink, timing=timing, observer=sink))
        async with asyncio.timeout(10):
            await again.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert watches == ["list", "9", "11", "12"]
        assert asked(server) == [True] + [False] * 4
    assert (list(sink.known), sink.causes) == (["a"], [])
