"""What it costs a change when somebody reads the agent's pages, all in turn, from another process.

``python -m bench.looking PORT`` is that process: it asks until its standard input ends, and prints the seconds of each
answer by path. The kernel's tables are in memory, so what is measured is what the agent itself does for an answer.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import select
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import NoReturn

from aiohttp import web

from bench.rig import FAMILIES, Rig
from ipvs_proxy.agent.observe.health import HealthTracker
from ipvs_proxy.agent.observe.history import History
from ipvs_proxy.agent.observe.service_traffic import ServiceTraffic
from ipvs_proxy.agent.web.server import metrics_application
from ipvs_proxy.agent.web.state_pages import add_state
from ipvs_proxy.agent.web.view import View
from ipvs_proxy.kernel.filter.ipset.names import name_of
from ipvs_proxy.kernel.ipvs.records import Activity, Balanced, Connections, Counters, Observation
from ipvs_proxy.plan.tables import VirtualServer, VirtualServerKey
from ipvs_proxy.settings.model import Settings
from ipvs_proxy.settings.values import ServiceMetrics

#: What is asked for in turn, by the name in the table: number ``%d`` changes from turn to turn.
PAGES: Mapping[str, str] = {
    "page": "/",
    "list, with search": "/state?search=service-%d",
    "list, anywhere": "/state?offset=%d",
    "one Service": "/state/services/team-%d/service-%d",
    "statusz": "/statusz",
    "metrics": "/metrics",
}


class InMemory:
    """An IPVS table in memory with what it should hold, and a little more traffic at each reading."""

    def __init__(self, virtual_servers: Callable[[], Mapping[VirtualServerKey, VirtualServer]]) -> None:
        self._virtual_servers = virtual_servers
        self._counters = itertools.count(1)

    def read_counters(self) -> dict[VirtualServerKey, Counters]:
        """Read what each virtual server has balanced."""
        return dict.fromkeys(list(self._virtual_servers()), self._traffic().total)

    def observe(self, key: VirtualServerKey, *, real_servers: bool = True) -> Observation | None:
        """Read one virtual server."""
        server, traffic = self._virtual_servers().get(key), self._traffic()
        if server is None:
            return None
        listed = server.real_servers.copy() if real_servers else {}
        found = {real: Activity(settings, Connections(1, 0, 0), traffic) for real, settings in listed.items()}
        return Observation(server, traffic, found)

    def close(self) -> None:
        """Nothing is open."""

    def _traffic(self) -> Balanced:
        return Balanced(Counters(*[next(self._counters)] * 5), Counters(1, 2, 3, 4, 5))


@asynccontextmanager
async def served(rig: Rig) -> AsyncIterator[int]:
    """Serve what an agent serves at its metrics address; return the port."""
    table, settings = InMemory(lambda: rig.programmer.actual.virtual_servers), Settings("node-0")
    rig.metrics.service_traffic = ServiceTraffic(
        rig.programmer.desired, lambda: table, detail=ServiceMetrics.ENDPOINTS
    ).expose
    view = View(
        rig.controller,
        rig.programmer,
        settings=lambda: settings,
        families=FAMILIES,
        rules=dict,
        host_addresses=set,
        health=HealthTracker(FAMILIES, sync_period=30.0),
        drains=rig.drains,
        history=History(),
        open_tables=_no_tables,
        name_of_role=name_of,
        open_ipvs=lambda: table,  # type: ignore[arg-type,return-value]
    )
    application = metrics_application(rig.metrics, settings=lambda: settings)
    add_state(application, view)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _no_tables() -> NoReturn:
    raise AssertionError("nobody asks for differences")


@asynccontextmanager
async def looked_at(port: int, answers: dict[str, list[float]]) -> AsyncIterator[None]:
    """Have another process read the pages; at the end fill ``answers`` with the seconds of each, by name."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.looking", str(port)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    yield
    written, _ = await process.communicate(b"")
    answers |= json.loads(written)


def look(port: int) -> dict[str, list[float]]:
    """Ask for one page after the other until standard input ends; return the seconds of each answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    answers: dict[str, list[float]] = {name: [] for name in PAGES}
    for turn in itertools.count(2):
        for name, path in PAGES.items():
            number = turn % 9_000 + 2
            filled = path.replace("team-%d", f"team-{number % 50}").replace("%d", str(number))
            begun = time.perf_counter()
            connection.request("GET", filled)
            response = connection.getresponse()
            body = response.read()
            answers[name].append(time.perf_counter() - begun)
            assert response.status == HTTPStatus.OK, (filled, body)
        if select.select([sys.stdin], [], [], 0)[0]:
            break
    return answers


if __name__ == "__main__":
    json.dump(look(int(sys.argv[1])), sys.stdout)
