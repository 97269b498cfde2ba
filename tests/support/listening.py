"""Notifications of rtnetlink that a test makes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from ipvs_proxy.kernel.links.monitor import LinkEvent


class Listening:
    """Brings the events of a test as ``Monitor`` does, and tells whether it was closed."""

    def __init__(self, follow: Callable[[], AsyncGenerator[list[LinkEvent], None]]) -> None:
        self.follow = follow
        self.is_open = True

    def close(self) -> None:
        self.is_open = False
