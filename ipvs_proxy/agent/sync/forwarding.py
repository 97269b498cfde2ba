"""Tells of a kernel that does not forward IPv6, as soon as a Service uses it: most clusters have none that does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from ipvs_proxy.agent.sync.kernel_writer import Programmer
from ipvs_proxy.node.sysctl import forwarding_problems
from ipvs_proxy.plan.tables import VirtualServerKey

log = structlog.get_logger(__name__)


async def warn_of_forwarding(programmer: Programmer) -> None:
    """Wait for the first virtual server of IPv6, and log what keeps its answers from being forwarded; once.

    Raises:
        Unusable: if the setting cannot be read.

    """
    used = asyncio.Event()

    def observe(keys: Iterable[VirtualServerKey]) -> None:
        if not used.is_set() and any(len(key.address) == 16 for key in keys):
            used.set()

    programmer.on_write(lambda touched: observe(touched.virtual_servers))
    observe(programmer.desired.virtual_servers)
    await used.wait()
    for problem in forwarding_problems():
        log.warning("sysctl_warning", text=str(problem))
    await asyncio.Event().wait()
