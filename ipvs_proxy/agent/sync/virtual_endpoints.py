"""Looks from time to time for endpoints that are virtual IPs, and has their Services' owners told."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

import structlog

from ipvs_proxy.agent.observe.thinning import Thinning
from ipvs_proxy.kube.objects import Service
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.fragment import ServiceName
from ipvs_proxy.plan.reasons import SERVED_OTHERWISE, Reason
from ipvs_proxy.plan.tables import RealServerKey
from ipvs_proxy.plan.virtual_endpoints import at_virtual_ips, omissions

log = structlog.get_logger(__name__)

#: Seconds between two looks. One takes some 5 ms for 10,000 Services of 10 endpoints, in turns.
INTERVAL: Final = 10.0
#: Virtual servers that are looked at before the event loop may do something else.
AT_ONCE: Final = 500


class VirtualEndpoints:
    """What is known of them; each is told once for as long as it stays so."""

    def __init__(
        self,
        desired: DesiredTables,
        services: Mapping[ServiceName, Service],
        left_out: Callable[[Service | None, Omission], None],
    ) -> None:
        self._desired = desired
        self._services = services
        self._left_out = left_out
        self._thinning = Thinning()
        self._known: dict[ServiceName, list[Omission]] = {}

    async def look(self) -> None:
        """Look at all virtual servers."""
        found: defaultdict[ServiceName, set[RealServerKey]] = defaultdict(set)
        servers = iter(list(self._desired.virtual_servers.values()))
        while some := list(islice(servers, AT_ONCE)):
            for key, real_server in at_virtual_ips(some, self._desired.addresses):
                if (owner := self._desired.owners.get(key)) is not None:
                    found[owner].add(real_server)
            await asyncio.sleep(0)
        before, self._known = self._known, {name: omissions(name, keys) for name, keys in found.items()}
        for name, now in self._known.items():
            known = set(before.get(name, ()))
            self._tell(name, [omission for omission in now if omission not in known])

    def _tell(self, name: ServiceName, new: list[Omission]) -> None:
        for omission in new:
            more = self._thinning.admit(name)
            if more is not None:
                instead = SERVED_OTHERWISE[Reason.VIRTUAL_ENDPOINT]
                log.warning(
                    "served_otherwise", where=omission.where, reason=omission.reason.value, instead=instead, **more
                )
            self._left_out(self._services.get(name), omission)

    async def look_for_ever(self, changes: Callable[[], int]) -> None:
        """Look again and again, as long as there are ``changes`` of what is desired: their number."""
        seen: int | None = None
        while True:
            if (number := changes()) != seen:
                seen = number
                await self.look()
            await asyncio.sleep(INTERVAL)
