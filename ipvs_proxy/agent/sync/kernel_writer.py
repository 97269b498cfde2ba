"""Writes the kernel's tables: brings them to what is desired, and keeps book of what they hold.

The invariant: whatever differs between the desired tables and the mirror of the kernel's is being written, or waits in
``retries``, or is a drain. It holds because every write goes one way, under one lock:

1. The touched keys are compared, which gives operations in a safe order (see ``plan.difference``).
2. A worker thread carries them out. Every operation has a result of its own.
3. What succeeded is recorded in the mirror. What failed is read again, as the mirror may be wrong about it, and waits
   for another attempt by itself: it does not hold back the rest.
4. The observers look at the virtual servers that were touched: drains begin and end there.

So the kernel is never read on the way of a change that succeeds. What a fault makes forgotten all the same is found by
``Unsettled``, with which every audit ends.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address
from operator import attrgetter
from typing import Protocol, TypeVar

import structlog

from ipvs_proxy.agent.sync.failures import log_failures, refused_servers
from ipvs_proxy.agent.sync.kernel_access import KernelThread, WritableTables
from ipvs_proxy.agent.sync.mirror import Mirror
from ipvs_proxy.agent.sync.retries import RetryQueue
from ipvs_proxy.kernel.dataplane import TABLES, Failure
from ipvs_proxy.kernel.ipvs.records import ListDifference
from ipvs_proxy.netlink.errors import UNKNOWN
from ipvs_proxy.netlink.errors import describe as describe_code
from ipvs_proxy.plan import ownership
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.difference import difference, unsettled, unwanted
from ipvs_proxy.plan.fragment import Fragment, ServiceName
from ipvs_proxy.plan.marks import corrections
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.switching import keep_waiting
from ipvs_proxy.plan.table_keys import TableKeys, keys_of
from ipvs_proxy.plan.tables import (
    Operation,
    RealServerKey,
    RealServerOperation,
    Role,
    Verb,
    VirtualServer,
    VirtualServerKey,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")
Network = IPv4Network | IPv6Network
#: Real servers and members that are compared, or noted, on the event loop in one turn: some 10 ms. More are compared in
#: the worker thread, and noted in several turns.
AT_ONCE = 5000


class WriteObserver(Protocol):
    """What looks at the virtual servers after they were written."""

    def observe_write(
        self,
        touched: TableKeys,
        desired: Mapping[VirtualServerKey, VirtualServer],
        actual: Mapping[VirtualServerKey, VirtualServer],
    ) -> None:
        """Look at what was touched, on the event loop: neither block nor change anything. Large ones come in turns."""


class KernelWriter:
    """The only writer of IPVS, addresses, sets and rules.

    ``desired`` are the tables as they should be; they change through ``replace_fragment`` alone. ``count`` is told
    table, verb, number and success of the operations of each write, ``observers`` look at virtual servers after it, and
    ``exclude`` has the networks whose virtual servers are not ours, whatever the tables say.
    """

    def __init__(
        self,
        kernel: WritableTables,
        desired: DesiredTables,
        *,
        count: Callable[[str, Verb, int, bool], None],
        observers: Sequence[WriteObserver] = (),
        exclude: Sequence[Network] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.desired = desired
        self.retries = RetryQueue()
        self._kernel = kernel
        self._count = count
        self._observers = observers
        self._exclude = exclude
        self._clock = clock
        self._thread = KernelThread()
        self._mirror = Mirror(kernel, self._thread)
        self._leftovers: list[str] = []
        #: Another number whenever what is desired, or what is known of the kernel, may have changed.
        self.changes = 0
        #: What has been written since somebody began to note it.
        self._noted: TableKeys | None = None
        #: Held by whoever writes, or corrects the mirror.
        self._lock = asyncio.Lock()
        #: Held while a thread compares the tables: ``desired`` must not change meanwhile.
        self._comparing = asyncio.Lock()
        self._retry_soon = asyncio.Event()

    @property
    def actual(self) -> KernelTables:
        """What is ours in the kernel, as far as is known; only to be read."""
        return self._mirror.tables

    @property
    def foreign(self) -> dict[VirtualServerKey, VirtualServer]:
        """The virtual servers that are not ours, as they were last found; only to be read."""
        return self._mirror.foreign

    async def replace_fragment(self, name: ServiceName, fragment: Fragment | None) -> TableKeys:
        """Put a Service's plan in the place of the one it had, ``None`` for none; return what may have to change."""
        async with self._comparing:
            self.changes += 1
            return self.desired.replace(name, fragment)

    def kernel_writes(self) -> int:
        """Return how many messages and rule sets have been written to the kernel so far."""
        return self._kernel.writes()

    def close(self) -> None:
        """Let the worker thread end; what it is doing is finished first."""
        self._thread.end()

    async def take_over_frame(self) -> None:
        """Make link, sets and rules right, which everything else refers to, and read addresses and members.

        Where kube-proxy ran in another mode, or an agent with another packet filter, their rules serve until ours are
        written by ``take_over_rules``; what the sets of such an agent have, ours get at once, as it says what is ours.
        Nothing is deleted here. Raises OSError or ValueError if the kernel cannot be read.
        """
        async with self._lock:
            missing = await self._mirror.ensure_tables()
            await self._mirror.begin()
            self._leftovers = await self.call(self._kernel.find_leftovers)
            if self._leftovers:
                log.info("other_mode_found", found=self._leftovers)
                left = ownership.handed_over(await self.call(self._kernel.read_left_entries), self.actual.entries)
                await self._carry_out([*left], TableKeys())
            if self._kernel.spells_marks:
                await self._carry_out([*corrections(self.actual.entries)], TableKeys())
            missing += [] if self._leftovers else await self.call(self._kernel.write_rules)
            await self._mirror.reread_addresses()
        log.info("frame_ready", written=len(missing), addresses=len(self.actual.addresses))

    async def take_over_virtual_servers(self) -> None:
        """Read what an earlier agent left, after the frame. Raises OSError or ValueError if it cannot be read."""
        async with self._lock:
            await self._mirror.read_virtual_servers(self._ownership())
        log.info(
            "kernel_read",
            virtual_servers=len(self.actual.virtual_servers),
            foreign_virtual_servers=len(self.foreign),
        )

    async def take_over_rules(self) -> None:
        """Put our rules in the place of those that were left. A fault is logged; audit and next start make it good."""
        if not self._leftovers:
            return
        async with self._lock:
            try:
                await self.call(self._kernel.repair_rules)
                log.info("other_mode_removed", removed=await self.call(self._kernel.remove_leftovers))
            except (OSError, ValueError) as error:
                log.error("other_mode_not_removed", error=str(error))

    async def repair_rules(self) -> list[str]:
        """Bring the packet rules to what they should be; return what was wrong."""
        async with self._lock:
            return await self.call(self._kernel.repair_rules)

    def _ownership(self) -> Callable[[VirtualServerKey], bool]:
        """Return a function that says whether a virtual server found in the kernel may be changed or deleted.

        It is ours if it is desired, or if the kernel's other tables say so (see ``plan.ownership``), unless
        ``excludeCIDRs`` keeps us from it.
        """
        desired, is_named, exclude = self.desired.virtual_servers, ownership.ledger(self.actual), self._exclude

        def is_ours(key: VirtualServerKey) -> bool:
            if key in desired:
                return True
            return is_named(key) and not any(ip_address(key.address) in network for network in exclude)

        return is_ours

    async def write(self, touched: TableKeys) -> list[Operation]:
        """Bring the touched objects to what is desired; return the operations that succeeded."""
        async with self._lock:
            return await self._write(touched)

    async def write_everything(self) -> list[Operation]:
        """Write what differs anywhere; what nobody wants any more goes.

        Looking for it takes a quarter of the time that ``difference`` would take with every key of both sides.
        """
        touched = unsettled(self.desired, self.actual)
        touched.add(unwanted(self.desired, self.actual))
        return await self.write(touched)

    async def correct(self, correction: Callable[[Mirror], Awaitable[TableKeys]]) -> list[Operation]:
        """Let ``correction`` bring the mirror to what it finds in the kernel, then repair the keys that it returns.

        No write comes between the two. Returns the operations that succeeded; raises what ``correction`` does.
        """
        async with self._lock:
            return await self._write(await correction(self._mirror))

    @contextmanager
    def noting_writes(self) -> Iterator[TableKeys]:
        """Note what is written while the context lasts, for a read of the kernel beside it; yields the notes."""
        self._noted = noted = TableKeys()
        try:
            yield noted
        finally:
            self._noted = None

    def find_suspects(self, found: ListDifference, written: TableKeys) -> list[VirtualServerKey]:
        """Return the virtual servers of ours that seem to differ, by a list of all.

        Those that are not ours are noted as foreign. What was ``written`` while the kernel listed them is left out.
        """
        return self._mirror.take_list(found, self._ownership(), but_for=written.virtual_servers)

    async def forget_unwanted(self, unwanted: TableKeys) -> None:
        """Forget addresses and members that nobody wants, so that the next audit finds them again."""
        async with self._lock:
            self.changes += 1
            self._mirror.forget(unwanted)

    async def remove_real_servers(self, removals: Sequence[tuple[VirtualServerKey, RealServerKey]]) -> list[Operation]:
        """Delete drained real servers, unless they have become wanted or weight came back in the meantime.

        With its last real server goes a virtual server that nobody wants, and what stayed for it. One that waits for
        another attempt is compared as a whole, as this one counts as one.
        """
        async with self._lock:
            operations: list[RealServerOperation] = []
            for key, server in removals:
                actual, desired = self.actual.virtual_servers.get(key), self.desired.virtual_servers.get(key)
                settings = None if actual is None else actual.real_servers.get(server)
                if settings is None or settings.weight or (desired is not None and server in desired.real_servers):
                    continue
                operations.append(RealServerOperation(Verb.DELETE, key, server, settings))
            keys = {operation.virtual_server for operation in operations}
            again = {key for key in keys if key not in self.desired.virtual_servers or key in self.retries}
            done = await self._carry_out([*operations], keys_of(operations))
            return done + await self._write(TableKeys(again)) if again else done

    async def retry_for_ever(self) -> None:
        """Try failed objects again when they are due."""
        while True:
            due = self.retries.next_due()
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                    await self._retry_soon.wait()
                self._retry_soon.clear()
            except TimeoutError:
                due_now = self.retries.take_due(self._clock())
                await self.write(due_now)

    async def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Make a blocking call to the kernel in the thread of all such calls; return or raise what it does."""
        return await self._thread.call(function, *arguments)

    async def _write(self, touched: TableKeys) -> list[Operation]:
        self.changes += bool(touched)
        self._adopt(touched)
        # Of what failed before, more may differ than what changed now.
        for key in [key for key in touched.only if key in self.retries]:
            del touched.only[key]
        return await self._carry_out(*await self._compare(touched))

    async def _compare(self, touched: TableKeys) -> tuple[list[Operation], TableKeys]:
        """As ``_difference``; where much was touched, the event loop goes on meanwhile."""
        if len(touched.entries) + sum(map(partial(self._size, touched), touched.virtual_servers)) <= AT_ONCE:
            return self._difference(touched)
        async with self._comparing:
            return await self.call(self._difference, touched)

    def _difference(self, touched: TableKeys) -> tuple[list[Operation], TableKeys]:
        """Return the operations for what was touched, and what that is with all that drains or goes along."""
        keys = self.actual.note_draining(self.desired, touched)
        return keep_waiting(difference(self.desired, self.actual, keys), self.desired, self.actual), keys

    async def has_scheduler(self, name: str) -> bool:
        """Return whether the kernel has a scheduler. Raises OSError if it does not say."""
        return await self.call(self._kernel.has_scheduler, name)

    def name_of_role(self, role: Role) -> str:
        """Return what the kernel calls the set of a role."""
        return self._kernel.name_of_role(role)

    def _size(self, touched: TableKeys, key: VirtualServerKey) -> int:
        """Return how many real servers of a virtual server have to be looked at."""
        if key in touched.only:
            return len(touched.only[key])
        both = self.desired.virtual_servers.get(key), self.actual.virtual_servers.get(key)
        return max([0 if server is None else len(server.real_servers) for server in both])

    def _adopt(self, touched: TableKeys) -> None:
        """Take over a foreign virtual server that has become desired, as it is."""
        if self.foreign:
            adopted = touched.virtual_servers & self.foreign.keys() & self.desired.virtual_servers.keys()
            self._mirror.adopt(adopted)
            for key in adopted:
                touched.only.pop(key, None)

    async def _carry_out(self, operations: list[Operation], touched: TableKeys) -> list[Operation]:
        try:
            return await self._apply(operations, touched)
        finally:
            self.changes += bool(operations)

    async def _apply(self, operations: list[Operation], touched: TableKeys) -> list[Operation]:
        failures: list[Failure] = []
        if operations:
            if self._noted is not None:
                self._noted.add(touched)
            try:
                failures = await self.call(self._kernel.apply, operations)
            except (OSError, ValueError) as error:
                log.error("kernel_write_failed", error=str(error))
                failures = [Failure(operation, UNKNOWN, describe_code(UNKNOWN)) for operation in operations]
        succeeded = operations
        if failures:
            failed = {id(failure.operation) for failure in failures}
            succeeded = [operation for operation in operations if id(operation) not in failed]
        await self._record(succeeded)
        failing = keys_of(failure.operation for failure in failures)
        self.retries.settled(touched, failing)
        if failures:
            await self._note_failures(failures, failing)
        await self._tell_observers(touched)
        return succeeded

    async def _tell_observers(self, touched: TableKeys) -> None:
        size, keys = 0, set[VirtualServerKey]()
        for key in touched.virtual_servers:
            keys.add(key)
            size += self._size(touched, key)
            if size > AT_ONCE:
                self._tell(keys, touched)
                size, keys = 0, set()
                await asyncio.sleep(0)
        self._tell(keys, touched)

    def _tell(self, keys: set[VirtualServerKey], touched: TableKeys) -> None:
        if keys:
            # Where only some of very many real servers were looked at, all are not compared.
            self.actual.share(self.desired.virtual_servers, keys - touched.only.keys())
            piece = TableKeys(keys, only={key: touched.only[key] for key in keys & touched.only.keys()})
            for observer in self._observers:
                observer.observe_write(piece, self.desired.virtual_servers, self.actual.virtual_servers)

    async def _record(self, operations: list[Operation]) -> None:
        """Take note of what the kernel has carried out; in turns where that is much."""
        for start in range(0, len(operations), AT_ONCE):
            if start:
                await asyncio.sleep(0)
            piece = operations[start : start + AT_ONCE]
            self.actual.record(piece)
            self._count_all(piece, True)

    async def _note_failures(self, failures: list[Failure], failing: TableKeys) -> None:
        """Read again what failed, as the mirror may be wrong about it, and have it retried."""
        self._count_all([failure.operation for failure in failures], False)
        try:
            await self._mirror.reread_failed(failing)
        except (OSError, ValueError) as error:
            log.error("read_after_failure_failed", error=str(error))
        delay = self.retries.failed(failing, self._clock(), refused=refused_servers(failures))
        self._retry_soon.set()
        log_failures(failures, delay, self._kernel.name_of_role)

    def _count_all(self, operations: Sequence[Operation], succeeded: bool) -> None:
        # Counted by kind first: a counter of the metrics costs as much as the rest of the book-keeping.
        kinds = Counter(zip(map(type, operations), map(attrgetter("verb"), operations), strict=True))
        for (kind, verb), number in kinds.items():
            self._count(TABLES[kind], verb, number, succeeded)
