"""Those who look are answered one after the other, beside the event loop."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from ipvs_proxy.agent.web.reader_thread import read, read_first


async def test_readers_are_answered_one_after_the_other_while_the_loop_goes_on() -> None:
    at_work: list[int] = []

    def work(number: int, *, seconds: float) -> tuple[int, int]:
        at_work.append(number)
        time.sleep(seconds)
        together = len(at_work)
        at_work.remove(number)
        assert threading.current_thread() is not threading.main_thread()
        return number, together

    tasks = [asyncio.create_task(read(work, number, seconds=0.05)) for number in range(5)]
    turns = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.005)
        turns += 1
    assert [task.result() for task in tasks] == [(number, 1) for number in range(5)]
    assert turns >= 5


async def test_scrape_waits_for_no_page_but_the_one_at_work() -> None:
    begin, order = threading.Event(), []
    first = asyncio.create_task(read(begin.wait, 5))
    pages = [asyncio.create_task(read(order.append, f"page {number}")) for number in range(120)]
    await asyncio.sleep(0)
    scrape = asyncio.create_task(read_first(order.append, "scrape"))
    await asyncio.sleep(0)
    begin.set()
    await asyncio.gather(first, scrape, *pages)
    assert order == ["scrape", *(f"page {number}" for number in range(120))]


async def test_reader_that_is_gone_is_not_answered() -> None:
    begin, order = threading.Event(), []
    first = asyncio.create_task(read(begin.wait, 5))
    gone, here = (asyncio.create_task(read(order.append, name)) for name in ("gone", "here"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    begin.set()
    await asyncio.gather(first, here)
    assert order == ["here"]


async def test_fault_of_one_reader_reaches_that_one_alone() -> None:
    def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await read(fail)
    assert await read(len, [1]) == 1
