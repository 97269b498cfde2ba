"""Calls that fail when a test wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def failing(call: Callable[..., T], number: int) -> Callable[..., T]:
    """Return the call as one that raises ``OSError`` the ``number``-th time."""
    calls = 0

    def flaky(*arguments: object, **named: object) -> T:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError("a fault")
        return call(*arguments, **named)

    return flaky
