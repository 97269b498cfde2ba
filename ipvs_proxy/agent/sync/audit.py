"""Finds drift: what somebody else changed in the kernel's tables, and repairs it.

Every ``syncPeriod`` there is a round. It begins with what is short: rules, sets, addresses, and a list of the virtual
servers. Their real servers, a system call for each virtual server, take the first half of the period, some at a time.
The invariants:

* Whatever is in the kernel is looked at once in each period, or its changes are told of: those of addresses by
  rtnetlink, as long as the agent listens and no address has a route only. In every round an object has its turn at
  about the same time.
* Only what differs while nobody writes is drift. The reads of virtual servers run beside the writes and hold nothing
  up; what they find different is read once more, a few at a time, with the writer's lock held. What was written while
  the list was read is left to the next round.
* Whose a virtual server is, the sets and addresses say (see ``plan.ownership``). So what nobody wants there goes after
  the virtual servers that belong to it, which the list has; and if the audit fails before that, it is found again by
  the next one. A virtual server that nobody wants and that those tables do not call ours stays.
* A round that fails loses no difference: the mirror is corrected only of what was read as a whole.
* Nothing is compared on the event loop that grows with the tables.

Between two rounds, rtnetlink reports at once a removed address or link.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import Protocol

import structlog

from ipvs_proxy.agent.sync.kernel_writer import KernelWriter
from ipvs_proxy.agent.sync.mirror import Mirror
from ipvs_proxy.agent.sync.unsettled import Unsettled
from ipvs_proxy.kernel.ipvs.records import ListDifference
from ipvs_proxy.kernel.links.monitor import LinkChange, LinkEvent
from ipvs_proxy.plan import ownership
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Family, VirtualServer, VirtualServerKey, text_of
from ipvs_proxy.snapshots import snapshot
from ipvs_proxy.state.services import member_text

log = structlog.get_logger(__name__)

#: Virtual servers whose real servers are looked at in one go, in a thread: some milliseconds.
LOOKED_AT_ONCE = 1000
#: Every so many rounds the list has the virtual servers of IPv6 also where none can be ours, for the number of others.
IPV6_EVERY = 20
#: Keys that are read again under one hold of the writer's lock: a change waits for some milliseconds at most.
CONFIRMED_AT_ONCE = 32
#: The share of a period over which a round is spread. The rest is for a round that takes longer, or fails at its end: a
#: node is unhealthy when none has succeeded for two periods.
SPREAD = 0.5
#: A round that takes very long is followed by a rest of this share of the time that it took.
REST = 0.25
#: Seconds after which a changed period is noticed.
NOTICED_AFTER = 5.0
#: Objects that are named in a log line.
NAMED = 5
#: Seconds until listening to rtnetlink is begun again after it failed.
LISTEN_AGAIN = 1.0
#: What a read or write of the kernel may raise: a refusal, or an answer that is no message (a ValueError).
FAULTS = (OSError, ValueError)

#: Waits until it is time for the part of a round that begins where this share of it is done.
Pace = Callable[[float], Awaitable[None]]


class VirtualServerReader(Protocol):
    """Compares IPVS with what is known of it (``kernel.ipvs.comparison``). Raises one of ``FAULTS``."""

    def compare_list(self, known: Mapping[VirtualServerKey, VirtualServer], *, ipv6: bool) -> ListDifference:
        """Compare all virtual servers, without ``ipv6`` those of IPv4, but not the real servers of the known ones."""

    def differing(self, servers: Iterable[VirtualServer]) -> list[VirtualServerKey]:
        """Return which of some virtual servers have other real servers."""


async def at_once(_: float) -> None:
    """Go on without waiting."""


class Audit:
    """Compares the kernel with the mirror, corrects the mirror, and has the kernel writer repair what differs.

    Args:
        writer: the kernel writer.
        repair_rules: brings the packet rules to what they should be, and returns what was wrong; called in a thread.
        reader: reads virtual servers; called in a thread, beside the writes, so with a socket of its own.
        repaired: is told the table and what of it differed.

    """

    def __init__(
        self,
        writer: KernelWriter,
        *,
        repair_rules: Callable[[], list[str]],
        reader: VirtualServerReader,
        repaired: Callable[[str, Sequence[str]], None],
    ) -> None:
        self._writer = writer
        self._repair_rules = repair_rules
        self._reader = reader
        self._repaired = repaired
        self.unsettled = Unsettled(writer)
        self._one_read = asyncio.Lock()
        self._lists = 0
        #: Whether rtnetlink is listened to.
        self._listens = False
        #: Whether the mirror of the addresses may be wrong although it does.
        self._doubts_addresses = True

    async def run_once(self, pace: Pace = at_once) -> None:
        """Look at everything once.

        Raises:
            OSError: if a table cannot be read or a rule not be written.
            ValueError: if an answer of the kernel is no message.

        """
        self._report("rules", await asyncio.to_thread(self._repair_rules))
        unwanted = TableKeys()
        await self._writer.correct(partial(self._correct_small_tables, unwanted))
        try:
            await self._audit_list()
        except FAULTS:
            # The next round is to find it again, when it knows the virtual servers that it belongs to.
            self._doubts_addresses = True
            await self._writer.forget_unwanted(unwanted)
            raise
        await self._writer.write(unwanted)
        fault = await self._audit_real_servers(pace)
        await self.unsettled.write()
        if fault is not None:
            raise fault

    async def handle_events(self, events: Collection[LinkEvent]) -> None:
        """Repair what rtnetlink tells of, at once; with the first ones (LOST), it has begun to tell of everything.

        Our own writes are told of too: what the mirror does not expect to be there, once they are recorded, is no news.
        After any change the next round reads the addresses; additions are left to it. Whoever deletes the link may have
        cleared IPVS away before, as kube-proxy does at each start in nftables mode: virtual servers come back before
        the addresses, which would lead to the node's own ports.

        Raises as ``run_once`` does.
        """
        changes = {event.change for event in events}
        removed = {event.address for event in events if event.change is LinkChange.ADDRESS_REMOVED}
        self._listens = self._listens or LinkChange.LOST in changes
        self._doubts_addresses = self._doubts_addresses or changes != {LinkChange.HOST_ADDRESSES_CHANGED}
        try:
            if LinkChange.LINK_REMOVED in changes:
                await self._audit_list()
        finally:
            if changes & {LinkChange.LINK_REMOVED, LinkChange.LOST}:
                await self._writer.correct(self._correct_addresses)
            elif removed:
                await self._writer.correct(partial(self._correct_removed, removed))

    def stop_listening(self) -> None:
        """Note that rtnetlink's events are not heard any more: every round reads the addresses."""
        self._listens = False

    async def _correct_small_tables(self, unwanted: TableKeys, mirror: Mirror) -> TableKeys:
        """Correct the mirror of sets and addresses; what nobody wants is not touched, but noted."""
        missing = await mirror.ensure_tables()
        self._report("tables", missing)
        hears = self._listens and mirror.hears_of_addresses()
        doubts = self._doubts_addresses or not hears or bool(missing)
        # From here on, what is told of is newer than what is read.
        self._doubts_addresses = False
        try:
            touched = await mirror.reread_small_tables(addresses=doubts)
        except FAULTS:
            self._doubts_addresses = True
            raise
        self._report("addresses", [text_of(address) for address in touched.addresses])
        self._report(
            "sets", [f"{self._writer.name_of_role(role)} {member_text(entry)}" for role, entry in touched.entries]
        )
        unwanted.addresses = {address for address in touched.addresses if not self._is_wanted(address)}
        unwanted.entries = {entry for entry in touched.entries if entry not in self._writer.desired.entries}
        return TableKeys(addresses=touched.addresses - unwanted.addresses, entries=touched.entries - unwanted.entries)

    async def _correct_addresses(self, mirror: Mirror) -> TableKeys:
        """Correct the mirror of the addresses, but for what nobody wants: that is left to the next round."""
        self._report("tables", await mirror.ensure_tables())
        self._doubts_addresses = True
        wrong = await mirror.reread_addresses()
        unwanted = {address for address in wrong & mirror.tables.addresses if not self._is_wanted(address)}
        mirror.forget(TableKeys(addresses=unwanted))
        self._report("addresses", [text_of(address) for address in wrong - unwanted])
        return TableKeys(addresses=wrong - unwanted)

    async def _correct_removed(self, removed: Collection[bytes], mirror: Mirror) -> TableKeys:
        """Correct the mirror of the addresses if it has some of those that were removed."""
        if mirror.tables.addresses.isdisjoint(removed):
            return TableKeys()
        return await self._correct_addresses(mirror)

    def _is_wanted(self, address: bytes) -> bool:
        return address in self._writer.desired.addresses

    async def _audit_list(self) -> None:
        """Compare the virtual servers, with the real servers of those that are not known."""
        async with self._one_read:
            with self._writer.noting_writes() as written:
                found = await asyncio.to_thread(self._compare_list)
        await self._confirm(self._writer.find_suspects(found, written))

    def _compare_list(self) -> ListDifference:
        ipv6 = not self._lists % IPV6_EVERY or ownership.has_family(self._writer.actual, Family.IPV6)
        self._lists += 1
        return self._reader.compare_list(snapshot(self._writer.actual.virtual_servers), ipv6=ipv6)

    async def _audit_real_servers(self, pace: Pace) -> Exception | None:
        """Compare the real servers of all virtual servers that are known now; return the first fault.

        The others are looked at all the same: one that fails in every round must not keep them from it.
        """
        keys, fault = list(self._writer.actual.virtual_servers), None
        for start in range(0, len(keys), LOOKED_AT_ONCE):
            await pace(start / len(keys))
            try:
                async with self._one_read:
                    suspects = await asyncio.to_thread(self._differing, keys[start : start + LOOKED_AT_ONCE])
                await self._confirm(suspects)
            except FAULTS as error:
                fault = fault or error
        return fault

    def _differing(self, keys: Sequence[VirtualServerKey]) -> list[VirtualServerKey]:
        known = self._writer.actual.virtual_servers
        return self._reader.differing(server for key in keys if (server := known.get(key)) is not None)

    async def _confirm(self, suspects: Sequence[VirtualServerKey]) -> None:
        for start in range(0, len(suspects), CONFIRMED_AT_ONCE):
            keys = suspects[start : start + CONFIRMED_AT_ONCE]
            await self._writer.correct(partial(self._reread, keys))

    async def _reread(self, keys: Collection[VirtualServerKey], mirror: Mirror) -> TableKeys:
        """Read suspects again, now that nobody writes: only what still differs is drift."""
        wrong = await mirror.reread_virtual_servers(keys)
        self._report("ipvs", [str(key) for key in wrong])
        return TableKeys(virtual_servers=wrong)

    def _report(self, table: str, drift: list[str]) -> None:
        if drift:
            self._repaired(table, drift)
            log.warning("drift_repaired", table=table, count=len(drift), found=sorted(drift)[:NAMED])


async def audit_for_ever(
    audit: Audit,
    *,
    period: Callable[[], float],
    begun: Callable[[], None],
    finished: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Begin a round every ``period()`` seconds; one that fails is logged and the next one tries again."""

    async def wait(due: Callable[[], float]) -> None:
        """Wait until the time that ``due`` says, which may change meanwhile."""
        await sleep(0)
        while (left := due() - clock()) > 0:
            await sleep(min(left, NOTICED_AFTER))

    begin = end = clock()
    while True:
        rest = REST * (end - begin)
        await wait(lambda: max(begin + period(), end + rest))  # noqa: B023  called before they change
        begin = clock()
        begun()
        try:
            await audit.run_once(lambda share: wait(lambda: begin + share * SPREAD * period()))  # noqa: B023
        except FAULTS as error:
            log.error("audit_failed", error=str(error))
        else:
            finished()
        end = clock()


class Watch(Protocol):
    """What listens to rtnetlink from the moment it is made until it is closed (``kernel.links.monitor.Monitor``)."""

    def follow(self) -> AsyncGenerator[list[LinkEvent], None]:
        """Return the events as they come, those that come together in one list."""

    def close(self) -> None:
        """Stop listening."""


async def follow_for_ever(
    handle: Callable[[list[LinkEvent]], Awaitable[None]], watch: Callable[[], Watch], *, failed: Callable[[], None]
) -> None:
    """Hand rtnetlink's events to ``handle`` as they come; ``watch`` begins to listen.

    Where listening ``failed`` it is begun again. What was missed before is looked for each time.
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
        failed()
        await asyncio.sleep(LISTEN_AGAIN)
