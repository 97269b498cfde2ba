"""A look at a table that another thread changes, on the interpreter that runs these tests."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from ipvs_proxy.plan.tables import VirtualServerKey
from ipvs_proxy.snapshots import snapshot
from tests.support.objects import virtual

STAYS = {virtual(f"10.96.{number // 250}.{number % 250 + 1}"): number for number in range(5_000)}
COMES = [virtual(f"10.97.0.{number + 1}") for number in range(200)]


@contextmanager
def churned(table: dict[VirtualServerKey, int]) -> Iterator[None]:
    """Have a thread put keys into a table and take them out again, with threads switched as often as possible."""
    stop, interval = threading.Event(), sys.getswitchinterval()

    def churn() -> None:
        while not stop.is_set():
            for number, key in enumerate(COMES):
                table.setdefault(key, number)
            for key in COMES:
                del table[key]

    thread = threading.Thread(target=churn)
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


def look_until(seconds: float, look: Callable[[Mapping[VirtualServerKey, int]], dict[VirtualServerKey, int]]) -> int:
    """Look at a table that changes, again and again; return how many different sizes it had."""
    table, sizes = STAYS.copy(), set[int]()
    with churned(table):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = look(table)
            assert found.items() >= STAYS.items()
            assert found.keys() - STAYS.keys() <= set(COMES)
            sizes.add(len(found))
    return len(sizes)


def test_a_snapshot_is_whole_whatever_another_thread_does() -> None:
    assert look_until(0.5, snapshot) > 1, "the table did not change between two looks, so this proves nothing"


def test_a_loop_over_the_table_itself_is_not() -> None:
    """Were it whole, the test above would prove nothing."""
    with pytest.raises(RuntimeError, match="changed size"):
        look_until(30.0, lambda table: {key: value for key, value in table.items() if value >= 0})
