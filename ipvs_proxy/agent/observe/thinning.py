"""Thins out what is told about one object: some at once, then one a minute, and the next says how many were not.

The owner of an object decides how often it changes, and with that how often it is warned about.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

from ipvs_proxy.kube.events import TokenBucket

#: So many lines about one object at once, then one a minute.
BURST: Final = 10
RATE: Final = 1 / 60
#: So many objects are remembered; the one that was told of longest ago goes first.
_REMEMBERED: Final = 4096


class Thinning:
    """Who may be told of again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[Hashable, tuple[TokenBucket, int]] = OrderedDict()

    def admit(self, about: Hashable) -> dict[str, int] | None:
        """Return the fields that a line about an object has besides its own, ``None`` if it is not to be written.

        The field ``not_logged`` is the number of lines that were not written since the last one.
        """
        now = self._clock()
        bucket, left_out = self._seen.get(about) or (TokenBucket(BURST, RATE, now), 0)
        refused = bucket.take(now) > 0
        self._seen[about] = bucket, left_out + 1 if refused else 0
        self._seen.move_to_end(about)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        if refused:
            return None
        return {"not_logged": left_out} if left_out else {}
