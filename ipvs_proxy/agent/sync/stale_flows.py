"""Has tracked flows of UDP deleted that lead where no virtual server would send them any more.

Every write to a virtual server of UDP makes its family due. Then the family's flows are read once, however many virtual
servers changed, by a thread with a socket of its own, and all of them are judged by what is desired at that moment: the
first round of a start so cleans what an earlier agent left. What could not be done is not forgotten: it is tried again
until it succeeds.

With ``expire_nodest_conn`` IPVS lets go of a removed real server by itself, and balances a flow's next packet at once
if conntrack does not know the flow any more: so a client loses nothing by the deletion. Newer kernels (Linux 6.1 does)
also take the tracked flow along, some milliseconds later. That leaves older kernels, flows that another mode of
kube-proxy made, and those that have never been translated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from errno import errorcode
from types import TracebackType
from typing import Final, Self
from typing import Protocol as Interface

import structlog

from ipvs_proxy.kernel.conntrack.table import Conntrack
from ipvs_proxy.netlink.errors import MissingPiece
from ipvs_proxy.pacing import Backoff
from ipvs_proxy.plan.flows import Flow, stale
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Family, Protocol, RealServerKey, VirtualServer, VirtualServerKey, family_of

log = structlog.get_logger(__name__)

#: Seconds to wait for more changes before the flows are read.
SETTLE: Final = 0.2
#: Seconds of rest after the flows of a family were read.
REST: Final = 1.0
#: The pauses after faults.
BACKOFF: Final = Backoff(first=1.0, longest=30.0)

VirtualServers = Mapping[VirtualServerKey, VirtualServer]
RealServers = Mapping[VirtualServerKey, Collection[RealServerKey]]


class FlowTable(Interface):
    """What this module needs of ``kernel.conntrack.table.Conntrack``."""

    def __enter__(self) -> Self:
        """Return the table itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the socket."""

    def read(self, family: Family, protocol: int, *, keep: Callable[[Flow], bool]) -> list[Flow]:
        """Return the flows that ``keep`` wants."""

    def delete(self, flows: Sequence[Flow]) -> list[int]:
        """Delete flows; return 0 or an error for each."""


def _nothing() -> RealServers:
    return {}


class StaleFlows:
    """Remembers what changed, and cleans.

    ``desired`` returns the virtual servers as they should be, and ``also_allowed`` the real servers that flows to the
    same address may lead to besides; both are called on the event loop, and what ``also_allowed`` returns must not
    change afterwards. ``cleaned`` is called after each reading of a family's flows with the family, the number of flows
    deleted and the seconds it took.
    """

    def __init__(
        self,
        desired: Callable[[], VirtualServers],
        *,
        cleaned: Callable[[Family, int, float], None],
        also_allowed: Callable[[], RealServers] = _nothing,
        open_table: Callable[[], FlowTable] = Conntrack,
    ) -> None:
        self._desired = desired
        self._cleaned = cleaned
        self._also_allowed = also_allowed
        self._open_table = open_table
        self._changed: dict[Family, set[VirtualServerKey]] = {family: set() for family in Family}
        self._due = {family: asyncio.Event() for family in Family}
        self._missing_piece_told = False

    def observe_write(self, touched: TableKeys, *_: VirtualServers) -> None:
        """Look at the virtual servers of a write."""
        self.observe(touched.virtual_servers)

    def observe(self, keys: AbstractSet[VirtualServerKey]) -> None:
        """Note virtual servers that were written, or that an earlier agent may have written."""
        for key in keys:
            if key.protocol == Protocol.UDP:
                family = family_of(key.address)
                self._changed[family].add(key)
                self._due[family].set()

    async def clean_for_ever(self) -> None:
        """Clean each family whenever it is due; a fault of one does not hold back the other."""
        await asyncio.gather(*(self._clean_family_for_ever(family) for family in Family))

    async def _clean_family_for_ever(self, family: Family) -> None:
        failures = 0
        while True:
            await self._due[family].wait()
            await asyncio.sleep(SETTLE)
            if await self._clean(family):
                failures = 0
                await asyncio.sleep(REST)
            else:
                await asyncio.sleep(BACKOFF.delay(failures))
                failures += 1

    async def _clean(self, family: Family) -> bool:
        """Delete the family's stale flows; return whether all of them are gone. If not, the changes stay remembered."""
        changed, self._changed[family] = self._changed[family], set()
        self._due[family].clear()
        desired = {key: server for key, server in self._desired().items() if key.protocol == Protocol.UDP}
        gone, also_allowed = changed.difference(desired), self._also_allowed()
        begun = time.monotonic()
        try:
            results = await asyncio.to_thread(
                self._delete, family, lambda flow: stale(flow, desired, gone, also_allowed=also_allowed)
            )
        except (OSError, ValueError) as error:
            self._tell(family, error)
            self.observe(changed)
            return False
        deleted, seconds = results.count(0), time.monotonic() - begun
        self._cleaned(family, deleted, seconds)
        if deleted:
            log.info("stale_flows_deleted", family=family.label, deleted=deleted, seconds=round(seconds, 3))
        if failures := [result for result in results if result]:
            reason = errorcode.get(failures[0], "no answer from the kernel")
            log.warning("stale_flows_not_deleted", family=family.label, failed=len(failures), error=reason)
            self.observe(changed)
        return not failures

    def _delete(self, family: Family, is_stale: Callable[[Flow], bool]) -> list[int]:
        with self._open_table() as table:
            return table.delete(table.read(family, Protocol.UDP, keep=is_stale))

    def _tell(self, family: Family, error: OSError | ValueError) -> None:
        if not isinstance(error, MissingPiece):
            log.warning("flows_not_readable", family=family.label, error=str(error))
        elif not self._missing_piece_told:
            self._missing_piece_told = True
            log.warning("conntrack_unusable", error=str(error))
