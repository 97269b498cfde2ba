"""The last changes and repairs, for people who look at what has just happened; logs and metrics have all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from ipvs_proxy.state.documents import Happening

#: Changes, and repairs, that are kept, and objects that are named of each.
KEPT: Final = 50
NAMED: Final = 5


class History:
    """What was programmed and what was repaired, the latest first."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self.changes: deque[Happening] = deque(maxlen=KEPT)
        self.repairs: deque[Happening] = deque(maxlen=KEPT)

    def wrote(self, services: Sequence[object], *, operations: int, seconds: float) -> None:
        """Note that changed Services were programmed."""
        named, milliseconds = [str(name) for name in services[:NAMED]], round(seconds * 1000, 1)
        self.changes.appendleft(
            Happening(self._now(), "programmed", operations, named, milliseconds, total=len(services))
        )

    def repaired(self, table: str, drift: Sequence[str]) -> None:
        """Note that drift was repaired."""
        named, total = sorted(drift)[:NAMED], len(drift)
        self.repairs.appendleft(Happening(self._now(), table, total, named, total=total))
