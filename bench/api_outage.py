"""When the watches of many agents come back after an outage: the real reflector, on a clock that jumps."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import NamedTuple

from structlog.testing import capture_logs

from bench.api_objects import event_line
from bench.managed import Json
from ipvs_proxy.kube.decode import INITIAL_EVENTS_END
from ipvs_proxy.kube.reflector import Response, reflect
from ipvs_proxy.kube.resources import SERVICES
from ipvs_proxy.kube.store import Change

VERSION = "1234567890"


class Outage(NamedTuple):
    """The API is unreachable for ``seconds`` from time 0; then ``agents`` come back to it."""

    seconds: float
    agents: int
    seed: int = 1


def reconnects(outage: Outage) -> list[float]:
    """Return the seconds from the end of the outage to the first request of each agent's watch that is answered.

    Raises RuntimeError if an agent lists again instead of going on from where it was.
    """
    with capture_logs():  # the reflectors log the outage
        return asyncio.run(_reconnects(outage))


async def _reconnects(outage: Outage) -> list[float]:
    clock, source = _Clock(), random.Random(outage.seed)
    back: list[float] = []
    agents = [
        asyncio.create_task(
            reflect(SERVICES, _Api(outage, clock, back), _Nobody(), jitter=source.random, sleep=clock.sleep)
        )
        for _ in range(outage.agents)
    ]
    await clock.run()
    for agent in agents:
        agent.cancel()
    faults = [fault for fault in await asyncio.gather(*agents, return_exceptions=True) if isinstance(fault, Exception)]
    if faults:
        raise faults[0]
    return back


class _Clock:
    """A clock that moves on only when everybody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self._alarms: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    async def sleep(self, seconds: float) -> None:
        alarm = asyncio.get_running_loop().create_future()
        heapq.heappush(self._alarms, (self.now + seconds, next(self._order), alarm))
        await alarm

    async def run(self) -> None:
        """Wake the sleepers in turn until nobody sleeps."""
        await asyncio.sleep(0)
        while self._alarms:
            self.now, _, alarm = heapq.heappop(self._alarms)
            alarm.set_result(None)
            await asyncio.sleep(0)


class _Api:
    """The API as one agent sees it: a streaming list, then nobody there, then a watch that stays silent."""

    def __init__(self, outage: Outage, clock: _Clock, back: list[float]) -> None:
        self._outage, self._clock, self._back = outage, clock, back
        self._listed = False

    def get(
        self,
        path: str,  # noqa: ARG002  the interface of a transport
        query: Mapping[str, str],
        *,
        inactivity: float,  # noqa: ARG002
    ) -> AbstractAsyncContextManager[Response]:
        if not self._listed:
            self._listed = True
            return _answer(_Broken())
        if self._clock.now < self._outage.seconds:
            raise ConnectionRefusedError
        if query.get("resourceVersion") != VERSION:
            raise RuntimeError("an agent lists again after an outage")
        self._back.append(self._clock.now - self._outage.seconds)
        return _answer(_Silent())

    async def reauthenticate(self) -> None:
        raise AssertionError


@asynccontextmanager
async def _answer(response: Response) -> AsyncIterator[Response]:
    yield response


class _Broken:
    """The whole list, then a broken connection."""

    status = 200
    headers: Mapping[str, str] = {}

    async def chunks(self, *, is_bulk: Callable[[], bool] = lambda: False) -> AsyncIterator[bytes]:  # noqa: ARG002
        metadata: Json = {"resourceVersion": VERSION, "annotations": {INITIAL_EVENTS_END: "true"}}
        yield event_line({"metadata": metadata}, SERVICES.kind, event="BOOKMARK")
        raise ConnectionResetError

    async def read(self, limit: int) -> bytes:  # noqa: ARG002
        raise AssertionError


class _Silent(_Broken):
    """A watch in which nothing happens."""

    async def chunks(self, *, is_bulk: Callable[[], bool] = lambda: False) -> AsyncIterator[bytes]:  # noqa: ARG002
        await asyncio.get_running_loop().create_future()
        yield b""


class _Nobody:
    """A sink that ignores everything."""

    def changed(self, changes: Sequence[Change]) -> None:
        """Ignore the changes."""

    def synced(self, kind: str) -> None:
        """Take note."""

    def skipped(self, kind: str, key: str, error: str) -> None:
        """Take note."""
