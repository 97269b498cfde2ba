"""The one thread that answers those who look: scrapes and pages, one after the other.

Every thread that is at work keeps Python from the event loop for a moment at a time. With several of them a change
would wait for all in turn, on each step of its way; so however many people look, only one is answered at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREAD: Final = ThreadPoolExecutor(1, thread_name_prefix="reader")


async def read(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Do a reader's work in the thread; give what it gives."""
    return await asyncio.get_running_loop().run_in_executor(_THREAD, partial(work, *arguments, **named))
