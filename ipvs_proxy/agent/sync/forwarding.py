"""Warns of a kernel that does not forward IPv6, as soon as a Service uses it: most clusters have none that does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from ipvs_proxy.node.sysctl import forwarding_problems
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import VirtualServer, VirtualServerKey

log = structlog.get_logger(__name__)


class Ipv6Use:
    """Notices the first virtual server of IPv6."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()

    def observe_write(
        self,
        touched: TableKeys,
        desired: Mapping[VirtualServerKey, VirtualServer],
        _: Mapping[VirtualServerKey, VirtualServer],
    ) -> None:
        """Look at the virtual servers of a write."""
        if not self._begun.is_set() and any(
            len(key.address) == 16 and key in desired for key in touched.virtual_servers
        ):
            self._begun.set()

    async def warn(self) -> None:
        """Wait for the first one, and log once what keeps its answers from being forwarded; never return.

        Raises:
            Unusable: if the setting cannot be read.

        """
        await self._begun.wait()
        for problem in forwarding_problems():
            log.warning("sysctl_warning", text=str(problem))
        await asyncio.Event().wait()
