"""How the agent's loops reach the kernel: what they ask of the dataplane, and the one thread that asks.

All calls block, so none is made on the event loop. They follow one another in one thread, because the dataplane's
sockets are not made for two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from ipvs_proxy.kernel.dataplane import Failure
from ipvs_proxy.plan.tables import Operation, Role, SetEntry, VirtualServer, VirtualServerKey

T = TypeVar("T")


class ReadableTables(Protocol):
    """The kernel's tables, to be read. Each method raises OSError, or ValueError for an answer that is no message."""

    def ensure_tables(self) -> list[str]:
        """Make sure that link and sets exist; return what was missing."""

    def read_virtual_servers(self) -> dict[VirtualServerKey, VirtualServer]:
        """Read all virtual servers, also those that are not ours."""

    def read_virtual_server(self, key: VirtualServerKey) -> VirtualServer | None:
        """Read one virtual server."""

    def read_addresses(self) -> set[bytes]:
        """Read the addresses of our link."""

    def announces_addresses(self) -> bool:
        """Return whether rtnetlink tells of every change of what ``read_addresses`` reads."""

    def read_entries(self) -> dict[Role, set[SetEntry]]:
        """Read the members of our sets by role."""

    def read_changed_entries(self) -> dict[Role, set[SetEntry] | None]:
        """Read the members of the roles that are not certainly as they were last read, but for what was applied since.

        ``None``: the set is missing.
        """

    def has_scheduler(self, name: str) -> bool:
        """Return whether there is a scheduler of this name, which is loaded if that is possible."""

    def name_of_role(self, role: Role) -> str:
        """Return what the kernel calls the set of a role."""


class WritableTables(ReadableTables, Protocol):
    """The kernel's tables and packet rules, to be written: what ``kernel.dataplane.Dataplane`` is for the agent."""

    @property
    def spells_marks(self) -> bool:
        """Whether the packet filter needs the bits of marks, each in its role."""

    def repair_rules(self) -> list[str]:
        """Bring the packet rules to what they should be; return what was wrong."""

    def write_rules(self) -> list[str]:
        """Do so with what ``find_leftovers`` has read, and do not look what came of it."""

    def find_leftovers(self) -> list[str]:
        """Return what kube-proxy left behind in its other modes, or an agent with another packet filter."""

    def remove_leftovers(self) -> list[str]:
        """Remove what ``find_leftovers`` finds; return what it was."""

    def read_left_entries(self) -> dict[Role, set[SetEntry]]:
        """Read by role the members that are left in the sets of another packet filter."""

    def apply(self, operations: Sequence[Operation]) -> list[Failure]:
        """Carry operations out in their order; return those that failed."""

    def writes(self) -> int:
        """Return how many messages and rule sets have been written."""


class KernelThread:
    """The thread in which calls to the kernel are made, one after another."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="kernel")

    async def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Make a blocking call in the thread; return or raise what it does."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def end(self) -> None:
        """Let the thread end; what it is doing is finished first, and what waits is not begun."""
        self._executor.shutdown(wait=False, cancel_futures=True)
