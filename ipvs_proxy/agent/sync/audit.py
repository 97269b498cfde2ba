"""Finds drift: what somebody else changed in the kernel's tables, and repairs it.

Every ``syncPeriod`` all four places are read: rules, sets, addresses and IPVS. The large read, that of the real
servers, runs beside the writes and holds nothing up: what it finds different is read once more, one by one, with the
writer's lock held, before it counts as drift; keys that were written meanwhile are left to the next round. What nobody
wants in sets and among addresses goes last, because it tells whose a virtual server is. Between audits, rtnetlink tells
at once of a removed address or link. A virtual server that nobody wants and that the other tables
do not call ours (see ``plan.ownership``) stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import structlog

from ipvs_proxy.agent.sync.kernel_writer import Programmer
from ipvs_proxy.kernel.links.monitor import LinkChange, LinkEvent
from ipvs_proxy.plan.mirror import KernelTables, is_same
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Role, VirtualServer, VirtualServerKey, text_of

log = structlog.get_logger(__name__)

#: So many keys are read again under one hold of the writer's lock: a change waits for some milliseconds at most.
CONFIRMED_AT_ONCE = 32
#: So many objects are named in a log line.
NAMED = 5
#: Seconds until listening to rtnetlink is begun again after it failed.
LISTEN_AGAIN = 1.0
#: What a read or write of the kernel may raise: a refusal, or an answer that is no message (a ValueError).
FAULTS = (OSError, ValueError)


class Kernel(Protocol):
    """What the audit needs of the dataplane."""

    def ensure_tables(self) -> list[str]:
        """Make sure that link and sets exist; say what was missing."""

    def repair_rules(self) -> list[str]:
        """Bring the packet rules to what they should be; say what was wrong. Safe in any thread."""

    def read_virtual_server(self, key: VirtualServerKey) -> VirtualServer | None:
        """Read one virtual server."""

    def name_of_role(self, role: Role) -> str:
        """Return what the kernel calls the set of a role."""


class Audit:
    """Compares the kernel with the mirror, corrects the mirror, and has the programmer repair what differs."""

    def __init__(
        self,
        programmer: Programmer,
        kernel: Kernel,
        *,
        read_virtual_servers: Callable[[], dict[VirtualServerKey, VirtualServer]],
        repaired: Callable[[str, Sequence[str]], None],
    ) -> None:
        """Take a reader of all virtual servers that has a socket of its own, as it is called beside the writes."""
        self._programmer = programmer
        self._kernel = kernel
        self._read_virtual_servers = read_virtual_servers
        self._repaired = repaired

    async def round(self) -> None:
        """Look at all four places once.

        Raises:
            OSError: if a table cannot be read or a rule not be written.

        """
        self._report("rules", await asyncio.to_thread(self._kernel.repair_rules))
        unwanted = TableKeys()
        await self._programmer.correct(partial(self._correct_small_tables, unwanted))
        try:
            await self._audit_virtual_servers()
        except FAULTS:
            # The next round is to find it again, when it knows the virtual servers that it belongs to.
            self._programmer.actual.addresses -= unwanted.addresses
            for role, entry in unwanted.entries:
                self._programmer.actual.entries.get(role, set()).discard(entry)
            raise
        await self._programmer.program(unwanted)
        await self._programmer.program_unsettled()

    async def notice(self, events: Iterable[LinkEvent]) -> None:
        """Repair what rtnetlink tells of, at once.

        Our own writes are told of too: what the mirror does not expect to be there is no news. Additions are left to
        the next round.
        """
        expected = self._programmer.actual.addresses
        if any(
            event.change in {LinkChange.LINK_REMOVED, LinkChange.LOST}
            or (event.change is LinkChange.ADDRESS_REMOVED and event.address in expected)
            for event in events
        ):
            await self._programmer.correct(self._correct_addresses)

    async def _correct_small_tables(self, unwanted: TableKeys, _: KernelTables) -> TableKeys:
        """Correct the mirror of sets and addresses; what nobody wants is not touched, but noted."""
        missing = await self._programmer.work(self._kernel.ensure_tables)
        self._report("tables", missing)
        touched = await self._programmer.reread_small_tables()
        self._report("addresses", [text_of(address) for address in touched.addresses])
        self._report("sets", [f"{self._kernel.name_of_role(role)} {entry}" for role, entry in touched.entries])
        unwanted.addresses = {address for address in touched.addresses if not self._is_wanted(address)}
        unwanted.entries = {entry for entry in touched.entries if entry not in self._programmer.desired.entries}
        return TableKeys(addresses=touched.addresses - unwanted.addresses, entries=touched.entries - unwanted.entries)

    async def _correct_addresses(self, actual: KernelTables) -> TableKeys:
        """Correct the mirror of the addresses, but for what nobody wants: that is left to the next round."""
        self._report("tables", await self._programmer.work(self._kernel.ensure_tables))
        touched = TableKeys(addresses=await self._programmer.reread_addresses())
        unwanted = {address for address in touched.addresses & actual.addresses if not self._is_wanted(address)}
        actual.addresses -= unwanted
        touched.addresses -= unwanted
        self._report("addresses", [text_of(address) for address in touched.addresses])
        return touched

    def _is_wanted(self, address: bytes) -> bool:
        return address in self._programmer.desired.addresses

    async def _audit_virtual_servers(self) -> None:
        programmer = self._programmer
        programmer.written = written = TableKeys()
        try:
            found = await asyncio.to_thread(self._read_virtual_servers)
        finally:
            programmer.written = None
        known, is_ours = programmer.actual.virtual_servers, programmer.ownership()
        suspects = [
            key
            for key in found.keys() | known.keys()
            if key not in written.virtual_servers
            and not is_same(found.get(key), known.get(key))
            and (key in known or is_ours(key))
        ]
        programmer.foreign = {
            key: server
            for key, server in found.items()
            if key not in known and key not in written.virtual_servers and not is_ours(key)
        }
        for start in range(0, len(suspects), CONFIRMED_AT_ONCE):
            keys = suspects[start : start + CONFIRMED_AT_ONCE]
            await programmer.correct(partial(self._confirm, keys))

    async def _confirm(self, keys: Sequence[VirtualServerKey], actual: KernelTables) -> TableKeys:
        """Read suspects again, now that nobody writes: only what still differs is drift."""
        touched = TableKeys()
        # All are read before the mirror of any changes: what differs must not be lost with a fault.
        read = {key: await self._programmer.work(self._kernel.read_virtual_server, key) for key in keys}
        for key, found in read.items():
            if is_same(found, actual.virtual_servers.get(key)):
                continue
            touched.virtual_servers.add(key)
            if found is None:
                actual.virtual_servers.pop(key, None)
            else:
                actual.virtual_servers[key] = found
        self._report("ipvs", [str(key) for key in touched.virtual_servers])
        return touched

    def _report(self, table: str, findings: list[str]) -> None:
        if findings:
            self._repaired(table, findings)
            log.warning("drift_repaired", table=table, count=len(findings), found=sorted(findings)[:NAMED])


async def audit_for_ever(
    audit: Audit, *, period: Callable[[], float], begun: Callable[[], None], finished: Callable[[], None]
) -> None:
    """Run a round every ``period()`` seconds; a round that fails is logged and the next one tries again."""
    while True:
        await asyncio.sleep(period())
        begun()
        try:
            await audit.round()
        except FAULTS as error:
            log.error("audit_failed", error=str(error))
        else:
            finished()


async def follow_for_ever(
    notice: Callable[[list[LinkEvent]], Awaitable[None]], watch: Callable[[], AsyncIterable[list[LinkEvent]]]
) -> None:
    """Hand rtnetlink's events to ``notice`` as they come; ``watch`` begins to listen.

    Where listening fails it is begun again. What was missed before is looked for each time.
    """
    while True:
        try:
            batches = watch()
            await notice([LinkEvent(LinkChange.LOST)])
            async for batch in batches:
                await notice(batch)
        except FAULTS as error:
            log.error("repair_failed", error=str(error))
        await asyncio.sleep(LISTEN_AGAIN)
