"""Backoff and rate limits: the delays between failed attempts, and the rate of work that others cause.

Both are plain arithmetic: the caller passes the time, and does the waiting.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Maximum number of doublings. More would change no delay in use, and would eventually overflow.
_DOUBLINGS: Final = 32


class Backoff(NamedTuple):
    """Delays in seconds that double with each failed attempt, from ``first`` up to ``longest``."""

    first: float
    longest: float

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after a failed attempt; ``failures`` is how many failed before it."""
        return min(self.first * 2.0 ** min(failures, _DOUBLINGS), self.longest)


class TokenBucket:
    """A limit of ``burst`` at once and ``rate`` per second in the long run. ``now`` is in seconds of any clock."""

    def __init__(self, burst: int, rate: float, now: float) -> None:
        self._burst = burst
        self._rate = rate
        self._tokens = float(burst)
        self._at = now

    def take(self, now: float) -> float:
        """Take a token and return 0. If there is none, return the seconds until there is one."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1 - 1e-9:  # a caller that waited for a token gets it despite rounding
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0
