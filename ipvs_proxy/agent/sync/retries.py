"""Which table objects failed, and when each is tried again.

An object that the kernel refused is tried again by itself, with a delay that doubles; the others do not wait for it.
The clock is passed in.
"""

from __future__ import annotations

import heapq
from itertools import count, islice

from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Role, SetEntry, VirtualServerKey

#: Delays in seconds: the first one, and the longest.
FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0

Key = VirtualServerKey | bytes | tuple[Role, SetEntry]


class RetryQueue:
    """Failed keys with their number of attempts, ordered by when they are due."""

    def __init__(self) -> None:
        self._attempts: dict[Key, int] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = count()

    def __len__(self) -> int:
        return len(self._attempts)

    def __contains__(self, key: Key) -> bool:
        return key in self._attempts

    def waiting(self, limit: int) -> list[Key]:
        """Return some of the keys. Safe in any thread."""
        return list(islice(self._attempts.copy(), limit))

    def failed(self, touched: TableKeys, now: float) -> float:
        """Note failures at ``now`` (seconds of a monotonic clock); return the longest delay until a retry."""
        longest = 0.0
        for key in _keys(touched):
            attempts = self._attempts.get(key, 0)
            self._attempts[key] = attempts + 1
            delay = min(FIRST_DELAY * 2 ** min(attempts, 10), LONGEST_DELAY)
            longest = max(longest, delay)
            heapq.heappush(self._heap, (now + delay, next(self._order), key))
        return longest

    def settled(self, touched: TableKeys, failing: TableKeys) -> None:
        """Forget the touched keys that were brought to what is desired: all but the failing ones."""
        if self._attempts:
            for key in set(_keys(touched)).difference(_keys(failing)):
                self._attempts.pop(key, None)

    def next_due(self) -> float | None:
        """Return the time at which something is due, ``None`` if nothing is."""
        while self._heap and self._heap[0][2] not in self._attempts:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: float) -> TableKeys:
        """Take out the keys that are due; their attempts stay counted until they are settled."""
        touched = TableKeys()
        while (due := self.next_due()) is not None and due <= now:
            key = heapq.heappop(self._heap)[2]
            if isinstance(key, VirtualServerKey):
                touched.virtual_servers.add(key)
            elif isinstance(key, bytes):
                touched.addresses.add(key)
            else:
                touched.entries.add(key)
        return touched


def _keys(touched: TableKeys) -> list[Key]:
    return [*touched.virtual_servers, *touched.addresses, *touched.entries]
