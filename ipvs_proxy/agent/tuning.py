"""What the agent sets for its process as a whole, and how the process ends: each with its reason.

A start and a running agent want different things of Python's garbage collector. A start makes a million objects that
stay, so nothing is looked through meanwhile. A running agent makes little garbage, and a look through all objects of
10,000 Services would keep the event loop from its work for some tenths of a second: what the start has made is taken
out of all later collections.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import structlog

log = structlog.get_logger(__name__)

#: New objects that are looked through for garbage at once during the start: as good as never. Looking through those of
#: 10,000 Services again and again took a tenth of the start, and once through those of 50,000 still a fifteenth.
START_GC_THRESHOLD: Final = 50_000_000
#: The same from then on: a look takes some milliseconds.
GC_THRESHOLD: Final = 20_000
#: Seconds after which a start is not a quick one: it waits for the API and makes garbage meanwhile.
LONG_START: Final = 60.0
#: Seconds for which a thread that answers a scrape may keep Python from the event loop; Python's own default is five
#: times this. A change waits for that thread some times on its way, and so waits half as long at worst.
SWITCH_INTERVAL: Final = 0.001


def prepare_for_start() -> None:
    """Set the garbage collector and the switching of threads for a start."""
    _set_gc_threshold(START_GC_THRESHOLD)
    sys.setswitchinterval(SWITCH_INTERVAL)


async def settle_after(started: asyncio.Event) -> None:
    """Set the garbage collector for a running agent once it has started; return then."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LONG_START):
            await started.wait()
    if not started.is_set():
        _set_gc_threshold(GC_THRESHOLD)
        await started.wait()
    # In this order: the threshold would have all looked through first, 250 ms for 50,000 Services.
    gc.freeze()
    _set_gc_threshold(GC_THRESHOLD)


def _set_gc_threshold(objects: int) -> None:
    gc.set_threshold(objects, *gc.get_threshold()[1:])


def raise_descriptor_limit() -> None:
    """Raise the soft limit of file descriptors to the hard one (getrlimit(2)), which needs no right."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.warning("descriptor_limit_not_raised", soft=soft, hard=hard, error=str(error))


def protect_from_memory_pressure(value: int) -> None:
    """Set how the kernel chooses which process to end when memory runs out (proc(5), ``oom_score_adj``).

    Lowering it needs CAP_SYS_RESOURCE.
    """
    try:
        Path("/proc/self/oom_score_adj").write_text(str(value), encoding="ascii")
    except OSError as error:
        log.info("oom_score_adj_not_set", wanted=value, error=error.strerror)


def exit_at_once() -> NoReturn:
    """End the process with status 0, without waiting for threads.

    A worker thread may be in the middle of a long read: nobody needs its result any more, and a write is a whole
    message, which the kernel has taken or not.
    """
    os._exit(0)
