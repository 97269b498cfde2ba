"""How long the event loop is kept from its work: measured where it waits, so that an agent at rest is not woken for it.

A timer that looks twenty times a second took 0.6 % of a core (user-mode Linux), which was most of what an idle agent
used between audits, and met a delay of 50 ms only by chance.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from selectors import EpollSelector, SelectorKey


class LoopDelay(EpollSelector):
    """A selector that reports, each time the loop comes back to it, how long other callbacks had to wait.

    That is the time since it gave the loop something to do, or since the timeout after which the loop wanted to go on.
    """

    def __init__(self) -> None:
        super().__init__()
        self._report: Callable[[float], None] = _ignore
        self._due = time.monotonic()

    def report_to(self, report: Callable[[float], None]) -> None:
        """Have ``report`` called with the delays, in seconds, from now on: a loop exists before what counts them."""
        self._report = report

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Wait as ``EpollSelector`` does."""
        begun = time.monotonic()
        self._report(begun - self._due)
        ready = super().select(timeout)
        self._due = time.monotonic()
        if not ready and timeout is not None:
            self._due = min(self._due, begun + max(timeout, 0.0))
        return ready


def _ignore(_: float) -> None:
    """Do nothing: nobody counts yet."""
