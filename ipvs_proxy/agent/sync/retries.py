"""Which table objects failed, and when each is tried again.

An object that the kernel refused is tried again by itself, with a delay that doubles; the others do not wait for it.
The clock is passed in.

Invariant: each object has one time at which it is due, the one of its last failure. Its owner may change it as often as
they like: what they make the kernel refuse costs one attempt for each change, and none of them adds to the retries.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from itertools import count, islice

from ipvs_proxy.pacing import Backoff
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Role, SetEntry, VirtualServerKey
from ipvs_proxy.snapshots import snapshot

BACKOFF = Backoff(first=0.5, longest=30.0)

Key = VirtualServerKey | bytes | tuple[Role, SetEntry]


class RetryQueue:
    """Failed keys with their number of attempts, ordered by when they are due."""

    def __init__(self) -> None:
        self._attempts: dict[Key, int] = {}
        #: When each is due; an older time in the heap means nothing.
        self._due: dict[Key, float] = {}
        #: Those that fail only because of what they ask for.
        self._refused: set[Key] = set()
        self._heap: list[tuple[float, int, Key]] = []
        self._order = count()

    def __len__(self) -> int:
        return len(self._attempts)

    def __contains__(self, key: Key) -> bool:
        return key in self._attempts

    def waiting(self, limit: int) -> list[Key]:
        """Return at most ``limit`` of the keys. Safe in any thread."""
        return list(islice(snapshot(self._attempts), limit))

    def is_held_up(self) -> bool:
        """Return whether something waits that is not refused for what it asks for."""
        return len(self._attempts) > len(self._refused)

    def failed(self, touched: TableKeys, now: float, *, refused: Collection[Key] = ()) -> float:
        """Note failures at ``now`` (seconds of a monotonic clock); return the longest delay until a retry.

        ``refused`` are those of them that the kernel refuses for what they ask for: the agent is well all the same.
        """
        longest = 0.0
        for key in _keys(touched):
            attempts = self._attempts.get(key, 0)
            self._attempts[key] = attempts + 1
            delay = BACKOFF.delay(attempts)
            longest = max(longest, delay)
            self._due[key] = now + delay
            heapq.heappush(self._heap, (now + delay, next(self._order), key))
            (self._refused.add if key in refused else self._refused.discard)(key)
        return longest

    def settled(self, touched: TableKeys, failing: TableKeys) -> None:
        """Forget the touched keys that were brought to what is desired: all but the failing ones."""
        if self._attempts:
            for key in set(_keys(touched)).difference(_keys(failing)):
                self._attempts.pop(key, None)
                self._due.pop(key, None)
                self._refused.discard(key)

    def next_due(self) -> float | None:
        """Return the time at which something is due, ``None`` if nothing is."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: float) -> TableKeys:
        """Take out the keys that are due; their attempts stay counted until they are settled."""
        touched = TableKeys()
        while (due := self.next_due()) is not None and due <= now:
            key = heapq.heappop(self._heap)[2]
            del self._due[key]
            if isinstance(key, VirtualServerKey):
                touched.virtual_servers.add(key)
            elif isinstance(key, bytes):
                touched.addresses.add(key)
            else:
                touched.entries.add(key)
        return touched


def _keys(touched: TableKeys) -> list[Key]:
    return [*touched.virtual_servers, *touched.addresses, *touched.entries]
