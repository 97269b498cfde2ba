"""The mirror: what the kernel's tables hold, as far as the agent knows.

The invariant: ``tables`` is what the kernel held when it was last read, with every operation that has succeeded since.
So it is wrong only about what somebody else changed meanwhile, and about operations whose fate is unknown; the audit
finds the former, and the latter are read again at once and wait for a retry. A change of a Service therefore needs no
read of the kernel.

Only the kernel writer changes the mirror, with its lock held: what is read must not cross a write. What the audit
corrects is read as a whole before anything is changed, so that a read that fails leaves the difference there to be
found again; what failed to be written waits for its retry anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from ipvs_proxy.agent.sync.kernel_access import KernelThread, ReadableTables
from ipvs_proxy.kernel.ipvs.records import ListDifference
from ipvs_proxy.plan.mirror import KernelTables, is_same
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Family, Role, SetEntry, VirtualServer, VirtualServerKey, family_of


class _EntryDifference(NamedTuple):
    """Members of a role that are not there any more, and those that nobody knew of."""

    role: Role
    gone: set[SetEntry]
    new: set[SetEntry]


class Mirror:
    """``tables`` is what is ours in the kernel, ``foreign`` has the virtual servers there that are not."""

    def __init__(self, kernel: ReadableTables, thread: KernelThread) -> None:
        self.tables = KernelTables()
        self.foreign: dict[VirtualServerKey, VirtualServer] = {}
        self._kernel = kernel
        self._thread = thread
        #: Whether the mirror of the sets is wrong on purpose (``forget``).
        self._forgot = False

    async def ensure_tables(self) -> list[str]:
        """Make sure that link and sets exist; return what was missing. Raises as the kernel does."""
        return await self._thread.call(self._kernel.ensure_tables)

    async def begin(self) -> None:
        """Forget everything and read the members of the sets. Raises as the kernel does."""
        self.tables = KernelTables(entries=await self._thread.call(self._kernel.read_entries))
        self._forgot = False

    async def read_virtual_servers(self, is_ours: Callable[[VirtualServerKey], bool]) -> None:
        """Read all virtual servers into what is ours and what is not. Raises as the kernel does."""
        self.foreign.clear()
        for key, server in (await self._thread.call(self._kernel.read_virtual_servers)).items():
            (self.tables.virtual_servers if is_ours(key) else self.foreign)[key] = server

    def hears_of_addresses(self) -> bool:
        """Return whether rtnetlink tells of every change of addresses."""
        return self._kernel.announces_addresses()

    async def reread_addresses(self) -> set[bytes]:
        """Correct the mirror of the addresses; return those it was wrong about. Raises as the kernel does."""
        return self._correct_addresses(await self._thread.call(self._kernel.read_addresses))

    async def reread_small_tables(self, *, addresses: bool = True) -> TableKeys:
        """Correct the mirror of addresses and sets; return what it was wrong about. Raises as the kernel does.

        Without ``addresses``, those are not read. Of the sets, only those are that others may have changed.
        """
        found = await self._thread.call(self._kernel.read_addresses) if addresses else None
        read = self._all_entries if self._forgot else self._kernel.read_changed_entries
        entries = await self._thread.call(self._compare_entries, read)
        wrong = set[bytes]() if found is None else self._correct_addresses(found)
        return TableKeys(addresses=wrong, entries=self._correct_entries(entries))

    async def reread_virtual_servers(self, keys: Collection[VirtualServerKey]) -> set[VirtualServerKey]:
        """Correct the mirror of some virtual servers; return those it was wrong about. Raises as the kernel does."""
        read = {key: await self._thread.call(self._kernel.read_virtual_server, key) for key in keys}
        known = self.tables.virtual_servers
        wrong = {key for key, found in read.items() if not is_same(found, known.get(key))}
        for key in wrong:
            self._correct_virtual_server(key, read[key])
        return wrong

    async def reread_failed(self, failed: TableKeys) -> None:
        """Correct the mirror of what could not be written, and add to ``failed`` what else it was wrong about.

        A link or a whole set may be gone: then it is made again, and everything in it has to be written again. Raises
        as the kernel does.
        """
        for key in failed.virtual_servers:
            self._correct_virtual_server(key, await self._thread.call(self._kernel.read_virtual_server, key))
        if failed.addresses or failed.entries:
            await self.ensure_tables()
        if failed.addresses:
            failed.addresses |= await self.reread_addresses()
        if failed.entries:
            entries = await self._thread.call(self._compare_entries, self._all_entries)
            failed.entries |= self._correct_entries(entries)

    def take_list(
        self,
        found: ListDifference,
        is_ours: Callable[[VirtualServerKey], bool],
        *,
        but_for: Collection[VirtualServerKey],
    ) -> list[VirtualServerKey]:
        """Return which of our virtual servers seem to differ from what is known, and note which others are not ours.

        Those of ``but_for`` were written while they were listed: nothing is said of them.
        """
        unknown = {key: server for key, server in found.unknown.items() if key not in but_for}
        kept = {
            key: one for key, one in self.foreign.items() if not found.ipv6 and family_of(key.address) is Family.IPV6
        }
        self.foreign = kept | {key: server for key, server in unknown.items() if not is_ours(key)}
        return [key for key in found.differing if key not in but_for] + [key for key in unknown if is_ours(key)]

    def adopt(self, keys: Iterable[VirtualServerKey]) -> None:
        """Take foreign virtual servers for ours, as they are."""
        for key in keys:
            self.tables.virtual_servers[key] = self.foreign.pop(key)

    def forget(self, unwanted: TableKeys) -> None:
        """Forget addresses and members that nobody wants, so that the next look at the kernel finds them as drift."""
        self.tables.addresses -= unwanted.addresses
        self._forgot = self._forgot or bool(unwanted.entries)
        for role, entry in unwanted.entries:
            self.tables.entries.get(role, set()).discard(entry)

    def _correct_virtual_server(self, key: VirtualServerKey, found: VirtualServer | None) -> None:
        if found is None:
            self.tables.virtual_servers.pop(key, None)
        else:
            self.tables.virtual_servers[key] = found

    def _correct_addresses(self, found: set[bytes]) -> set[bytes]:
        wrong = found ^ self.tables.addresses
        self.tables.addresses = found
        return wrong

    def _all_entries(self) -> dict[Role, set[SetEntry] | None]:
        return {**dict.fromkeys(self.tables.entries), **self._kernel.read_entries()}

    def _compare_entries(self, read: Callable[[], Mapping[Role, set[SetEntry] | None]]) -> list[_EntryDifference]:
        """Read members in the kernel's thread; return in which roles they are others than is known.

        Each is looked at by itself: the difference of two sets would keep the event loop for as long as it takes.
        """
        found: list[_EntryDifference] = []
        for role, members in read().items():
            known, present = self.tables.entries.get(role, set()), members or set()
            gone = {entry for entry in known if entry not in present}
            new = {entry for entry in present if entry not in known}
            if gone or new:
                found.append(_EntryDifference(role, gone, new))
        return found

    def _correct_entries(self, differences: Iterable[_EntryDifference]) -> set[tuple[Role, SetEntry]]:
        wrong: set[tuple[Role, SetEntry]] = set()
        for role, gone, new in differences:
            known = self.tables.entries.setdefault(role, set())
            known -= gone
            known |= new
            wrong |= {(role, entry) for entry in gone | new}
        self._forgot = False
        return wrong
