"""Has tracked flows of TCP and SCTP deleted that began before their virtual server was there, beside a kube-proxy.

Where a Service moves to us and kube-proxy takes its rules away first, a connection that begins in between leaves the
node untranslated, and conntrack knows it as that. Its next packets come to IPVS, but conntrack takes the real server's
answers for nobody's, and kube-proxy's iptables mode drops them as INVALID, until the client gives up. Once the flow is
forgotten, the client's next packet begins it anew.

Only virtual servers that are new are looked at, and only flows whose answers are expected from their own address: IPVS
changes that with the first packet of each connection (``ip_vs_update_conntrack`` of net/netfilter/ipvs/ip_vs_nfct.c).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Final

import structlog

from ipvs_proxy.agent.sync.stale_flows import REST, SETTLE, FlowTable, VirtualServers
from ipvs_proxy.kernel.conntrack.table import Conntrack
from ipvs_proxy.plan.flows import Flow
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Protocol, VirtualServerKey, family_of

log = structlog.get_logger(__name__)

_PROTOCOLS: Final = (Protocol.TCP, Protocol.SCTP)


class AstrayFlows:
    """Remembers which virtual servers are new, and cleans; ``desired`` returns all of them, on the event loop."""

    def __init__(
        self, desired: Callable[[], VirtualServers], *, open_table: Callable[[], FlowTable] = Conntrack
    ) -> None:
        self._desired = desired
        self._open_table = open_table
        self._known: set[VirtualServerKey] = set()
        self._new: set[VirtualServerKey] = set()
        self._due = asyncio.Event()

    def observe_write(self, touched: TableKeys, *_: VirtualServers) -> None:
        """Look at the virtual servers of a write."""
        desired = self._desired()
        for key in touched.virtual_servers:
            if key.protocol not in _PROTOCOLS or key.mark:
                continue
            if key not in desired:
                self._known.discard(key)
            elif key not in self._known:
                self._known.add(key)
                self._new.add(key)
                self._due.set()

    async def clean_for_ever(self) -> None:
        """Clean whenever there are new virtual servers; what cannot be done is logged, and left to time out."""
        while True:
            await self._due.wait()
            await asyncio.sleep(SETTLE)
            new, self._new = self._new, set()
            self._due.clear()
            try:
                if deleted := await asyncio.to_thread(self._delete, new):
                    log.info("astray_flows_deleted", deleted=deleted)
            except (OSError, ValueError) as error:
                log.warning("astray_flows_not_deleted", error=str(error))
            await asyncio.sleep(REST)

    def _delete(self, new: AbstractSet[VirtualServerKey]) -> int:
        def is_astray(flow: Flow) -> bool:
            expected = flow.reply_source, flow.reply_source_port
            return expected == (flow.destination, flow.destination_port) and (
                VirtualServerKey(flow.destination, flow.protocol, flow.destination_port) in new
            )

        deleted = 0
        with self._open_table() as table:
            for family, protocol in {(family_of(key.address), key.protocol) for key in new}:
                deleted += table.delete(table.read(family, protocol, keep=is_astray)).count(0)
        return deleted
