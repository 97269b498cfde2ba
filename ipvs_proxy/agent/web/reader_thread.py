"""The one thread that answers those who look: scrapes and pages, one after the other, scrapes first.

Every thread that is at work keeps Python from the event loop for a moment at a time. With several of them a change
would wait for all in turn, on each step of its way; so however many people look, only one is answered at a time. A
scrape waits for the one that is being answered and for other scrapes, not for pages; who is gone is not answered.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from enum import IntEnum
from functools import cache, partial
from queue import PriorityQueue
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class _Rank(IntEnum):
    SCRAPE = 0
    PAGE = 1


class _Job(NamedTuple):
    """Ordered by rank, then by number: no two have the same."""

    rank: _Rank
    number: int
    work: Callable[[], Any]
    result: Future[Any]


_JOBS: Final[PriorityQueue[_Job]] = PriorityQueue()
_NUMBERS: Final = itertools.count()


async def read(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Do the work of a page in the thread; return what it returns."""
    return await _done(_Rank.PAGE, partial(work, *arguments, **named))


async def read_first(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Do the work of a scrape in the thread, before that of any page; return what it returns."""
    return await _done(_Rank.SCRAPE, partial(work, *arguments, **named))


async def _done(rank: _Rank, work: Callable[[], T]) -> T:
    _start_thread()
    result: Future[T] = Future()
    _JOBS.put(_Job(rank, next(_NUMBERS), work, result))
    return await asyncio.wrap_future(result)


@cache
def _start_thread() -> None:
    threading.Thread(target=_work_for_ever, name="reader", daemon=True).start()


def _work_for_ever() -> None:
    while True:
        _do(_JOBS.get())


def _do(job: _Job) -> None:
    if not job.result.set_running_or_notify_cancel():
        return
    try:
        job.result.set_result(job.work())
    except BaseException as error:  # noqa: BLE001  it is the reader's
        job.result.set_exception(error)
