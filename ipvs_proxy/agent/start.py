"""The steps of a start, from what can refuse it to what needs it: checks, settings of the kernel, API, tables.

A missing piece ends the start with one line. Where the kernel, or this process, is only short of something (memory,
buffers, descriptors, the lock of iptables), the step is done again, as everything is in a running agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from ipvs_proxy.agent.assembly import Agent, connect_to_api
from ipvs_proxy.agent.open_kernel import prepare_kernel
from ipvs_proxy.kernel.dataplane import Dataplane
from ipvs_proxy.netlink.errors import Unusable, is_passing
from ipvs_proxy.netlink.wire import MalformedMessage
from ipvs_proxy.node import requirements
from ipvs_proxy.node.packet_filters import Host
from ipvs_proxy.pacing import Backoff
from ipvs_proxy.settings.model import Settings

log = structlog.get_logger(__name__)

#: The pauses until a step is done again.
BACKOFF: Final = Backoff(first=0.5, longest=5.0)

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818  no error
    """The agent was told to stop while it started."""


async def start(settings: Settings, stop: asyncio.Event) -> Agent:
    """Prepare the node and put the agent together.

    Raises:
        Unusable: for what keeps the agent from its work, in one line.
        ConnectError: if it cannot be told how to reach the API.
        Stopped: if ``stop`` is set while a step waits.

    """
    host, dataplane = await prepare(settings, stop)
    preparing = asyncio.get_running_loop().run_in_executor(None, dataplane.prepare)

    async def assemble() -> Agent:
        return Agent(settings, host, dataplane, client)

    client = await persist("API", lambda: connect_to_api(settings), stop)
    agent = await persist("tables", assemble, stop)
    await preparing
    return agent


async def prepare(settings: Settings, stop: asyncio.Event | None = None) -> tuple[Host, Dataplane]:
    """Check the node and set what needs more rights than the rest. Raises as ``start`` does."""

    async def check() -> Host:
        return requirements.require_all(settings.packet_filter)

    async def open_kernel() -> Dataplane:
        return prepare_kernel(settings, host)

    host = await persist("checks", check, stop)
    log.info("packet_filter", chosen=host.packet_filter, reason=host.reason)
    if host.iptables is not None:
        used = host.iptables
        log.info("iptables", variant=used.backend, version=used.version_text, reason=used.reason)
    for family, reason in host.unsupported.items():
        log.warning("family_unsupported", family=family.label, reason=reason)
    return host, await persist("kernel", open_kernel, stop)


async def persist(what: str, step: Callable[[], Awaitable[T]], stop: asyncio.Event | None = None) -> T:
    """Do a step until no shortage keeps it from working; return what it returns.

    Raises:
        Unusable: if it fails for another reason.
        Stopped: if ``stop`` is set before the step can be done again.

    """
    stop = stop or asyncio.Event()
    failures = 0
    while True:
        try:
            return await step()
        except Unusable as error:
            if not is_passing(error):
                raise
            problem = str(error)
        except (OSError, MalformedMessage) as error:
            if not is_passing(error):
                raise Unusable(f"the start fails ({what}): {error}") from error
            problem = str(error)
        delay = BACKOFF.delay(failures)
        log.warning("start_waits", step=what, error=problem, retry_in=delay)
        try:
            async with asyncio.timeout(delay):
                await stop.wait()
        except TimeoutError:
            failures += 1
        else:
            raise Stopped
