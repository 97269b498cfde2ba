"""How often something may be done: the delays between attempts that fail, and the rate of what others cause.

Both are plain arithmetic. The clock is passed in, and nothing here waits: whoever asks knows what to wait for.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Doubling more often than this changes no delay in use, and would overflow in the end.
_DOUBLINGS: Final = 32


class Backoff(NamedTuple):
    """Delays in seconds that double from one failed attempt to the next, up to the longest."""

    first: float
    longest: float

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after a failed attempt; ``failures`` is how many failed before it."""
        return min(self.first * 2.0 ** min(failures, _DOUBLINGS), self.longest)


class TokenBucket:
    """At most ``burst`` at once, and ``rate`` per second in the long run. ``now`` is in seconds of any clock."""

    def __init__(self, burst: int, rate: float, now: float) -> None:
        self._burst = burst
        self._rate = rate
        self._tokens = float(burst)
        self._at = now

    def take(self, now: float) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1 - 1e-9:  # what waited for a token gets it, also with rounding
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0
