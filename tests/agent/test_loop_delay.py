"""What the event loop's selector tells of how long other callbacks had to wait."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine
from typing import Any

from ipvs_proxy.agent.observe.loop_delay import LoopDelay


def observed(work: Coroutine[Any, Any, None]) -> list[float]:
    delays: list[float] = []
    selector = LoopDelay()
    selector.report_to(delays.append)
    loop = asyncio.SelectorEventLoop(selector)
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()
    return delays


def test_a_callback_that_keeps_the_loop_is_told_of_with_its_time() -> None:
    async def keep() -> None:
        await asyncio.sleep(0)
        time.sleep(0.05)  # noqa: ASYNC251  what must not be done
        await asyncio.sleep(0)

    delays = observed(keep())

    assert len([delay for delay in delays if delay >= 0.05]) == 1


def test_time_that_the_loop_waits_is_no_delay() -> None:
    async def rest() -> None:
        await asyncio.sleep(0.3)

    assert max(observed(rest())) < 0.2


def test_callbacks_that_were_due_at_once_count_from_then() -> None:
    selector = LoopDelay()
    delays: list[float] = []
    selector.report_to(delays.append)
    selector.select(0.0)
    time.sleep(0.05)
    selector.select(0.0)
    selector.close()

    assert delays[-1] >= 0.05


def test_what_is_ready_counts_from_the_moment_it_was_handed_over() -> None:
    here, there = socket.socketpair()
    with here, there:
        selector = LoopDelay()
        delays: list[float] = []
        selector.report_to(delays.append)
        selector.register(here, 1)
        there.send(b"x")
        assert selector.select(60.0)
        time.sleep(0.02)
        selector.select(0.0)
        selector.close()

    assert 0.02 <= delays[-1] < 10.0


def test_an_idle_loop_is_not_woken() -> None:
    async def rest() -> None:
        await asyncio.sleep(0.5)

    assert len(observed(rest())) < 10
