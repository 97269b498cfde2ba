"""Thins out what is told about one thing: a burst at once, then a slow trickle that says how many were not told.

The owner of an object decides how often it changes, and with that how often it is warned about; a cluster that never
rests has no end of changes. Neither may fill a log.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

from ipvs_proxy.pacing import TokenBucket

#: Lines about one object at once, and per second from then on.
BURST: Final = 10
RATE: Final = 1 / 60
#: Things that are remembered at most; the one that was told of longest ago goes first.
_REMEMBERED: Final = 4096


class Thinning:
    """Decides what may be told of again: ``burst`` times at once, and ``rate`` times per second in the long run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, burst: int = BURST, rate: float = RATE) -> None:
        self._clock = clock
        self._burst = burst
        self._rate = rate
        self._seen: OrderedDict[Hashable, tuple[TokenBucket, int]] = OrderedDict()

    def admit(self, about: Hashable) -> dict[str, int] | None:
        """Return the fields that a line has besides its own, or ``None`` if it is not to be written.

        The field ``not_logged`` is the number of lines about the same thing that were left out since the last one.
        """
        now = self._clock()
        bucket, left_out = self._seen.get(about) or (TokenBucket(self._burst, self._rate, now), 0)
        refused = bucket.take(now) > 0
        self._seen[about] = bucket, left_out + 1 if refused else 0
        self._seen.move_to_end(about)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        if refused:
            return None
        return {"not_logged": left_out} if left_out else {}
