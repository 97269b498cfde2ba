"""Which schedulers the kernel has: it is asked about each of them once, when the first Service has it in its plan.

A scheduler is a module, which the kernel loads when a virtual server with it is made. One that is missing is asked for
again in every sync period, so that loading the module is all that an operator has to do. So is one of which the kernel
did not say whether it is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

log = structlog.get_logger(__name__)


class Schedulers:
    """The schedulers that were asked for.

    ``has`` asks the kernel; it raises OSError if the kernel does not say, and ValueError if its answer is garbage.
    """

    def __init__(self, has: Callable[[str], Awaitable[bool]]) -> None:
        self.missing: frozenset[str] = frozenset()
        self._has = has
        self._there: set[str] = set()
        self._untold: set[str] = set()

    async def find(self, names: Iterable[str]) -> bool:
        """Ask for those of some schedulers that are not known yet; return whether another one is missing."""
        known = (self._there, self._untold, self.missing)
        unknown = [name for name in names if not any(name in some for some in known)]
        return await self._ask(unknown) if unknown else False

    async def find_missing(self) -> bool:
        """Ask again for what is missing, or what the kernel did not say; return whether what is missing has changed."""
        return await self._ask(sorted(self.missing | self._untold))

    def note(self, name: str) -> None:
        """Note that a scheduler is there."""
        self._there.add(name)

    async def _ask(self, names: list[str]) -> bool:
        before = self.missing
        for name in names:
            try:
                there = await self._has(name)
            except (OSError, ValueError) as error:
                # It is taken for there. If it is not, virtual servers are refused until the next look finds it missing.
                self._untold.add(name)
                log.warning("scheduler_not_known", scheduler=name, error=str(error))
                continue
            self._untold.discard(name)
            if there:
                self._there.add(name)
                self.missing -= {name}
            elif name not in self.missing:
                self.missing |= {name}
                log.warning("scheduler_missing", scheduler=name, remedy=f"load the module ip_vs_{name}")
        return self.missing != before


async def look_for_ever(look: Callable[[], Awaitable[None]], period: Callable[[], float]) -> None:
    """Look every ``period()`` seconds for schedulers that were missing."""
    while True:
        await asyncio.sleep(period())
        await look()
