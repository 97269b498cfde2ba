"""The start: from a kernel as somebody left it to one where every Service is served. Then changes are followed.

Three things go on at the same time, as none needs the others' result: the kernel is read and its frame made right,
objects come from the API, and Services are planned that have all of theirs. But nothing that depends on an object is
written until it is known: rules wait for the own Node, and virtual servers, addresses and members of sets until all
Services and EndpointSlices are known, too. What nobody wants can only then be told from what has not come yet.

Then everything is written: the API server and the cluster's DNS first and by themselves, as everything else in the
cluster waits for them, the others in batches, and last what was left over by those who were here before.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Final

import structlog

from ipvs_proxy.agent.sync.controller import Controller
from ipvs_proxy.pacing import Backoff

log = structlog.get_logger(__name__)

#: What was read of the kernel this many seconds before all objects were known is read again.
TAKE_OVER_AGAIN = 30.0
#: The pauses after the kernel could not be read.
BACKOFF: Final = Backoff(first=1.0, longest=30.0)
#: Seconds between two looks at whether there is something to plan before all objects are known.
AHEAD_INTERVAL: Final = 0.02
#: Seconds of planning between two looks at what else the event loop has to do meanwhile.
AHEAD_TURN: Final = 0.01
#: Services that are planned between two looks at the clock; a look is a system call in some virtual machines.
CLOCK_INTERVAL: Final = 16


async def run(controller: Controller) -> None:
    """Start, then follow the changes for ever."""
    await Startup(controller).start()
    await controller.follow_for_ever()


class Startup:
    """The start of a controller, up to the moment that everything is written for the first time."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._planner = controller.planner
        self._writer = controller.writer
        self._known = controller.known
        self._taken_over = asyncio.Event()
        self._read_at = 0.0

    async def start(self) -> None:
        """Take the kernel over while the objects come, and write all of them."""
        await asyncio.gather(self._take_over(), self._plan_meanwhile(), self._known.all.wait())
        if time.monotonic() - self._read_at > TAKE_OVER_AGAIN:
            await self._take_over()
        if self._controller.cache.node is None:
            log.warning("node_not_found", node=self._planner.context.node_name)
        await self._write_everything()

    async def _take_over(self) -> None:
        """Read what is in the kernel and make its frame right. Of the objects, the rules need only the own Node."""
        await self._known.node.wait()
        failures = 0
        while True:
            try:
                await self._controller.refresh_facts()
                await self._writer.take_over_frame()
                self._planner.restore_marks(self._writer.actual.entries)
                self._taken_over.set()
                await self._writer.take_over_virtual_servers()
                break
            except (OSError, ValueError) as error:
                delay = BACKOFF.delay(failures)
                log.error("kernel_not_readable", error=str(error), retry_in_seconds=delay)
                await asyncio.sleep(delay)
                failures += 1
        self._controller.note_rules_written()
        self._read_at = time.monotonic()

    async def _plan_meanwhile(self) -> None:
        """Plan what is there until all objects are known; nothing but the marks in use depends on the kernel."""
        await self._taken_over.wait()
        await self._known.services.wait()
        while not self._known.all.is_set():
            await self._plan_ahead()
            with suppress(TimeoutError):
                async with asyncio.timeout(AHEAD_INTERVAL):
                    await self._known.all.wait()

    async def _plan_ahead(self) -> None:
        """Plan Services that have EndpointSlices already; should more come, they are planned again."""
        names = self._controller.cache.having_slices(self._controller.dirty)
        until = time.monotonic() + AHEAD_TURN
        for index, name in enumerate(sorted(names)):
            if not index % CLOCK_INTERVAL and time.monotonic() > until:
                await asyncio.sleep(0)
                # What everybody waits for goes first once all is known.
                if self._known.all.is_set():
                    return
                until = time.monotonic() + AHEAD_TURN
            # Not a set kept from before: a change of the settings replaces it.
            self._controller.dirty.discard(name)
            await self._planner.plan(name)

    async def _write_everything(self) -> None:
        begun = time.monotonic()
        services = self._controller.cache.services
        self._controller.dirty |= services.keys() - self._planner.planned
        operations = await self._controller.write_dirty()
        self._planner.forget_restored_marks()
        operations += len(await self._writer.write_everything())
        await self._writer.take_over_rules()
        self._controller.note_started()
        log.info(
            "started",
            services=len(services),
            virtual_servers=len(self._writer.desired.virtual_servers),
            operations=operations,
            kernel_writes=self._writer.kernel_writes(),
            seconds=round(time.monotonic() - begun, 3),
        )
