"""Finds drift: what somebody else changed in the kernel's tables, and repairs it.

Every ``syncPeriod`` all four places are read: rules, sets, addresses and IPVS. The invariants:

* Only what differs while nobody writes is drift. The large read, that of the real servers, runs beside the writes and
  holds nothing up; what it finds different is read once more, a few at a time, with the writer's lock held. What was
  written meanwhile is left to the next round.
* Whose a virtual server is, the sets and addresses say (see ``plan.ownership``). So what nobody wants there goes last,
  after the virtual servers that belong to it; and if the audit fails before that, it is found again by the next one. A
  virtual server that nobody wants and that those tables do not call ours stays.
* A round that fails loses no difference: the mirror is corrected only of what was read as a whole.

Between two rounds, rtnetlink reports at once a removed address or link.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import Protocol

import structlog

from ipvs_proxy.agent.sync.kernel_writer import KernelWriter
from ipvs_proxy.agent.sync.mirror import Mirror
from ipvs_proxy.kernel.links.monitor import LinkChange, LinkEvent
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import VirtualServer, VirtualServerKey, text_of

log = structlog.get_logger(__name__)

#: Keys that are read again under one hold of the writer's lock: a change waits for some milliseconds at most.
CONFIRMED_AT_ONCE = 32
#: Objects that are named in a log line.
NAMED = 5
#: Seconds until listening to rtnetlink is begun again after it failed.
LISTEN_AGAIN = 1.0
#: What a read or write of the kernel may raise: a refusal, or an answer that is no message (a ValueError).
FAULTS = (OSError, ValueError)


class Audit:
    """Compares the kernel with the mirror, corrects the mirror, and has the kernel writer repair what differs.

    Args:
        writer: the kernel writer.
        repair_rules: brings the packet rules to what they should be, and returns what was wrong; called in a thread.
        read_virtual_servers: reads all virtual servers; called in a thread, beside the writes, so with a socket of its
            own.
        repaired: is told the table and what of it differed.

    """

    def __init__(
        self,
        writer: KernelWriter,
        *,
        repair_rules: Callable[[], list[str]],
        read_virtual_servers: Callable[[], Mapping[VirtualServerKey, VirtualServer]],
        repaired: Callable[[str, Sequence[str]], None],
    ) -> None:
        self._writer = writer
        self._repair_rules = repair_rules
        self._read_virtual_servers = read_virtual_servers
        self._repaired = repaired
        self._one_read = asyncio.Lock()

    async def run_once(self) -> None:
        """Look at all four places once.

        Raises:
            OSError: if a table cannot be read or a rule not be written.
            ValueError: if an answer of the kernel is no message.

        """
        self._report("rules", await asyncio.to_thread(self._repair_rules))
        unwanted = TableKeys()
        await self._writer.correct(partial(self._correct_small_tables, unwanted))
        try:
            await self._audit_virtual_servers()
        except FAULTS:
            # The next round is to find it again, when it knows the virtual servers that it belongs to.
            self._writer.forget_unwanted(unwanted)
            raise
        await self._writer.write(unwanted)
        await self._writer.write_unsettled()

    async def handle_events(self, events: Collection[LinkEvent]) -> None:
        """Repair what rtnetlink tells of, at once.

        Our own writes are told of too: what the mirror does not expect to be there is no news. Additions are left to
        the next round. Whoever deletes the link may have cleared IPVS away before, as kube-proxy does at each start in
        nftables mode: virtual servers come back before the addresses, which would lead to the node's own ports.

        Raises as ``run_once`` does.
        """
        expected, changes = self._writer.actual.addresses, {event.change for event in events}
        try:
            if LinkChange.LINK_REMOVED in changes:
                await self._audit_virtual_servers()
        finally:
            if changes & {LinkChange.LINK_REMOVED, LinkChange.LOST} or any(
                event.change is LinkChange.ADDRESS_REMOVED and event.address in expected for event in events
            ):
                await self._writer.correct(self._correct_addresses)

    async def _correct_small_tables(self, unwanted: TableKeys, mirror: Mirror) -> TableKeys:
        """Correct the mirror of sets and addresses; what nobody wants is not touched, but noted."""
        self._report("tables", await mirror.ensure_tables())
        touched = await mirror.reread_small_tables()
        self._report("addresses", [text_of(address) for address in touched.addresses])
        self._report("sets", [f"{self._writer.name_of_role(role)} {entry}" for role, entry in touched.entries])
        unwanted.addresses = {address for address in touched.addresses if not self._is_wanted(address)}
        unwanted.entries = {entry for entry in touched.entries if entry not in self._writer.desired.entries}
        return TableKeys(addresses=touched.addresses - unwanted.addresses, entries=touched.entries - unwanted.entries)

    async def _correct_addresses(self, mirror: Mirror) -> TableKeys:
        """Correct the mirror of the addresses, but for what nobody wants: that is left to the next round."""
        self._report("tables", await mirror.ensure_tables())
        wrong = await mirror.reread_addresses()
        unwanted = {address for address in wrong & mirror.tables.addresses if not self._is_wanted(address)}
        mirror.forget(TableKeys(addresses=unwanted))
        self._report("addresses", [text_of(address) for address in wrong - unwanted])
        return TableKeys(addresses=wrong - unwanted)

    def _is_wanted(self, address: bytes) -> bool:
        return address in self._writer.desired.addresses

    async def _audit_virtual_servers(self) -> None:
        async with self._one_read:
            with self._writer.noting_writes() as written:
                found = await asyncio.to_thread(self._read_virtual_servers)
        suspects = self._writer.find_suspects(found, written)
        for start in range(0, len(suspects), CONFIRMED_AT_ONCE):
            keys = suspects[start : start + CONFIRMED_AT_ONCE]
            await self._writer.correct(partial(self._confirm, keys))

    async def _confirm(self, keys: Collection[VirtualServerKey], mirror: Mirror) -> TableKeys:
        """Read suspects again, now that nobody writes: only what still differs is drift."""
        wrong = await mirror.reread_virtual_servers(keys)
        self._report("ipvs", [str(key) for key in wrong])
        return TableKeys(virtual_servers=wrong)

    def _report(self, table: str, drift: list[str]) -> None:
        if drift:
            self._repaired(table, drift)
            log.warning("drift_repaired", table=table, count=len(drift), found=sorted(drift)[:NAMED])


async def audit_for_ever(
    audit: Audit, *, period: Callable[[], float], begun: Callable[[], None], finished: Callable[[], None]
) -> None:
    """Run a round every ``period()`` seconds; a round that fails is logged and the next one tries again."""
    while True:
        await asyncio.sleep(period())
        begun()
        try:
            await audit.run_once()
        except FAULTS as error:
            log.error("audit_failed", error=str(error))
        else:
            finished()


class Watch(Protocol):
    """What listens to rtnetlink from the moment it is made until it is closed (``kernel.links.monitor.Monitor``)."""

    def follow(self) -> AsyncGenerator[list[LinkEvent], None]:
        """Return the events as they come, those that come together in one list."""

    def close(self) -> None:
        """Stop listening."""


async def follow_for_ever(handle: Callable[[list[LinkEvent]], Awaitable[None]], watch: Callable[[], Watch]) -> None:
    """Hand rtnetlink's events to ``handle`` as they come; ``watch`` begins to listen.

    Where listening fails it is begun again. What was missed before is looked for each time.
    """
    while True:
        try:
            with closing(watch()) as monitor:
                await handle([LinkEvent(LinkChange.LOST)])
                async with aclosing(monitor.follow()) as batches:
                    async for batch in batches:
                        await handle(batch)
        except FAULTS as error:
            log.error("repair_failed", error=str(error))
        await asyncio.sleep(LISTEN_AGAIN)
