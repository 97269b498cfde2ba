"""Brings the kernel's tables to what is desired, and keeps book of what they hold.

The programmer owns the desired tables and the mirror of the kernel's. Every write goes through ``program``: the
difference of the touched keys becomes operations, a worker thread carries them out, what succeeded is recorded, and
what failed is read again and retried by itself. One lock orders all writes; the kernel is never read on the way of a
change that succeeds.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address
from operator import attrgetter
from typing import Protocol, TypeVar

import structlog

from ipvs_proxy.agent.sync.retries import RetryQueue
from ipvs_proxy.kernel.dataplane import TABLES, Failure, table_of
from ipvs_proxy.kernel.filter.backend import NameOfRole
from ipvs_proxy.netlink.errors import UNKNOWN
from ipvs_proxy.netlink.errors import describe as describe_code
from ipvs_proxy.plan import ownership
from ipvs_proxy.plan.desired import DesiredTables
from ipvs_proxy.plan.difference import difference, unsettled, unsettled_among, unsettled_members, unwanted
from ipvs_proxy.plan.marks import corrections
from ipvs_proxy.plan.mirror import KernelTables
from ipvs_proxy.plan.table_keys import TableKeys, keys_of
from ipvs_proxy.plan.tables import (
    AddressOperation,
    Operation,
    RealServerKey,
    RealServerOperation,
    Role,
    SetEntry,
    SetEntryOperation,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
    text_of,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")
Network = IPv4Network | IPv6Network
#: So many failures of one round are logged one by one; the rest only as a number.
LOGGED_FAILURES = 10
#: So many real servers and members are compared, or noted, on the event loop: some 10 ms. More take the worker thread,
#: or turns.
AT_ONCE = 5000
#: So many virtual servers are compared before the event loop may do something else: some 10 ms.
COMPARED_AT_ONCE = 5000


class Kernel(Protocol):
    """What the programmer needs of the dataplane."""

    def ensure_tables(self) -> list[str]:
        """Make sure that link and sets exist; say what was missing."""

    def repair_rules(self) -> list[str]:
        """Bring the packet rules to what they should be; say what was wrong."""

    def write_rules(self) -> list[str]:
        """Do so with what ``find_leftovers`` has read, and do not look what came of it."""

    def find_leftovers(self) -> list[str]:
        """Say what kube-proxy left behind in its other modes."""

    def remove_leftovers(self) -> list[str]:
        """Take away what kube-proxy left behind in its other modes; say what it was."""

    def read_virtual_servers(self) -> dict[VirtualServerKey, VirtualServer]:
        """Read all virtual servers, also those that are not ours."""

    def read_virtual_server(self, key: VirtualServerKey) -> VirtualServer | None:
        """Read one virtual server."""

    def read_addresses(self) -> set[bytes]:
        """Read the addresses of our link."""

    def read_entries(self) -> dict[Role, set[SetEntry]]:
        """Read the members of our sets by role."""

    def name_of_role(self, role: Role) -> str:
        """Return what the kernel calls the set of a role."""

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        """Carry operations out; return those that failed."""

    def writes(self) -> int:
        """Return how many messages and rule sets have been written."""


class Programmer:
    """The only writer of IPVS, addresses and sets."""

    def __init__(
        self,
        kernel: Kernel,
        *,
        count: Callable[[str, Verb, int, bool], None],
        exclude: Sequence[Network] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.desired = DesiredTables()
        self.actual = KernelTables()
        self.foreign: dict[VirtualServerKey, VirtualServer] = {}
        self.retries = RetryQueue()
        self._leftovers: list[str] = []
        self.written: TableKeys | None = None
        self._kernel = kernel
        self._count = count
        self._exclude = exclude
        self._clock = clock
        self._lock = asyncio.Lock()
        #: Held while a thread compares the tables: ``desired`` must not change meanwhile.
        self.comparing = asyncio.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="kernel")
        self._retry_soon = asyncio.Event()
        self._watchers: list[Callable[[TableKeys], None]] = []

    def on_write(self, watcher: Callable[[TableKeys], None]) -> None:
        """Have ``watcher`` called with the virtual servers that a round touched, after it; large ones in turns."""
        self._watchers.append(watcher)

    def kernel_writes(self) -> int:
        """Return how many messages and rule sets have been written to the kernel so far."""
        return self._kernel.writes()

    def close(self) -> None:
        """Let the worker thread end; what it is doing is finished first."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def take_over_frame(self) -> None:
        """Make link, sets and rules right, which everything else refers to, and read addresses and members.

        Where kube-proxy ran in another mode its rules serve the Services until ours can: then ours are written by
        ``take_over_rules``. Nothing is deleted here.
        """
        async with self._lock:
            findings = await self.work(self._kernel.ensure_tables)
            self.actual = KernelTables(entries=await self.work(self._kernel.read_entries))
            # Our rules put marks together from the sets of their bits.
            await self._carry_out([*corrections(self.actual.entries)], TableKeys())
            self._leftovers = await self.work(self._kernel.find_leftovers)
            if self._leftovers:
                log.info("other_mode_found", found=self._leftovers)
            else:
                findings += await self.work(self._kernel.write_rules)
            self.actual.addresses = await self.work(self._kernel.read_addresses)
        log.info("frame_ready", written=len(findings), addresses=len(self.actual.addresses))

    async def take_over_virtual_servers(self) -> None:
        """Read what an earlier agent left: the starting point of the mirror. The frame has been taken over."""
        async with self._lock:
            self.foreign.clear()
            found = await self.work(self._kernel.read_virtual_servers)
            is_ours = self.ownership()
            for key, server in found.items():
                (self.actual.virtual_servers if is_ours(key) else self.foreign)[key] = server
        log.info(
            "kernel_read",
            virtual_servers=len(self.actual.virtual_servers),
            foreign_virtual_servers=len(self.foreign),
        )

    async def take_over_rules(self) -> None:
        """Put our rules in the place of those that kube-proxy left in another mode: all virtual servers are complete.

        A fault is logged; the next audit writes the rules, and the next start removes what is left.
        """
        if not self._leftovers:
            return
        async with self._lock:
            try:
                await self.work(self._kernel.repair_rules)
                log.info("other_mode_removed", removed=await self.work(self._kernel.remove_leftovers))
            except (OSError, ValueError) as error:
                log.error("other_mode_not_removed", error=str(error))

    async def repair_rules(self) -> list[str]:
        """Bring the packet rules to what they should be; say what was wrong."""
        async with self._lock:
            return await self.work(self._kernel.repair_rules)

    def ownership(self) -> Callable[[VirtualServerKey], bool]:
        """Return what tells whether a virtual server found in the kernel may be changed or deleted, as things are now.

        It is ours if it is desired, or if the kernel's other tables say so (see ``plan.ownership``), unless
        ``excludeCIDRs`` keeps us from it.
        """
        desired, is_named, exclude = self.desired.virtual_servers, ownership.ledger(self.actual), self._exclude

        def is_ours(key: VirtualServerKey) -> bool:
            if key in desired:
                return True
            return is_named(key) and not any(ip_address(key.address) in network for network in exclude)

        return is_ours

    async def program(self, touched: TableKeys) -> list[Operation]:
        """Bring the touched objects to what is desired; return the operations that succeeded."""
        async with self._lock:
            return await self._program(touched)

    async def program_everything(self) -> list[Operation]:
        """Program what differs anywhere; what nobody wants any more goes.

        Looking for it takes a quarter of the time that ``difference`` would take with every key of both sides.
        """
        touched = unsettled(self.desired, self.actual)
        touched.add(unwanted(self.desired, self.actual))
        return await self.program(touched)

    async def correct(self, correction: Callable[[KernelTables], Awaitable[TableKeys]]) -> list[Operation]:
        """Let ``correction`` bring the mirror to what it finds in the kernel, then repair the keys it gives.

        No write comes between the two.
        """
        async with self._lock:
            return await self._program(await correction(self.actual))

    async def program_unsettled(self) -> list[Operation]:
        """Program what differs although nothing waits for another attempt: what a fault made forgotten ends here."""
        found = unsettled_members(self.desired, self.actual)
        keys = list(self.desired.virtual_servers.keys() | self.actual.virtual_servers)
        for start in range(0, len(keys), COMPARED_AT_ONCE):
            found.virtual_servers |= unsettled_among(keys[start : start + COMPARED_AT_ONCE], self.desired, self.actual)
            await asyncio.sleep(0)
        return await self.program(
            TableKeys(
                {key for key in found.virtual_servers if key not in self.retries},
                {address for address in found.addresses if address not in self.retries},
                {entry for entry in found.entries if entry not in self.retries},
            )
        )

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
            return done + await self._program(TableKeys(again)) if again else done

    async def retry_for_ever(self) -> None:
        """Try failed objects again when they are due."""
        while True:
            due = self.retries.next_due()
            try:
                await asyncio.wait_for(self._retry_soon.wait(), None if due is None else max(0.0, due - self._clock()))
                self._retry_soon.clear()
            except TimeoutError:
                due_now = self.retries.take_due(self._clock())
                await self.program(due_now)

    async def work(self, call: Callable[..., T], *arguments: object) -> T:
        """Make a blocking call to the kernel in the worker thread, where calls follow one another."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, call, *arguments)

    async def _program(self, touched: TableKeys) -> list[Operation]:
        self._adopt(touched)
        # Of what failed before, more may differ than what changed now.
        for key in [key for key in touched.only if key in self.retries]:
            del touched.only[key]
        return await self._carry_out(*await self._compare(touched))

    async def _compare(self, touched: TableKeys) -> tuple[list[Operation], TableKeys]:
        """As ``_difference``; where much was touched, the event loop goes on meanwhile."""
        if len(touched.entries) + sum(map(partial(self._size, touched), touched.virtual_servers)) <= AT_ONCE:
            return self._difference(touched)
        async with self.comparing:
            return await self.work(self._difference, touched)

    def _difference(self, touched: TableKeys) -> tuple[list[Operation], TableKeys]:
        """Return the operations for what was touched, and what that is with all that drains or goes along."""
        keys = self.actual.note_draining(self.desired, touched)
        return difference(self.desired, self.actual, keys), keys

    def _size(self, touched: TableKeys, key: VirtualServerKey) -> int:
        """Return how many real servers of a virtual server have to be looked at."""
        if key in touched.only:
            return len(touched.only[key])
        desired, actual = self.desired.virtual_servers.get(key), self.actual.virtual_servers.get(key)
        return max(len(server.real_servers) if server is not None else 0 for server in (desired, actual))

    def _adopt(self, touched: TableKeys) -> None:
        """Take over a foreign virtual server that has become desired, as it is."""
        if self.foreign:
            for key in touched.virtual_servers & self.foreign.keys() & self.desired.virtual_servers.keys():
                self.actual.virtual_servers[key] = self.foreign.pop(key)
                touched.only.pop(key, None)

    async def _carry_out(self, operations: list[Operation], touched: TableKeys) -> list[Operation]:
        failures: list[Failure] = []
        if operations:
            if self.written is not None:
                self.written.add(touched)
            try:
                failures = await self.work(self._kernel.apply, operations)
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
        await self._tell_watchers(touched)
        return succeeded

    async def _tell_watchers(self, touched: TableKeys) -> None:
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
            for watcher in self._watchers:
                watcher(TableKeys(keys, only={key: touched.only[key] for key in keys & touched.only.keys()}))

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
            await self._read_again(failing)
        except (OSError, ValueError) as error:
            log.error("read_after_failure_failed", error=str(error))
        delay = self.retries.failed(failing, self._clock())
        self._retry_soon.set()
        for failure in failures[:LOGGED_FAILURES]:
            log.warning(
                "operation_failed",
                **describe(failure.operation, self._kernel.name_of_role),
                error=failure.text,
                retry_in_seconds=delay,
            )
        if len(failures) > LOGGED_FAILURES:
            log.warning("operations_failed", **Counter(table_of(failure.operation) for failure in failures))

    def _count_all(self, operations: Sequence[Operation], succeeded: bool) -> None:
        # Counted by kind first: a counter of the metrics costs as much as the rest of the book-keeping.
        kinds = Counter(zip(map(type, operations), map(attrgetter("verb"), operations), strict=True))
        for (kind, verb), number in kinds.items():
            self._count(TABLES[kind], verb, number, succeeded)

    async def _read_again(self, failing: TableKeys) -> None:
        for key in failing.virtual_servers:
            server = await self.work(self._kernel.read_virtual_server, key)
            if server is None:
                self.actual.virtual_servers.pop(key, None)
            else:
                self.actual.virtual_servers[key] = server
        if failing.addresses or failing.entries:
            # The link or a whole set may be gone: then everything in it has to be written again.
            await self.work(self._kernel.ensure_tables)
        if failing.addresses:
            failing.addresses |= await self.reread_addresses()
        if failing.entries:
            failing.entries |= self._correct_entries(await self.work(self._kernel.read_entries))

    async def reread_small_tables(self) -> TableKeys:
        """Correct the mirror of addresses and sets; return what it was wrong about. Only from within ``correct``."""
        # Both are read before the mirror of either changes: what differs must not be lost with a fault.
        addresses, entries = await self.work(self._kernel.read_addresses), await self.work(self._kernel.read_entries)
        return TableKeys(addresses=self._correct_addresses(addresses), entries=self._correct_entries(entries))

    async def reread_addresses(self) -> set[bytes]:
        """Correct the mirror of the addresses; return those it was wrong about. Only from within ``correct``."""
        return self._correct_addresses(await self.work(self._kernel.read_addresses))

    def _correct_addresses(self, found: set[bytes]) -> set[bytes]:
        wrong = found ^ self.actual.addresses
        self.actual.addresses = found
        return wrong

    def _correct_entries(self, found: dict[Role, set[SetEntry]]) -> set[tuple[Role, SetEntry]]:
        known = self.actual.entries
        wrong = {
            (role, entry)
            for role in found.keys() | known.keys()
            for entry in found.get(role, set()) ^ known.get(role, set())
        }
        self.actual.entries = found
        return wrong


def describe(operation: Operation, name_of_role: NameOfRole) -> dict[str, str]:
    """Return an operation's verb, table and object, for logs."""
    fields = {"verb": operation.verb.value, "table": table_of(operation)}
    match operation:
        case RealServerOperation(_, key, server, _):
            return fields | {"virtual_server": str(key), "real_server": str(server)}
        case VirtualServerOperation(_, server):
            return fields | {"virtual_server": str(server.key)}
        case AddressOperation(_, address):
            return fields | {"address": text_of(address)}
        case SetEntryOperation(_, role, entry):
            return fields | {"set": name_of_role(role), "entry": str(entry)}
